"""The bytes of a log: a head, then frames, each bound to all before it. Pure.

A segment (one file) is::

    magic 8 | version u16 | reserved u16 | head length u32 | head, JSON | CRC-32 of all this u32
    frame:  payload length u32 | kind u16 | reserved u16 | venue time i64 | receive time i64 | CRC-32 of these u32
            payload | CRC-32 of frame head and payload u32 | digest 16

Numbers are little-endian, times are nanoseconds since 1970 UTC (0: not known). A digest is BLAKE2b, 16 bytes long, of
the digest before it and of the frame's head and payload. The first frame follows the digest of the segment's head,
which names the digest that the segment before ended with: an edited, removed, inserted or moved byte is found.
The checksums tell a damaged frame from a broken chain, and a wrong length from a file that ends early.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Literal

import msgspec

MAGIC = b"DWLOG\r\n\x1a"  # a transfer as text would damage it
VERSION = 1
END = 0  # kinds below 16 belong to the log itself; END is the last frame of a segment that was closed in order
NOTE = 1  # JSON about the recording: what was removed or not recorded
FIRST_KIND = 16  # of what is recorded

DIGEST_BYTES = 16
MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
_MAX_HEAD_BYTES = 1024 * 1024

_PREFIX = struct.Struct("<8sHHI")
_FRAME = struct.Struct("<IHHqq")
_CRC = struct.Struct("<I")
_FRAME_HEAD_BYTES = _FRAME.size + _CRC.size
_TAIL_BYTES = _CRC.size + DIGEST_BYTES
FRAME_BYTES = _FRAME_HEAD_BYTES + _TAIL_BYTES  # of a frame beside its payload

DamageKind = Literal["truncated", "checksum", "chain", "foreign", "version", "missing", "unreadable"]


class SegmentHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment says about itself.

    `chain` is the digest, in hex, that the segment before ended with; empty in the first one. `facts` are the writer's.
    """

    session: str
    segment: int  # counts from 1
    created_ns: int
    writer: str
    chain: str = ""
    facts: dict[str, Any] = {}


class Frame(msgspec.Struct, frozen=True):
    """One record of a log."""

    kind: int
    venue_ns: int  # time that the venue gives it, 0: none
    recv_ns: int  # time at which it was received, 0: not received
    payload: bytes


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """Why reading stopped before the end.

    `truncated` at the end of a log is what a killed process leaves behind; everything else is real damage.
    """

    kind: DamageKind
    offset: int  # of the first byte that cannot be used
    reason: str
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.path}, " if self.path else ""
        return f"{where}byte {self.offset:,}: {self.reason}"


def encode_head(head: SegmentHead) -> tuple[bytes, bytes]:
    """Return (bytes, digest) of a segment's beginning."""
    body = msgspec.json.encode(head)
    data = _PREFIX.pack(MAGIC, VERSION, 0, len(body)) + body
    data += _CRC.pack(zlib.crc32(data))
    return data, _digest(b"", data)


def encode_frame(frame: Frame, digest: bytes) -> tuple[bytes, bytes]:
    """Return (bytes, digest) of a frame that follows `digest`.

    Raises:
        ValueError: the payload is longer than `MAX_PAYLOAD_BYTES`, or a number is out of range.
    """
    if len(frame.payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(frame.payload):,} bytes; at most {MAX_PAYLOAD_BYTES:,} are possible")
    try:
        head = _FRAME.pack(len(frame.payload), frame.kind, 0, frame.venue_ns, frame.recv_ns)
    except struct.error as error:
        raise ValueError(f"a frame's number is out of range: {error}") from None
    content = b"".join((head, _CRC.pack(zlib.crc32(head)), frame.payload))
    after = _digest(digest, content)
    return b"".join((content, _CRC.pack(zlib.crc32(content)), after)), after


