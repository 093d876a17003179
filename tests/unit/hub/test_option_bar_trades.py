"""Trades of options that must not spoil the bars: with a wrong time, or without a price."""

from __future__ import annotations

import pytest

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.hub.option_bars import OptionBars
from tests.unit.hub.test_option_bars import CALL, START_NS, trade

LATE_NS = 900 * SECOND_NS


@pytest.mark.parametrize("ahead_s", [1_000, 2_000_000])
def test_a_trade_with_a_time_of_the_future_does_not_close_the_bars_of_a_feed_that_is_late(ahead_s: int) -> None:
    bars = OptionBars()
    bars.follow([CALL], 0)
    bars.add(trade(10, 2.0), now_ns=START_NS + 10 * SECOND_NS + LATE_NS)
    bars.add(trade(11 + ahead_s, 9.0), now_ns=START_NS + 11 * SECOND_NS + LATE_NS)
    assert bars.lag_ns == LATE_NS
    bars.add(trade(50, 3.0), now_ns=START_NS + 50 * SECOND_NS + LATE_NS)
    (bar,) = bars.close(START_NS + MINUTE_NS)
    assert (bar.open, bar.close) == (2.0, 3.0)


def test_trades_that_are_ahead_of_a_slow_clock_tell_of_no_lag() -> None:
    bars = OptionBars()
    bars.follow([CALL], 0)
    bars.add(trade(10, 2.0), now_ns=START_NS + 7 * SECOND_NS)
    assert bars.lag_ns == 0
    assert bars.counts["trades"] == 1


def test_a_trade_without_a_price_is_in_no_bar() -> None:
    bars = OptionBars()
    bars.follow([CALL], 0)
    for price in (0, 0.0, 0.01):
        bars.add(trade(10, price), now_ns=START_NS + 10 * SECOND_NS)
    (bar,) = bars.close(START_NS + MINUTE_NS)
    assert (bar.low, bar.volume) == (0.01, 1)
    assert bars.counts["malformed_trades"] == 2
