"""What a call of the gRPC interface asks for."""

from __future__ import annotations

from typing import Any

import pytest

from dry_work.errors import ConfigError
from dry_work.hub.events import HubEvent
from dry_work.hub.queues import Overflow
from dry_work.hub.sinks.grpc_filters import KINDS, Filter, add_statuses, add_watermarks, parse_filter, parse_wishes

BY_METHOD = {kind.method: kind for kind in KINDS}
OPTION = "AAPL240315C00172500"


def ask(method: str, environment: str = "paper", **request: Any) -> Filter:
    kind = BY_METHOD[method]
    return parse_filter(kind, kind.request(**request), environment)


def make_event(symbol: str, item: dict[str, Any] | None = None) -> HubEvent:
    return HubEvent(feed="options", channel="trades", symbol=symbol, item=item or {}, epoch="e", offset=1, ts_recv_ns=0)


def test_each_stream_has_the_room_that_is_promised_and_orders_are_never_dropped() -> None:
    assert {kind.method: kind.capacity for kind in KINDS} == {
        "StreamQuotes": 1_024,
        "StreamTrades": 1_024,
        "StreamBars": 256,
        "StreamOptionQuotes": 4_096,
        "StreamOptionTrades": 1_024,
        "StreamOrderUpdates": 256,
    }
    assert [kind.method for kind in KINDS if kind.overflow is Overflow.CLOSE] == ["StreamOrderUpdates"]


def test_symbols_are_taken_in_any_case_and_each_once() -> None:
    wanted = ask("StreamTrades", symbols=["brk.b", " BRK.B ", "ibm"])
    assert wanted.topics == wanted.held == (("stocks", "trades", "BRK.B"), ("stocks", "trades", "IBM"))
    assert wanted.matches is None


def test_a_root_matches_exactly_or_a_symbol_does() -> None:
    wanted = ask("StreamOptionTrades", underlyings=["a", "brk.b"], symbols=[OPTION])
    assert wanted.matches is not None
    assert wanted.held == wanted.topics == (("options", "trades", "*"),)
    found = [name for name in (OPTION, "A240315C00172500", "AA240315C00172500", "BRKB240315P00172500", "A", "") if
             wanted.matches(make_event(name))]  # fmt: skip
    assert found == [OPTION, "A240315C00172500", "BRKB240315P00172500"]


def test_quotes_of_options_by_root_hold_no_star() -> None:
    wanted = ask("StreamOptionQuotes", underlyings=["A"], symbols=[OPTION])
    assert wanted.topics == (("options", "quotes", "*"),)
    assert (wanted.held, wanted.roots) == ((("options", "quotes", OPTION),), ("A",))


@pytest.mark.parametrize(
    ("symbol", "order", "expected"),
    [
        ("SPY", {"id": "X"}, False),
        ("SPY", {"id": "O1"}, True),
        ("BTC/USD", {"id": "x"}, True),
        ("BTCUSD", {"id": "x"}, True),
        ("", {"id": "x", "legs": [{"symbol": OPTION}]}, True),
        ("", {"id": "x", "legs": [{"symbol": "A240315C00172500"}, None]}, False),
        ("", {"id": "x", "legs": None}, False),
        ("SPY", None, False),
    ],
)
def test_an_order_matches_by_its_id_its_symbol_or_those_of_its_legs(
    symbol: str, order: dict[str, Any] | None, expected: bool
) -> None:
    wanted = ask("StreamOrderUpdates", "live", order_ids=["o1"], symbols=["btc/usd", OPTION])
    assert wanted.topics == (("orders.live", "orders", "*"),)
    assert wanted.matches is not None
    assert wanted.matches(make_event(symbol, {"order": order})) == expected


def test_wishes_come_from_the_metadata() -> None:
    wishes = parse_wishes({"x-dry-work-epoch": "e1", "x-dry-work-offset": "7", "x-dry-work-offsets": "TRUE"})
    assert wishes.position is not None
    assert (wishes.position.epoch, wishes.position.offset, wishes.offsets, wishes.snapshot) == ("e1", 7, True, False)
    assert parse_wishes({"user-agent": "x"}).position is None


@pytest.mark.parametrize(
    ("symbols", "added"),
    [
        (["SPY"], [("stocks", "statuses", "SPY"), ("stocks", "lulds", "SPY")]),
        ([], [("stocks", "statuses", "*"), ("stocks", "lulds", "*")]),
        (["BTC/USD"], []),
    ],
)
def test_statuses_are_added_for_stocks_alone(symbols: list[str], added: list[tuple[str, str, str]]) -> None:
    bars = ask("StreamBars", symbols=symbols)
    assert not parse_wishes({"x-dry-work-items": "true"}).statuses
    assert parse_wishes({"x-dry-work-items": "true", "x-dry-work-statuses": "1"}).statuses
    found = add_statuses(add_watermarks(bars))
    assert list(found.topics) == [*add_watermarks(bars).topics, *added]
    assert list(found.held) == [*bars.held, *added]


def test_bars_may_be_those_of_options_too_and_statuses_are_those_of_stocks() -> None:
    wanted = ask("StreamBars", symbols=["SPY", OPTION])
    assert wanted.feed == "stocks"
    assert wanted.held == (("stocks", "bars", "SPY"), ("stocks", "bars", OPTION))
    added = set(add_statuses(wanted).held) - set(wanted.held)
    assert added == {("stocks", "statuses", "SPY"), ("stocks", "lulds", "SPY")}
    with pytest.raises(ConfigError, match="see StreamOptionQuotes"):
        ask("StreamTrades", symbols=[OPTION])