class SegmentDecoder:
    """Turns the bytes of a segment, in pieces of any size, into its head and frames; stops at the first damage.

    After `finish` no more bytes are taken. `digest` belongs to the newest frame.
    """

    def __init__(self) -> None:
        self.head: SegmentHead | None = None
        self.damage: Damage | None = None
        self.is_closed = False  # the END frame was there
        self.digest = b""
        self.offset = 0  # of the first byte that is not decoded
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes. To be used up before the next call."""
        if self.damage is not None:
            return
        self._buffer += data
        if self.head is None and not self._take_head():
            return
        position = 0
        try:
            while self.damage is None:
                frame, size = self._decode(position)
                if frame is None:
                    break
                position += size
                self.offset += size
                if frame.kind == END:
                    self.is_closed = True
                yield frame
        finally:
            del self._buffer[:position]

    def finish(self) -> Damage | None:
        """Take the end of the file; return what is wrong with it, if anything is."""
        if self.damage is not None:
            return self.damage
        left = len(self._buffer)
        if self.head is None:
            if MAGIC.startswith(bytes(self._buffer[: len(MAGIC)])):
                self._stop("truncated", f"the file ends within its head, after {left} bytes")
            else:
                self._stop("foreign", "no log of Dry Work: it does not begin as one")
        elif left:
            self._stop("truncated", f"the file ends within a frame, {left} bytes of it are there")
        return self.damage

    def _take_head(self) -> bool:
        buffer = self._buffer
        if bytes(buffer[: len(MAGIC)]) != MAGIC[: len(buffer)]:
            return self._stop("foreign", "no log of Dry Work: it does not begin as one")
        if len(buffer) < _PREFIX.size:
            return False
        _, version, _, length = _PREFIX.unpack_from(buffer)
        if version != VERSION:
            return self._stop("version", f"format version {version}; this Dry Work reads version {VERSION}")
        if length > _MAX_HEAD_BYTES:
            return self._stop("checksum", "the head is damaged: impossible length")
        end = _PREFIX.size + length
        if len(buffer) < end + _CRC.size:
            return False
        content = bytes(buffer[: end + _CRC.size])
        if _CRC.unpack_from(content, end)[0] != zlib.crc32(content[:end]):
            return self._stop("checksum", "the head is damaged: checksum differs")
        try:
            self.head = msgspec.json.decode(content[_PREFIX.size : end], type=SegmentHead)
        except msgspec.DecodeError as error:  # written by something else that knows the form
            return self._stop("foreign", f"the head cannot be read: {error}")
        self.digest = _digest(b"", content)
        self.offset = len(content)
        del buffer[: len(content)]
        return True

    def _decode(self, position: int) -> tuple[Frame | None, int]:
        buffer = self._buffer
        left = len(buffer) - position
        if self.is_closed:
            if left:
                self._stop("chain", f"{left} bytes or more follow the end of the segment")
            return None, 0
        if left < _FRAME_HEAD_BYTES:
            return None, 0
        head = bytes(buffer[position : position + _FRAME.size])
        if _CRC.unpack_from(buffer, position + _FRAME.size)[0] != zlib.crc32(head):
            self._stop("checksum", "a frame's head is damaged: checksum differs")
            return None, 0
        length, kind, _, venue_ns, recv_ns = _FRAME.unpack(head)
        size = FRAME_BYTES + length
        if left < size:
            return None, 0
        content = bytes(buffer[position : position + _FRAME_HEAD_BYTES + length])
        tail = position + len(content)
        if _CRC.unpack_from(buffer, tail)[0] != zlib.crc32(content):
            self._stop("checksum", "a frame is damaged: checksum differs")
            return None, 0
        digest = _digest(self.digest, content)
        if bytes(buffer[tail + _CRC.size : position + size]) != digest:
            self._stop("chain", "the chain is broken: something before this frame was removed, inserted or edited")
            return None, 0
        self.digest = digest
        return Frame(kind, venue_ns, recv_ns, content[_FRAME_HEAD_BYTES:]), size

    def _stop(self, kind: DamageKind, reason: str) -> bool:
        self.damage = Damage(kind=kind, offset=self.offset, reason=reason)
        return False


def _digest(before: bytes, content: bytes) -> bytes:
    return blake2b(before + content, digest_size=DIGEST_BYTES).digest()
