"""Trading statuses and price bands: Alpaca's items, and our own form of them."""

from __future__ import annotations

from typing import Any

import msgpack
import orjson
import pytest

from dry_work.errors import CodecError
from dry_work.market.messages import PriceBands, TradingStatus
from dry_work.wire.pubsub import encode_status, parse_message
from dry_work.wire.statuses import parse_bands_item, parse_status_item

# As Alpaca documents them.
STATUS = {
    "T": "s", "S": "AAPL", "sc": "H", "sm": "Trading Halt", "rc": "T12",
    "rm": "Trading Halted; For information requested by NASDAQ", "t": "2021-02-22T19:15:00Z", "z": "C",
}  # fmt: skip
BANDS = {"T": "l", "S": "IONM", "u": 3.24, "d": 2.65, "i": "B", "t": "2023-04-06T20:56:59.95Z", "z": "C"}
AT_NS = 1_614_021_300_000_000_000


def test_items_are_read() -> None:
    status = parse_status_item(STATUS, recv_ns=7)
    assert status == TradingStatus(
        symbol="AAPL", ts_event_ns=AT_NS, code="H", message="Trading Halt", reason_code="T12",
        reason="Trading Halted; For information requested by NASDAQ", tape="C", ts_recv_ns=7,
    )  # fmt: skip
    at = msgpack.Timestamp.from_unix_nano(AT_NS)
    assert parse_status_item({**STATUS, "t": at}, recv_ns=7) == status
    bands = parse_bands_item(BANDS, recv_ns=7)
    assert (bands.symbol, bands.upper, bands.lower, bands.indicator, bands.tape) == ("IONM", 3.24, 2.65, "B", "C")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"S": "no symbol"}, "malformed symbol"),
        ({"S": None}, "malformed symbol"),
        ({"t": "soon"}, "malformed time"),
        ({"t": 5}, "malformed time"),
        ({"sc": ""}, "malformed status code"),
        ({"sc": None}, "malformed status code"),
        ({"sc": True}, "malformed status code"),
    ],
)
def test_a_status_that_cannot_be_read_is_refused_by_a_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        parse_status_item({**STATUS, **change}, recv_ns=0)


@pytest.mark.parametrize("price", [None, "3", -1.0, float("nan"), float("inf"), True])
def test_bands_without_prices_are_refused(price: Any) -> None:
    with pytest.raises(CodecError, match="malformed price"):
        parse_bands_item({**BANDS, "u": price}, recv_ns=0)


@pytest.mark.parametrize("item", [STATUS, BANDS])
def test_both_come_back_from_their_form_on_pubsub(item: dict[str, Any]) -> None:
    read = parse_status_item if item is STATUS else parse_bands_item
    message: TradingStatus | PriceBands = read(item, recv_ns=3)
    data, attributes = encode_status(message, epoch="e", seq=4)
    assert attributes == {
        "symbol": item["S"],
        "type": "status" if item is STATUS else "bands",
        "epoch": "e",
        "seq": "4",
    }
    envelope = parse_message("market-data", data, attributes, recv_ns=3)
    assert (envelope.message, envelope.epoch, envelope.seq) == (message, "e", 4)


@pytest.mark.parametrize(
    "change",
    [{"symbol": "?"}, {"timestamp": None}, {"code": 5}, {"type": "bands"}, {"message": []}],
)
def test_a_message_on_pubsub_that_cannot_be_read_is_refused(change: dict[str, Any]) -> None:
    data, attributes = encode_status(parse_status_item(STATUS, recv_ns=0))
    body = {**orjson.loads(data), **change}
    with pytest.raises(CodecError):
        parse_message("market-data", orjson.dumps(body), {**attributes, "type": body["type"]}, recv_ns=0)
