"""Minute bars of option trades."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.hub.option_bars import AHEAD, OptionBars

CALL, PUT = "SPY240621C00550000", "SPY240621P00550000"
START_NS = 1_718_112_600 * SECOND_NS


def trade(second: float, price: float, size: float = 1, *, symbol: str = CALL, condition: str = "a") -> dict[str, Any]:
    stamp = msgpack.Timestamp.from_unix_nano(START_NS + int(second * SECOND_NS))
    return {"T": "t", "S": symbol, "t": stamp, "p": price, "s": size, "x": "C", "c": condition}


def make(*trades: dict[str, Any], follow: tuple[str, ...] = (CALL, PUT), since_ns: int = 0) -> OptionBars:
    bars = OptionBars()
    bars.follow(follow, since_ns)
    for item in trades:
        bars.add(item, now_ns=START_NS + 30 * SECOND_NS)
    return bars


def test_a_bar_has_the_trades_of_its_minute_and_is_closed_at_its_end() -> None:
    bars = make(trade(0, 2.0, 3), trade(20, 2.5), trade(40, 1.5), trade(59.999, 1.8, 5), trade(60, 9.0))
    assert bars.next_end_ns() == START_NS + MINUTE_NS
    assert bars.close(START_NS + MINUTE_NS - 1) == []
    (bar,) = bars.close(START_NS + MINUTE_NS)
    assert (bar.symbol, bar.ts_event_ns, bar.length_ns) == (CALL, START_NS, MINUTE_NS)
    assert (bar.open, bar.high, bar.low, bar.close) == (2.0, 2.5, 1.5, 1.8)
    assert (bar.volume, bar.trade_count) == (10.0, 4.0)
    assert bar.vwap == pytest.approx((2.0 * 3 + 2.5 + 1.5 + 1.8 * 5) / 10)
    assert bar.ts_recv_ns == START_NS + 30 * SECOND_NS
    assert [bar.open for bar in bars.close(START_NS + 2 * MINUTE_NS)] == [9.0]
    assert bars.close(START_NS + 9 * MINUTE_NS) == [], "a minute without a trade has no bar"
    assert bars.next_end_ns() is None


def test_bars_come_by_their_end_and_the_order_of_symbols() -> None:
    bars = make(trade(61, 1), trade(2, 2, symbol=PUT), trade(1, 3), trade(62, 4, symbol=PUT))
    found = bars.close(START_NS + 2 * MINUTE_NS)
    assert [(bar.symbol, bar.close) for bar in found] == [(CALL, 3), (PUT, 2), (CALL, 1), (PUT, 4)]


def test_a_trade_of_a_closed_bar_is_left_out_and_counted() -> None:
    bars = make(trade(1, 1))
    assert len(bars.close(START_NS + MINUTE_NS)) == 1
    bars.add(trade(59, 7), now_ns=START_NS + 61 * SECOND_NS)
    assert bars.close(START_NS + 2 * MINUTE_NS) == []
    assert (bars.counts["late_trades"], bars.counts["trades"]) == (1, 1)


def test_reports_that_take_back_are_left_out_and_those_out_of_sequence_are_neither_open_nor_close() -> None:
    out = [trade(1, 9, condition="B"), trade(50, 0.5, 2, condition="F")]
    taken_back = [trade(30, 99, condition=code) for code in "ACEG"]
    bars = make(out[0], trade(10, 2), *taken_back, trade(20, 3), out[1])
    (bar,) = bars.close(START_NS + MINUTE_NS)
    assert (bar.open, bar.high, bar.low, bar.close, bar.volume) == (2, 9, 0.5, 3, 5)
    assert bars.counts["taken_back"] == 4
    (alone,) = make(*out).close(START_NS + MINUTE_NS)
    assert (alone.open, alone.close) == (9, 0.5), "nothing else is there"


def test_a_minute_that_was_not_listened_to_as_a_whole_has_no_bar() -> None:
    bars = make(trade(30, 1), trade(70, 2), since_ns=START_NS + 10 * SECOND_NS)
    assert [bar.close for bar in bars.close(START_NS + 2 * MINUTE_NS)] == [2]
    assert bars.counts["incomplete_minutes"] == 1
    bars.add(trade(130, 3), now_ns=START_NS)
    bars.interrupt()
    bars.follow([CALL], START_NS + 140 * SECOND_NS)
    bars.add(trade(150, 4), now_ns=START_NS)
    assert bars.close(START_NS + 3 * MINUTE_NS) == []
    assert bars.counts["incomplete_minutes"] == 3


def test_of_a_feed_that_is_late_the_minutes_count_from_where_it_was() -> None:
    late_ns = 900 * SECOND_NS
    bars = OptionBars()
    bars.follow([CALL], START_NS + late_ns)
    for second, price in ((-1, 9), (1, 2), (59, 3)):
        bars.add(trade(second, price), now_ns=START_NS + second * SECOND_NS + late_ns + SECOND_NS // 2)
    assert bars.lag_ns == late_ns + SECOND_NS // 2
    bars.add(trade(60, 4), now_ns=START_NS + 60 * SECOND_NS + late_ns)
    assert bars.lag_ns == late_ns
    assert [(bar.open, bar.close) for bar in bars.close(START_NS + MINUTE_NS)] == [(2, 3)]
    assert bars.counts["incomplete_minutes"] == 1
    bars.interrupt()
    assert bars.lag_ns == 0


def test_what_nobody_follows_makes_no_bar_and_following_again_loses_nothing() -> None:
    bars = make(trade(1, 1), trade(2, 2, symbol=PUT), follow=(CALL,))
    bars.follow([CALL, PUT], START_NS + 5 * SECOND_NS)
    bars.add(trade(6, 3), now_ns=START_NS)
    bars.add(trade(7, 4, symbol=PUT), now_ns=START_NS)
    assert [(bar.symbol, bar.open) for bar in bars.close(START_NS + MINUTE_NS)] == [(CALL, 1)]
    bars.add(trade(61, 5), now_ns=START_NS)
    bars.follow([PUT], 0)
    assert bars.close(START_NS + 2 * MINUTE_NS) == []
    assert list(bars.symbols) == [PUT]


@pytest.mark.parametrize(
    "change",
    [{"p": -1}, {"p": "2"}, {"p": float("nan")}, {"p": None}, {"s": True}, {"s": float("inf")}, {"t": "soon"},
     {"t": None}, {"S": "SPY"}, {"S": 7}, {"t": msgpack.Timestamp.from_unix_nano(START_NS + 9 * MINUTE_NS)}],
)  # fmt: skip
def test_a_malformed_trade_is_counted_and_changes_nothing(change: dict[str, Any]) -> None:
    bars = make(trade(1, 1), trade(2, 5) | change)
    assert bars.counts["malformed_trades"] == 1
    assert [bar.close for bar in bars.close(START_NS + MINUTE_NS)] == [1]


def test_what_is_open_is_bounded() -> None:
    bars = OptionBars()
    bars.follow([CALL], 0)
    for minute in range(50):
        bars.add(trade(60 * minute, 1), now_ns=START_NS + 60 * MINUTE_NS)
    assert len(bars.close(START_NS + 99 * MINUTE_NS)) == AHEAD
    assert bars.counts["malformed_trades"] == 50 - AHEAD


@given(
    st.lists(
        st.tuples(st.integers(0, 179), st.floats(0.01, 500), st.integers(1, 50), st.sampled_from([CALL, PUT])),
        max_size=40,
    )
)
def test_every_trade_in_time_is_in_one_bar(rows: list[tuple[int, float, int, str]]) -> None:
    bars = make(*(trade(second, price, size, symbol=symbol) for second, price, size, symbol in sorted(rows)))
    found = [bar for minute in (1, 2, 3) for bar in bars.close(START_NS + minute * MINUTE_NS)]
    assert sum(bar.volume for bar in found) == sum(size for _, _, size, _ in rows)
    assert len({(bar.symbol, bar.ts_event_ns) for bar in found}) == len(found)
    for bar in found:
        assert bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high
        assert bar.vwap is not None
        assert bar.low - 1e-5 <= bar.vwap <= bar.high + 1e-5
