"""Commands to a Redis server and its replies: RESP, version 2. Pure.

A reply is an int, a str (of a status), bytes or None (of a string), a list of replies, or a `ReplyError`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dry_work.errors import CodecError

LONGEST_LINE = 64 * 1024
LARGEST_STRING = 512 * 1024 * 1024  # Redis's own limit
LARGEST_LIST = 16 * 1024 * 1024
DEEPEST_LIST = 8


class ReplyError(msgspec.Struct, frozen=True):
    """A command was refused."""

    text: str

    @property
    def code(self) -> str:
        """The first word, such as WRONGPASS, OOM or LOADING."""
        return self.text.partition(" ")[0]


def encode_command(*parts: bytes) -> bytes:
    """Return the bytes of a command."""
    return begin_command(len(parts), *parts)


def begin_command(count: int, *parts: bytes) -> bytes:
    """Return the beginning of a command of `count` parts, for commands that begin alike; `encode_part` goes on."""
    return b"".join((b"*%d\r\n" % count, *map(encode_part, parts)))


def encode_part(part: bytes) -> bytes:
    """Return one part of a command."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


class ReplyReader:
    """Makes replies of the bytes of one connection, which may be cut anywhere."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        self._wanted = -1  # bytes of a string whose length is known
        self._lists: list[tuple[int, list[Any]]] = []  # that are not complete: length and elements

    def feed(self, data: bytes) -> list[Any]:
        """Take what was received; return the replies that are complete by now, in their order.

        Raises:
            CodecError: it is no reply. The connection is of no use any more.
        """
        self._data = self._data[self._at :] + data
        self._at = 0
        replies: list[Any] = []
        while True:
            is_complete, value = self._read()
            if not is_complete:
                return replies
            while self._lists:
                length, elements = self._lists[-1]
                elements.append(value)
                if len(elements) < length:
                    break
                value = elements
                self._lists.pop()
            else:
                replies.append(value)

    def _read(self) -> tuple[bool, Any]:
        """Read up to the next value that is no list with elements."""
        while True:
            if self._wanted >= 0:
                return self._read_string()
            end = self._data.find(b"\r\n", self._at)
            if end < 0:
                if len(self._data) - self._at > LONGEST_LINE:
                    raise CodecError("a reply has no end", data=self._data[self._at : self._at + 80])
                return False, None
            kind, text = self._data[self._at : self._at + 1], self._data[self._at + 1 : end]
            self._at = end + 2
            if kind == b":":
                return True, _parse_int(text)
            if kind == b"+":
                return True, text.decode("utf-8", "replace")
            if kind == b"-":
                return True, ReplyError(text.decode("utf-8", "replace"))
            if kind == b"$":
                self._wanted = _parse_length(text, LARGEST_STRING)
                if self._wanted < 0:
                    return True, None
            elif kind == b"*":
                length = _parse_length(text, LARGEST_LIST)
                if length <= 0:
                    return True, [] if length == 0 else None
                if len(self._lists) >= DEEPEST_LIST:
                    raise CodecError(f"a reply is nested more than {DEEPEST_LIST} deep")
                self._lists.append((length, []))
            else:
                raise CodecError("no reply of a Redis server", data=kind + text)

    def _read_string(self) -> tuple[bool, Any]:
        end = self._at + self._wanted
        if len(self._data) < end + 2:
            return False, None
        value = self._data[self._at : end]
        if self._data[end : end + 2] != b"\r\n":
            raise CodecError("a string of another length than said", data=value)
        self._at, self._wanted = end + 2, -1
        return True, value


def _parse_int(text: bytes) -> int:
    try:
        if len(text) > 20:
            raise ValueError
        return int(text)
    except ValueError:
        raise CodecError("a reply with a malformed number", data=text) from None


def _parse_length(text: bytes, largest: int) -> int:
    length = _parse_int(text)
    if not -1 <= length <= largest:
        raise CodecError("a reply with a malformed length", data=text)
    return length
