"""What is written down of a run, and what makes two runs different."""

from __future__ import annotations

import math
import random
from array import array
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd
import pytest

from dry_work.backtest.records import Records, record, recorded
from dry_work.backtest.verify import VerifyReport, compare, verify


def bars(count: int = 40) -> pd.DataFrame:
    close = 100 + np.round(np.sin(np.arange(count) / 3), 2)
    frame = pd.DataFrame({"open": close - 0.1, "high": close + 0.2, "low": close - 0.3, "close": close, "volume": 10.0})
    return frame.set_index(pd.date_range("2021-03-01 14:31", periods=count, freq="1min"))


class Simple(bt.Strategy):
    params = (("size", 1),)

    def __init__(self) -> None:
        self.average = bt.ind.SMA(period=4)

    def next(self) -> None:
        if len(self) % 10 == 5:
            self.buy(size=self.p.size)
        elif len(self) % 10 == 9:
            self.close()


def building(strategy: type[Any] = Simple, count: int = 40, **params: Any) -> Any:
    def build(engine: type[Any]) -> Any:
        cerebro = engine(stdstats=False)
        cerebro.adddata(bt.feeds.PandasData(dataname=bars(count), timeframe=bt.TimeFrame.Minutes), name="XYZ")
        cerebro.addstrategy(strategy, **params)
        return cerebro

    return build


def calls_of(records: Records) -> list[Any]:
    return [call for block in records.sections["calls"].kept.values() for call in block]


def test_every_call_is_written_down_in_order() -> None:
    names = [call[0] for call in calls_of(record(building(), bt.Cerebro, keep="all"))]
    assert names[:5] == ["start", "notify_cashvalue", "notify_fund", "prenext", "notify_cashvalue"]
    assert names[-1] == "stop"
    # A default nextstart calls next, so that call is there as well.
    first = names.index("nextstart")
    assert names[first : first + 2] == ["nextstart", "next"]
    assert [names.count(name) for name in ("prenext", "nextstart", "next")] == [3, 1, 37]
    assert names.count("notify_order") == 3 * 8  # submitted, accepted, completed
    assert names.count("notify_trade") == 8


def test_a_bar_call_holds_prices_positions_cash_value_and_indicators() -> None:
    calls = calls_of(record(building(), bt.Cerebro, keep="all"))
    name, strategy, length, time, (cash, value, datas, positions, indicators) = calls[-2]
    assert (name, strategy, length) == ("next", 0, 40)
    frame = bars()
    assert bt.num2date(time) == frame.index[-1]
    last = frame.iloc[-1]
    assert datas[0][:6] == [40, last.close, last.low, last.high, last.open, 10.0]
    assert positions == [(0, 0.0)]
    assert indicators == [[40, math.fsum(frame.close[-4:]) / 4]]
    assert cash == value


def test_orders_are_written_down_with_their_fills() -> None:
    calls = calls_of(record(building(size=3), bt.Cerebro, keep="all"))
    orders = [call[4] for call in calls if call[0] == "notify_order"]
    assert [order["status"] for order in orders[:3]] == [bt.Order.Submitted, bt.Order.Accepted, bt.Order.Completed]
    assert [order["ref"] for order in orders[:4]] == [1, 1, 1, 2]
    done = orders[2]
    assert (done["data"], done["size"], done["exectype"]) == ("XYZ#0", 3, bt.Order.Market)
    [bit] = done["executed"]["bits"]
    assert (bit["size"], bit["price"], bit["opened"]) == (3, bars().open.iloc[5], 3)


def test_watching_changes_nothing() -> None:
    watched = record(building(), bt.Cerebro)
    plain = record(building(), bt.Cerebro, watched=False)
    assert compare(plain, watched, calls=False) is None
    assert "calls" not in plain.sections


def test_the_numbers_of_orders_begin_anew_and_the_process_goes_on_with_its_own() -> None:
    class LooksAtNumbers(Simple):
        def notify_order(self, order: Any) -> None:
            if order.ref % 2 and order.status == order.Accepted:
                self.sell(size=order.ref)

    before = next(bt.Order.refbasis)
    assert verify(building(LooksAtNumbers), (bt.Cerebro, bt.Cerebro)).identical
    assert next(bt.Order.refbasis) == before + 1


def test_counts_say_what_was_compared() -> None:
    report = verify(building(), (bt.Cerebro, bt.Cerebro))
    assert report.identical
    assert dict(report.counts) == {
        "bars": 40, "calls": 155, "orders": 8, "fills": 8, "trades": 4, "cash_values": 40, "analyzers": 0,
        "analyzer_values": 0, "indicator_values": 120, "observer_values": 0, "data_values": 320,
    }  # fmt: skip
    assert str(report).startswith(
        "identical with Cerebro and Cerebro: 40 bars, 155 calls, 8 orders, 8 fills, 4 trades, "
    )


def test_a_fall_back_is_said() -> None:
    class Shy(bt.Cerebro):
        fallback = "it is Monday"

    report = verify(building(), (Shy, bt.Cerebro))
    assert report.fallback == "it is Monday"
    assert str(report).endswith("; Shy fell back: it is Monday")


def test_the_first_difference_is_named_with_its_call_time_and_both_values() -> None:
    class Rich(bt.Cerebro):
        def run(self, **params: Any) -> Any:
            self.broker.setcommission(0.001)
            return super().run(**params)

    difference = verify(building(), (Rich, bt.Cerebro)).difference
    assert difference is not None
    assert difference.place == "call 17, notify_order of Simple at 2021-03-01 14:36:00 (bar 6)"
    assert (difference.field, difference.values[1]) == ("executed.bits.0.openedcomm", "0.0")
    assert difference.engines == ("Rich", "Cerebro")
    values = f"{difference.values[0]} with Rich and 0.0 with Cerebro"
    assert str(difference) == f"{difference.place}: {difference.field} is {values}"


