"""Own fields behind the responses of `cream.v1`: position and Alpaca's own item. Pure.

Clients that do not know them skip them, as protocol buffers have it. A message of `cream.v1` has no place for a
fraction of a size, for a value that is missing, or for extra fields: the item has all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from dry_work.errors import CodecError
from dry_work.wire.alpaca_stream import StreamCodec
from dry_work.wire.alpaca_stream import encode_item as encode_json

OFFSET_FIELD, ITEM_FIELD = 100, 101

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ITEM_TAG = b"\xaa\x06"  # of field 101, length-delimited
_VARINT_LIMIT = 10  # bytes


class OwnFields(msgspec.Struct, frozen=True):
    """What a response carries beside its message."""

    offset: int = 0
    item: Mapping[str, Any] | None = None


def encode_item(item: Mapping[str, Any]) -> bytes:
    """Return the field with an item, as JSON, to be put behind the bytes of any response."""
    data = encode_json(item, StreamCodec.JSON)
    return _ITEM_TAG + _encode_varint(len(data)) + data


def parse_own_fields(response: bytes) -> OwnFields:
    """Return the own fields of a response.

    Raises:
        CodecError: it is no protocol buffer, or its item is no JSON object.
    """
    offset, item, at = 0, None, 0
    try:
        while at < len(response):
            tag, at = _read_varint(response, at)
            field, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, at = _read_varint(response, at)
                if field == OFFSET_FIELD:
                    offset = value
                continue
            if kind == _BYTES:
                size, at = _read_varint(response, at)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise CodecError("no protocol buffer", data=response)
            if at + size > len(response):
                raise CodecError("no protocol buffer", data=response)
            if field == ITEM_FIELD and kind == _BYTES:
                item = orjson.loads(response[at : at + size])
            at += size
    except (IndexError, orjson.JSONDecodeError):
        raise CodecError("no protocol buffer", data=response) from None
    if item is not None and not isinstance(item, dict):
        raise CodecError("the item is no object", data=response)
    return OwnFields(offset, item)


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(_VARINT_LIMIT):
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise IndexError
