"""Orders for a resampled data are, in a backtest, what they are in a run: placed at the market's time, matched with the
symbol's own bars."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backtrader as bt
import numpy as np
import pytest

from dry_work.backtest.run import BacktestSettings, load_recording, run_backtest
from dry_work.clock import MINUTE_NS
from dry_work.engine.agents import Agent, load_agent
from dry_work.engine.compare import backtest_session, compare_sessions
from dry_work.engine.replay import recorded_agent
from dry_work.engine.result import RunResult
from dry_work.exchange.synthetic import DAY_START_NS
from dry_work.feeds.recorded import Recording
from dry_work.recording.flight_log import open_flight
from dry_work.recording.session_trace import trace_session
from dry_work.settings import parse_moment, parse_timeframe
from tests.unit.engine.flights import fly, last_session, write_strategy

SYMBOLS = ("SPY", "IBM", "DIA")
FIVE = (parse_timeframe("5m"),)

EVERY_KIND = """\
import datetime as dt

import backtrader as bt


class Cross(bt.Strategy):
    def __init__(self):
        self.turn = 0

    def prenext(self):
        self.next()

    def next(self):
        self.turn += 1
        for number, data in enumerate(self.datas):
            if "@" not in data._name or not len(data) or (self.turn + number) % 3:
                continue
            price, size = data.close[0], self.getposition(data).size
            place, sign = (self.sell, -1) if size > 0 else (self.buy, 1)
            kind = (self.turn // 3 + number) % 6
            if kind in (0, 1):
                place(data=data, size=3)
            elif kind == 2:
                limit = round(price - sign * 0.2, 2)
                place(data=data, size=2, exectype=bt.Order.Limit, price=limit, valid=bt.Order.DAY)
            elif kind == 3:
                stop = round(price + sign * 0.2, 2)
                place(data=data, size=2, exectype=bt.Order.Stop, price=stop, valid=dt.timedelta(minutes=9))
            elif kind == 4:
                place(data=data, size=1, exectype=bt.Order.StopTrail, trailamount=0.3)
            else:
                self.buy(data=data, size=1, exectype=bt.Order.Limit)
"""


def write_bars(folder: Path, *, minutes: int = 130) -> tuple[str, ...]:
    """Write bars over the midnight of UTC: half of the minutes of two symbols are missing, none of the third."""
    rng = random.Random(1)
    paths = []
    for symbol in SYMBOLS:
        price, rows = 100.0, ["timestamp,symbol,open,high,low,close,volume"]
        for minute in range(minutes):
            if symbol != "DIA" and rng.random() < 0.5:
                continue
            opened, price = price, round(price + rng.uniform(-0.4, 0.4), 2)
            high, low = round(max(opened, price) + 0.1, 2), round(min(opened, price) - 0.1, 2)
            at = np.datetime64("2024-07-02T22:50") + np.timedelta64(minute, "m")
            rows.append(f"{at}:00Z,{symbol},{opened},{high},{low},{price},{rng.randint(1, 500)}")
        path = folder / f"{symbol}.csv"
        path.write_text("\n".join(rows) + "\n")
        paths.append(str(path))
    return tuple(paths)


@pytest.fixture(scope="module")
def flown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunResult]]:
    """A folder with a session, and what its run told."""
    folder = tmp_path_factory.mktemp("flown")
    with contextlib.chdir(folder):
        data = write_bars(folder)
        strategy = write_strategy(folder, EVERY_KIND)
        yield folder, fly(folder, strategy, symbols=SYMBOLS, data=data, resample=FIVE)


def test_a_session_equals_a_backtest_of_its_own_recording(flown: tuple[Path, RunResult]) -> None:
    with open_flight(last_session(flown[0])) as reader, recorded_agent(reader.facts) as (agent, _):
        trace = trace_session(reader)
        comparison = compare_sessions(trace, backtest_session(trace, agent))
    assert comparison.differences == ()
    assert comparison.same_orders == len(flown[1].orders) > 80
    assert comparison.values[0] == pytest.approx(comparison.values[1])


@pytest.mark.parametrize("engine", ["lean", "stock"])
def test_orders_and_fills_are_those_of_the_run(flown: tuple[Path, RunResult], engine: str) -> None:
    folder, live = flown
    settings = BacktestSettings(
        symbols=SYMBOLS,
        agent=f"{folder / 'strategy.py'}:Cross",
        params={},
        data=tuple(str(folder / f"{symbol}.csv") for symbol in SYMBOLS),
        resample=FIVE,
        engine=engine,
    )
    ours = run_backtest(settings, load_recording(settings), load_agent(settings.agent))
    assert without_names(ours.orders) == without_names(live.orders)
    assert without_names(ours.fills) == without_names(live.fills)
    assert {order["type"] for order in ours.orders} == {"market", "limit", "stop", "trailing_stop"}
    assert {"expired", "filled", "pending_new"} <= {order["status"] for order in ours.orders}
    between = [order for order in ours.orders if parse_moment(order["submitted_at"], name="") % (5 * MINUTE_NS)]
    assert len(between) > 40


def without_names(rows: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "client_order_id"} for row in rows]


# What a strategy sees ------------------------------------------------------------------------------------------------


def make_recording(**minutes: tuple[int, ...]) -> Recording:
    """Return bars of symbols that start in some minutes of a day; the price is 50 and the minute."""
    columns = {}
    for symbol, starts in minutes.items():
        prices = 50.0 + np.array(starts, dtype=np.float64)
        columns[symbol] = {
            "ts_event_ns": DAY_START_NS + np.array(starts, dtype=np.int64) * MINUTE_NS,
            "open": prices - 0.5,
            "high": prices + 1,
            "low": prices - 1,
            "close": prices,
            "volume": np.full(len(starts), 100.0),
        }
    return Recording(columns)


class Placer(bt.Strategy):
    """Places an order for the longer data of AAA in one turn, and notes what it is told."""

    params = (("seen", None), ("turn", 1), ("order", None), ("timer", False))

    def __init__(self) -> None:
        self.turn = 0
        if self.p.timer:
            self.add_timer(when=bt.Timer.SESSION_START, offset=dt.timedelta(minutes=813))

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        self.turn += 1
        if self.turn == self.p.turn and not self.p.timer:
            self.place()

    def notify_timer(self, timer: Any, when: Any, *args: Any, **kwargs: Any) -> None:
        self.place()

    def place(self) -> None:
        self.p.seen.append(self.look(self.buy(**{"data": self.getdatabyname("AAA@5m"), "size": 1, **self.p.order})))

    def notify_order(self, order: Any) -> None:
        self.p.seen.append(self.look(order))

    def look(self, order: Any) -> tuple[Any, ...]:
        created = order.created
        return (order.data._name, order.getstatusname(), minute_of(created.dt), created.price, order.executed.price)


def minute_of(time: float) -> int:
    at: dt.datetime = bt.num2date(time)
    return (at.hour - 13) * 60 + at.minute - 30


def place(recording: Recording, **params: Any) -> tuple[RunResult, list[Any]]:
    seen: list[Any] = []
    agent = Agent(spec="test", strategy=Placer, params={"seen": seen, "order": {}, **params}, source_digest="")
    settings = BacktestSettings(symbols=recording.symbols, agent="test", params={}, resample=FIVE)
    return run_backtest(settings, recording, agent), seen


def times_of(result: RunResult) -> tuple[list[int], list[int]]:
    """Return the minutes in which orders were placed and filled."""
    placed = [(parse_moment(order["submitted_at"], name="") - DAY_START_NS) // MINUTE_NS for order in result.orders]
    return placed, [(parse_moment(fill["time"], name="") - DAY_START_NS) // MINUTE_NS for fill in result.fills]


def test_a_market_order_waits_for_a_bar_after_the_turn_in_which_it_was_made() -> None:
    # The longer bar that ended at 5 is the newest one at 9, when AAA is silent: its bar of 8 is in the past by then.
    recording = make_recording(AAA=(1, 4, 7, 11, 12), BBB=tuple(range(14)))
    result, seen = place(recording, turn=9)
    assert times_of(result) == ([9], [12])
    assert result.fills[0]["price"] == 60.5
    assert seen == [
        ("AAA@5m", "Submitted", 5, 54.0, 0.0),
        *[("AAA@5m", "Submitted", 5, 54.0, 0.0), ("AAA@5m", "Accepted", 5, 54.0, 0.0)],
        ("AAA@5m", "Completed", 5, 54.0, 60.5),
    ]


def test_an_order_ends_with_the_bars_of_its_symbol() -> None:
    recording = make_recording(AAA=tuple(range(14)), BBB=tuple(range(14)))
    order = {"exectype": bt.Order.Limit, "price": 10.0, "valid": dt.timedelta(minutes=3)}
    result, seen = place(recording, turn=6, order=order)
    assert [(status, at) for _, status, at, *_ in seen][-1] == ("Expired", 5)
    assert result.orders[0]["status"] == "expired"


def test_an_order_of_the_last_turn_is_listed() -> None:
    # The open longer bar, which would end at 10, is delivered after the last minute.
    result, _ = place(make_recording(AAA=(1, 4, 6)), turn=4)
    assert times_of(result) == ([7], [])
    assert result.orders[0]["status"] == "pending_new"


def test_an_order_of_a_timer_is_placed_at_the_time_of_its_slice() -> None:
    result, _ = place(make_recording(AAA=(1, 4, 11), BBB=tuple(range(14))), timer=True)
    assert times_of(result) == ([3], [5])
