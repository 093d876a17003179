"""Own fields behind responses of `cream.v1`."""

from __future__ import annotations

import random

import pytest

from dry_work.errors import CodecError
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.wire.cream import Losses, build_stock_bar, encode_offset
from dry_work.wire.cream_items import OwnFields, encode_item, parse_own_fields

ITEM = {
    "T": "b",
    "S": "BTC/USD",
    "o": 1,
    "h": 2,
    "l": 1,
    "c": 2,
    "v": 0.25,
    "n": 3,
    "vw": 1.5,
    "t": "2024-01-02T14:30Z",
}


@pytest.mark.parametrize("offset", [1, 127, 128, 16_384, 2**40])
def test_item_and_offset_come_back_and_others_read_the_message(offset: int) -> None:
    message = build_stock_bar(ITEM, Losses())
    encoded = message.SerializeToString() + encode_item(ITEM) + encode_offset(offset)
    assert parse_own_fields(encoded) == OwnFields(offset, ITEM)
    read = cream.StreamBarsResponse.FromString(encoded)
    assert (read.bar.symbol, read.bar.close) == ("BTC/USD", 2.0)


def test_a_long_item_and_one_alone_come_back() -> None:
    item = {"T": "w", "text": "x" * 100_000}
    assert parse_own_fields(encode_item(item)) == OwnFields(0, item)
    assert parse_own_fields(b"") == OwnFields()


def test_other_fields_are_skipped() -> None:
    fixed = b"\x0d1234" + b"\x0912345678"  # of 32 and of 64 bits
    assert parse_own_fields(fixed + encode_offset(9)) == OwnFields(9)


@pytest.mark.parametrize(
    "data", [b"\xff", b"\xaa\x06\x05ab", b"\xaa\x06\x02ab", b"\xaa\x06\x02[]", b"\x0b", b"\xff" * 20]
)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        parse_own_fields(data)


def test_no_bytes_make_it_fail_otherwise() -> None:
    rng = random.Random(1)
    good = encode_item(ITEM) + encode_offset(300)
    refused = 0
    for _ in range(5_000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            parse_own_fields(bytes(data[: rng.randrange(len(data) + 1)]))
        except CodecError:
            refused += 1
    assert 0 < refused < 5_000
