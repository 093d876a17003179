"""Server-sent events, the framing of `text/event-stream`. Pure.

Comments are told as well: Alpaca says in them that it is alive, and that it has left events out.
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import msgspec

from dry_work.errors import CodecError

LONGEST_EVENT_BYTES = 4 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class ServerEvent(msgspec.Struct, frozen=True):
    """An event."""

    data: str
    name: str = ""  # its `event` field
    id: str = ""  # its `id` field


class ServerComment(msgspec.Struct, frozen=True):
    """A line that begins with a colon."""

    text: str


class EventParser:
    """Takes the bytes of one connection as they come.

    Args:
        longest_bytes: of a line, and of the data of an event.
    """

    def __init__(self, *, longest_bytes: int = LONGEST_EVENT_BYTES) -> None:
        self.lines = 0  # that were complete
        self._longest_bytes = longest_bytes
        self._rest = b""  # of a line that is not complete
        self._after_return = False  # a line feed that comes next belongs to the line before
        self._is_first = True
        self._data: list[str] = []
        self._length = 0  # of the data, in bytes
        self._name = self._id = ""

    def feed(self, chunk: bytes) -> list[ServerEvent | ServerComment]:
        """Return what is complete now.

        Raises:
            CodecError: a line or an event is too long; nothing can be read any more.
        """
        if self._after_return and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_return = False
        buffer = self._rest + chunk
        if self._is_first:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._rest = buffer
                return []
            buffer = buffer.removeprefix(_BOM)
            self._is_first = False
        self._after_return = buffer.endswith(b"\r")
        # Not `splitlines`, which takes more than the three ends of lines that there are.
        lines = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self._longest_bytes:
            raise CodecError(f"a line of the stream is longer than {self._longest_bytes:,} bytes", data=self._rest)
        self.lines += len(lines)
        return [found for line in lines if (found := self._take(line)) is not None]

    def _take(self, line: bytes) -> ServerEvent | ServerComment | None:
        text = line.decode("utf-8", "replace")
        if not text:
            event = ServerEvent("\n".join(self._data), self._name, self._id) if self._data else None
            self._clear()
            return event
        if text.startswith(":"):
            return ServerComment(text[1:].strip())
        field, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._length += len(line)
            if self._length > self._longest_bytes:
                raise CodecError(f"an event is longer than {self._longest_bytes:,} bytes", data=text)
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        return None

    def _clear(self) -> None:
        self._data = []
        self._length = 0
        self._name = self._id = ""