def test_a_call_that_one_run_lacks_is_named() -> None:
    short = record(building(count=39), bt.Cerebro, keep="all")
    long = record(building(count=40), bt.Cerebro, keep="all")
    difference = compare(short, long)
    assert difference is not None
    assert (difference.field, difference.values[0]) == ("the call", "stop of Simple at 2021-03-01 15:09:00 (bar 39)")
    assert difference.values[1] == "notify_order of Simple at 2021-03-01 15:10:00 (bar 40)"


def test_blocks_that_were_not_kept_are_fetched_by_running_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.backtest.records.BLOCK_RECORDS", 64)

    class Late(Simple):
        def next(self) -> None:
            super().next()
            if len(self) == 150 and type(self.cerebro) is not bt.Cerebro:
                self.buy(size=2)

    class Other(bt.Cerebro):
        pass

    first, second = (record(building(Late, 200), engine) for engine in (Other, bt.Cerebro))
    assert len(first.sections["calls"].digests) > 10
    assert not first.sections["calls"].kept
    coarse = compare(first, second)
    assert coarse is not None
    assert coarse.place == f"calls, from record {coarse.block * 64} on"
    exact = verify(building(Late, 200), (Other, bt.Cerebro)).difference
    assert exact is not None
    assert "notify_order of Late at 2021-03-01 17:01:00 (bar 151)" in str(exact)


def test_a_strategy_that_does_not_repeat_itself_is_told_from_a_wrong_engine() -> None:
    class Moody(Simple):
        def next(self) -> None:
            if len(self) == 20:
                self.buy(size=random.random())

    report = verify(building(Moody), (bt.Cerebro, bt.Cerebro))
    assert not report.identical
    assert "the strategy cannot be compared, since it does not give the same result twice" in str(report)


def test_what_user_code_raises_is_part_of_the_report() -> None:
    class Fails(Simple):
        def next(self) -> None:
            if len(self) == 20:
                raise ValueError(f"no {object()}")

    report = verify(building(Fails), (bt.Cerebro, bt.Cerebro))
    assert report.identical
    assert report.raised == "ValueError: no <object object at 0x>"


def test_an_interruption_is_not_swallowed() -> None:
    class Interrupted(Simple):
        def next(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(building(Interrupted), bt.Cerebro)


@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        ([1.0, math.nan], [1.0, -math.nan], True),
        ([1.0, 0.0], [1.0, -0.0], False),
        ([0.1 + 0.2], [0.3], False),
        ([1.0], [1.0, 2.0], False),
        ([math.inf], [math.inf], True),
    ],
)
def test_values_of_lines_are_compared_bit_by_bit_and_nan_equals_nan(ours: Any, theirs: Any, equal: bool) -> None:
    sides = []
    for values in (ours, theirs):
        records = Records("one", "all")
        records.section("line").append_values(array("d", values))
        sides.append(records)
    assert (compare(*sides) is None) is equal


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ({"a": 1}, {"a": 1.0}, "a is 1 with one and 1.0 with two"),
        ({"a": 1.0}, {"a": np.float64(1.0)}, "a is 1.0 with one and np.float64(1.0) with two"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b.1 is 2 with one and 3 with two"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "its key is (('a',), 1) with one and (('b',), 2) with two"),
        ({"a": 1}, {}, "a is 1 with one and"),
        ({"a": True}, {"a": 1}, "a is True with one and 1 with two"),
    ],
)
def test_nested_values_are_named_by_their_path(ours: Any, theirs: Any, sentence: str) -> None:
    first, second = Records("one", "all"), Records("two", "all")
    first.add_leaves("analysis", ours)
    second.add_leaves("analysis", theirs)
    difference = compare(first, second)
    assert difference is not None
    if "with two" in sentence:
        assert sentence in str(difference)
    else:
        assert "analysis" in difference.place


def test_a_section_that_one_run_lacks_is_a_difference() -> None:
    first, second = Records("one"), Records("two")
    first.add_leaves("analysis", {"a": 1})
    difference = compare(first, second)
    assert difference is not None
    assert difference.values == ("1 records", "(nothing)")


def test_signal_strategies_keep_their_own_next() -> None:
    class Custom(bt.SignalStrategy):
        def __init__(self) -> None:
            self.signal_add(bt.SIGNAL_LONG, bt.ind.SMA(period=3) - bt.ind.SMA(period=6))
            self.seen = 0

        def next(self) -> None:
            self.seen += 1

    records = record(building(Custom), bt.Cerebro, keep="all")
    names = [call[0] for call in calls_of(records)]
    assert names.count("next") == 35  # of 40 bars, the first five warm up
    assert records.counts["fills"] > 0
    assert recorded(Custom) is recorded(Custom)
    assert recorded(Custom).__name__ == "Custom"


def test_a_report_of_a_difference_says_so_first() -> None:
    class Rich(bt.Cerebro):
        def run(self, **params: Any) -> Any:
            self.broker.setcash(1.0)
            return super().run(**params)

    report = verify(building(), (Rich, bt.Cerebro))
    assert isinstance(report, VerifyReport)
    assert str(report).startswith("not identical: call 0, start of Simple before the first bar: cash is 1.0 with Rich")
