"""Rule set `alpaca`: random partial fills, the night, assets with restrictions; faults that outlive a restart."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dry_work.errors import ConfigError
from dry_work.exchange.account import AccountSettings
from dry_work.exchange.assets import parse_assets
from dry_work.exchange.chance import PartialFills, is_night
from dry_work.exchange.fault_hooks import EventFaults
from dry_work.exchange.faults import Fault, FaultPlan, parse_faults
from dry_work.exchange.server import ExchangeServer
from dry_work.orders.model import Side, TimeInForce, TradeEvent

from .conftest import Client
from .test_alpaca_rules import CALENDAR, at
from .venue_desk import KEY, Desk

D = Decimal
Run = Callable[..., ExchangeServer]
Connect = Callable[..., Client]


def open_desk(time: str = "2024-06-11 10:00", **options: Any) -> Desk:
    desk = Desk(
        "alpaca", cash="1000000", now_ns=at(time) - 60 * 10**9, is_open=CALENDAR.is_open,
        session_close_ns=CALENDAR.session_close_ns, **options,
    )  # fmt: skip
    desk.move(at(time), SPY=100.0, IBM=100.0, BTC=1000.0)
    return desk


# Partial fills


def play(seed: int, rate: float = 0.5) -> list[tuple[str, Decimal | None]]:
    desk = open_desk(partial_fills=PartialFills(rate, seed))
    for _ in range(30):
        desk.buy("10", day=True)
    desk.news()
    return [(event.event, event.qty) for _ in range(3) for event in desk.step(SPY=100.0)]


def test_some_orders_get_a_part_first_and_the_rest_at_the_next_bar() -> None:
    events = play(1)
    parts = [qty for event, qty in events if event == "partial_fill"]
    assert 5 < len(parts) < 25
    assert all(qty is not None and 0 < qty < 10 and qty == int(qty) for qty in parts)
    assert len([event for event, _ in events if event == "fill"]) == 30
    assert sum(qty for _, qty in events if qty is not None) == 300
    assert [event for event, _ in events[:30]].count("partial_fill") == len(parts)


def test_the_seed_decides_which_orders() -> None:
    assert play(1) == play(1)
    assert play(1) != play(2)
    assert {event for event, _ in play(1, rate=0.0)} == {"fill"}
    assert len([1 for event, _ in play(1, rate=1.0) if event == "partial_fill"]) == 30


def test_single_shares_and_whole_orders_are_not_cut() -> None:
    desk = open_desk(partial_fills=PartialFills(1.0))
    desk.buy("1", day=True)
    desk.buy("10", time_in_force=TimeInForce.FOK)
    desk.buy("0.5", "BTC/USD")
    desk.news()
    told = [(event.order.symbol, event.event) for event in desk.step(SPY=100.0, BTC=1000.0)]
    assert told[0] == ("SPY", "fill")
    assert told[-1] == ("BTC/USD", "partial_fill")
    assert "partial_fill" not in [event for symbol, event in told if symbol == "SPY"]


# The night


@pytest.mark.parametrize(
    ("time", "expected"),
    [("19:59", False), ("20:00", True), ("23:59", True), ("00:00", True), ("03:59", True), ("04:00", False)],
)
def test_the_night_is_from_eight_to_four_in_new_york(time: str, expected: bool) -> None:
    assert is_night(at(f"2024-06-11 {time}")) is expected


@pytest.mark.parametrize(
    ("listed", "switched_off", "filled"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_only_assets_of_the_night_trade_in_it(listed: bool, switched_off: bool, filled: bool) -> None:
    rows = [{"symbol": "SPY", "attributes": ["overnight_tradable"]}] if listed else []
    desk = open_desk("2024-06-11 21:00", traits=parse_assets(rows))
    desk.venue.change_settings(KEY, AccountSettings(disable_overnight_trading=switched_off))
    desk.buy("1", limit="100", day=True, extended_hours=True)
    desk.news()
    assert [event.event for event in desk.step(SPY=99.0)] == (["fill"] if filled else [])
    morning = desk.move(at("2024-06-12 04:01"), SPY=99.0)
    assert [event.event for event in morning] == ([] if filled else ["fill"])


# Assets


ROWS = [
    {"symbol": "SPY", "shortable": False, "fractionable": False},
    {"symbol": "IBM", "easy_to_borrow": False},
    {"symbol": "BTC/USD", "tradable": False},
]


@pytest.mark.parametrize(
    ("side", "qty", "symbol", "fields", "refusal"),
    [
        (Side.SELL, "1", "SPY", {}, (422, 42210000, 'asset "SPY" cannot be sold short')),
        (Side.BUY, "1.5", "SPY", {"day": True}, (403, 40310000, 'asset "SPY" is not fractionable')),
        (Side.BUY, None, "SPY", {"day": True, "notional": D(50)}, (403, 40310000, 'asset "SPY" is not fractionable')),
        (Side.SELL, "1", "IBM", {},
         (422, 42210000, 'only day orders are allowed for hard-to-borrow asset "IBM"')),
        (Side.BUY, "1", "BTC/USD", {}, (422, 42210000, 'asset "BTC/USD" is not tradable')),
    ],
)  # fmt: skip
def test_what_an_asset_does_not_allow_is_refused(
    side: Side, qty: str | None, symbol: str, fields: dict[str, Any], refusal: tuple[int, int, str]
) -> None:
    desk = open_desk(traits=parse_assets(ROWS))
    error = desk.refused(side, qty, symbol, **fields)
    assert (error.http_status, error.code, error.message) == refusal


def test_what_an_asset_allows_is_taken() -> None:
    desk = open_desk(traits=parse_assets(ROWS))
    desk.sell("1", "IBM", day=True)
    desk.buy("2", "SPY")
    desk.step(SPY=100.0, IBM=100.0)
    assert (desk.qty("IBM"), desk.qty("SPY")) == (-1, 2)
    desk.sell("2", "SPY")
    desk.step(SPY=100.0)
    assert desk.qty("SPY") == 0
    inactive = open_desk(traits=parse_assets([{"symbol": "SPY", "status": "inactive"}]))
    assert inactive.refused(Side.BUY, "1").message == 'asset "SPY" is not active'


# Faults


def test_a_plan_goes_on_where_it_stood() -> None:
    faults = parse_faults(
        [
            {"on": "http", "kind": "status", "skip": 2, "times": 2},
            {"on": "http", "kind": "latency", "rate": 0.5, "seed": 3, "times": None},
        ]
    )
    whole, first, second = FaultPlan(faults), FaultPlan(faults), FaultPlan()
    told = [[fault.kind for fault in whole.take("http")] for _ in range(40)]
    begun = [[fault.kind for fault in first.take("http")] for _ in range(3)]
    second.load(first.dump())
    assert begun + [[fault.kind for fault in second.take("http")] for _ in range(37)] == told
    assert second.describe() == whole.describe()
    assert second.add(Fault(on="clock", kind="skew")) == "f3"


async def test_faults_outlive_a_restart_with_a_state_directory(
    run_exchange: Run, connect: Connect, tmp_path: Path
) -> None:
    server = run_exchange(state_dir=tmp_path)
    client = connect(server)
    path = "/dry-work/v1/faults"
    fault = {"on": "http", "kind": "status", "status": 500, "times": 3, "path": "/v2/clock"}
    await client.call("POST", path, fault)
    assert (await client.call("GET", "/v2/clock"))[0] == 500
    server.stop()
    again = connect(run_exchange(state_dir=tmp_path, faults=[Fault(on="http", kind="drop")]))
    (row,) = (await again.call("GET", path))[1]
    assert (row["id"], row["kind"], row["struck"]) == ("f1", "status", 1)
    assert [(await again.call("GET", "/v2/clock"))[0] for _ in range(3)] == [500, 500, 200]


def test_kept_faults_that_cannot_be_read_are_named(tmp_path: Path, run_exchange: Run) -> None:
    run_exchange(state_dir=tmp_path).stop()
    (tmp_path / "faults.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"faults\.json: no faults: .* remove the file to begin without faults"):
        run_exchange(state_dir=tmp_path)
    (tmp_path / "faults.json").unlink()
    run_exchange(state_dir=tmp_path)


def test_a_skewed_clock_stamps_events_ahead() -> None:
    desk = open_desk()
    desk.buy("1")
    event: TradeEvent = desk.events[0]
    plain, ahead = (
        EventFaults(FaultPlan(parse_faults({"on": "clock", "kind": "skew", "seconds": seconds}))).tell(KEY, event)[0]
        for seconds in (0, 90)
    )
    assert (plain["timestamp"], ahead["timestamp"], ahead["at"]) == (
        "2024-06-11T14:00:00Z",
        "2024-06-11T14:01:30Z",
        "2024-06-11T14:01:30Z",
    )
