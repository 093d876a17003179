import ast
import importlib
import math
import os
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import backtrader as bt
import numpy as np
import pandas as pd
import pytest

import agents
from agents import LimitBounce, SentimentTilt, SmaCross
from agents.limit_bounce import round_price
from dry_work.clock import MINUTE_NS
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.recorded import Recording, read_bars

SYMBOLS = ["SPY", "IBM", "BAC", "AIG", "BTC/USD", "ETH/USD"]
AGENTS = [SmaCross, LimitBounce, SentimentTilt]
CASH = 100_000.0
DATA_DIR = Path(os.environ.get("DRY_WORK_DATA_DIR") or Path(__file__).parents[4] / "shared" / "data")
FOLDER = Path(agents.__file__).parent

needs_recordings = pytest.mark.skipif(
    not DATA_DIR.is_dir(), reason=f"no recordings at {DATA_DIR}; set DRY_WORK_DATA_DIR to their folder"
)


class ScoredData(bt.feeds.PandasData):
    lines = ("sentiment_score",)
    params = (("sentiment_score", -1),)


def build_feed(recording: Recording, symbol: str, *, scored: bool = True) -> bt.feeds.PandasData:
    """The bars of a symbol in a stock feed, stamped at their end."""
    columns = recording.columns(symbol)
    names = [name for name in columns if name not in ("ts_event_ns", "trade_count", "vwap")]
    ends = pd.to_datetime(columns["ts_event_ns"] + recording.length_ns)
    table = pd.DataFrame({name: columns[name] for name in names}, index=ends)
    kind = ScoredData if scored and "sentiment_score" in names else bt.feeds.PandasData
    return kind(dataname=table, timeframe=bt.TimeFrame.Minutes)


def watched(agent: type) -> type:
    """The agent with a record of what it does; it checks after each bar that no data has two open orders."""

    class Watched(agent):
        def __init__(self):
            super().__init__()
            self.made = []  # order at its submission, cash and close of its data at that moment
            self.changes = []
            self.calls = 0

        def next(self):
            known = len(self.broker.orders)
            super().next()
            self.calls += 1
            for order in list(self.broker.orders)[known:]:
                self.made.append((order, self.broker.getcash(), order.data.close[0], len(order.data)))
            open_orders = Counter(id(order.data) for order in self.broker.orders if order.alive())
            assert all(number == 1 for number in open_orders.values())

        def notify_order(self, order):
            time = bt.num2date(order.executed.dt) if order.status == order.Completed else None
            fact = (order.getstatusname(), order.data._name, order.executed.size, order.executed.price, time)
            self.changes.append(fact)
            super().notify_order(order)

    return Watched


class SlowBroker(bt.brokers.BackBroker):
    """Looks at its orders every 45th time only, so that they stay open for long."""

    turns = 0

    def next(self):
        self.turns += 1
        if self.turns % 45 == 0:
            super().next()


def run(agent: type, feeds: dict, *, runonce: bool = True, cash: float = CASH, broker=None, **params):
    cerebro = bt.Cerebro(stdstats=False, runonce=runonce, preload=runonce)
    cerebro.broker = broker or bt.brokers.BackBroker()
    cerebro.broker.setcash(cash)
    for name, feed in feeds.items():
        cerebro.adddata(feed, name=name)
    cerebro.addstrategy(watched(agent), **params)
    (strategy,) = cerebro.run()
    return strategy


def run_recording(agent: type, recording: Recording, **options):
    return run(agent, {symbol: build_feed(recording, symbol) for symbol in recording.symbols}, **options)


def fills(strategy) -> list[tuple]:
    return [change[1:] for change in strategy.changes if change[0] == "Completed"]


def decimals(number: float) -> int:
    return max(0, -Decimal(repr(float(number))).normalize().as_tuple().exponent)


def check_rounding(strategy) -> None:
    for order, _, _, _ in strategy.made:
        places = 6 if "/" in order.data._name else 0
        assert decimals(order.created.size) <= places
        assert order.created.size != 0
        if order.exectype == order.Limit:
            assert decimals(order.created.price) <= (2 if order.created.price >= 1 else 4)
            assert order.created.price > 0


@pytest.fixture(scope="module")
def day() -> Recording:
    return synthetic_day(SYMBOLS)


# All of them


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_trades_the_synthetic_day(agent, day):
    strategy = run_recording(agent, day)
    bought = {name for name, size, *_ in fills(strategy) if size > 0}
    sold = {name for name, size, *_ in fills(strategy) if size < 0}
    assert len(bought) >= 4
    assert len(sold) >= 4
    assert any("/" in name for name in bought)
    assert {change[0] for change in strategy.changes} <= {"Submitted", "Accepted", "Completed", "Canceled"}
    check_rounding(strategy)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_never_goes_short(agent, day):
    held = Counter()
    for name, size, _, _ in fills(run_recording(agent, day)):
        held[name] += size
        assert held[name] >= -1e-9


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_does_the_same_in_every_run_and_in_both_modes_of_backtrader(agent, day):
    first, again = run_recording(agent, day), run_recording(agent, day)
    bar_by_bar = run_recording(agent, day, runonce=False)
    assert first.changes == again.changes == bar_by_bar.changes
    assert first.changes


def ending(recording: Recording, symbol: str, bars: int) -> Recording:
    """The last bars of one symbol."""
    return Recording({symbol: {name: column[-bars:] for name, column in recording.columns(symbol).items()}})


@pytest.mark.parametrize("agent", AGENTS)
def test_a_silent_symbol_does_not_stop_the_others(agent, day):
    late = ending(day, "AIG", 5)
    for runonce in (True, False):
        feeds = {"SPY": build_feed(day, "SPY"), "AIG": build_feed(late, "AIG"), "BAC": build_feed(day, "BAC")}
        strategy = run(agent, feeds, runonce=runonce)
        before = pd.Timestamp(day.slice_ends()[-10]).to_pydatetime()
        assert {name for name, _, _, time in fills(strategy) if time < before} == {"SPY", "BAC"}


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_waits_while_its_order_is_open(agent, day):
    quick = {"fast_period": 2, "slow_period": 5} if agent is SmaCross else {}  # crosses several times in 45 bars
    strategy = run_recording(agent, day, broker=SlowBroker(), **quick)
    assert fills(strategy)  # and `Watched` has looked at the open orders of every data after each bar


def told(agent: type, cash: float) -> type:
    """The agent, told that the broker has so much cash."""

    class Told(agent):
        def next(self):
            self.broker.getcash = lambda: cash
            try:
                super().next()
            finally:
                del self.broker.getcash

    return Told


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("cash", [0.0, 0.001, -1000.0])
def test_without_cash_nothing_is_ordered(agent, day, cash):
    strategy = run_recording(told(agent, cash), day)
    assert strategy.calls > 300
    assert not strategy.made


@pytest.mark.parametrize("agent", AGENTS)
def test_other_calls_of_next_for_the_same_bar_change_nothing(agent, day):
    class Twice(agent):
        def next(self):
            super().next()
            super().next()

    assert run_recording(Twice, day).changes == run_recording(agent, day).changes


@pytest.mark.parametrize("agent", AGENTS)
def test_a_refused_order_is_forgotten(agent, day):
    # The broker has less cash than the agent is told, so that every purchase ends with Margin.
    strategy = run_recording(told(agent, 1e9), day, cash=100.0)
    refused = Counter(name for status, name, *_ in strategy.changes if status == "Margin")
    assert max(refused.values()) > 1
    assert not fills(strategy)


@pytest.mark.recordings
@needs_recordings
@pytest.mark.parametrize("agent", [SmaCross, LimitBounce])
@pytest.mark.parametrize(("pattern", "symbols"), [("*-2013-*", SYMBOLS[:4]), ("*-USD-*", SYMBOLS[4:])])
def test_an_agent_trades_the_shared_recordings(agent, pattern, symbols):
    recording = read_bars([str(DATA_DIR / f"bars{pattern}.parquet")], symbols)
    strategy = run_recording(agent, recording)
    assert {name for name, *_ in fills(strategy)} == set(symbols)
    check_rounding(strategy)


@pytest.mark.recordings
@needs_recordings
def test_without_scores_in_the_recordings_the_sentiment_agent_ends_without_an_order():
    strategy = run_recording(SentimentTilt, read_bars([str(DATA_DIR / "bars-*-2013-10-07.parquet")]))
    assert strategy.calls > 500
    assert not strategy.made


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_agent_needs_backtrader_alone(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= {"__future__", "backtrader", "importlib", "math", "typing"}


def test_the_package_offers_every_agent_and_loads_it_when_asked():
    for name in agents.__all__:
        assert getattr(agents, name).__name__ == name
        assert name in agents.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        importlib.import_module("agents").Nothing  # noqa: B018
    code = "import sys, agents; assert 'backtrader' not in sys.modules; print(agents.SmaCross.__module__)"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, cwd=FOLDER.parent, capture_output=True
    )
    assert printed.stdout.decode().strip() == "agents.sma_cross"


# SmaCross


def crossings(close: np.ndarray, fast: int, slow: int) -> list[tuple[int, int]]:
    """(length of the data, 1 upward or -1 downward) of every crossing, computed without Backtrader."""
    series = pd.Series(close)
    above = (series.rolling(fast).mean() - series.rolling(slow).mean()).to_numpy()
    found, side = [], 0
    for index in range(slow - 1, len(close)):
        now = int(np.sign(above[index]))
        if side and now and now != side:
            found.append((index + 1, now))
        side = now or side
    return found


@pytest.mark.parametrize("symbol", ["SPY", "BTC/USD"])
@pytest.mark.parametrize(("fast", "slow"), [(10, 30), (3, 8)])
def test_sma_cross_acts_at_every_crossing_of_the_averages(day, symbol, fast, slow):
    strategy = run(SmaCross, {symbol: build_feed(day, symbol)}, fast_period=fast, slow_period=slow)
    expected, held = [], False
    for length, side in crossings(day.columns(symbol)["close"], fast, slow):
        if (side > 0) != held:
            held = side > 0
            expected.append((length, side))
    assert [(length, 1 if order.isbuy() else -1) for order, _, _, length in strategy.made] == expected
    assert len(expected) >= 5


def test_sma_cross_spends_15_percent_of_the_cash_and_sells_all(day):
    strategy = run_recording(SmaCross, day)
    bought: dict[str, float] = {}
    for order, cash, close, _ in strategy.made:
        name, size = order.data._name, order.created.size
        assert order.exectype == order.Market
        if size > 0:
            step = 1e-6 if "/" in name else 1.0
            assert size == pytest.approx(math.floor(0.15 * cash / close / step) * step, abs=1e-9)
            assert size * close <= 0.15 * cash
            bought[name] = size
        else:
            assert size == -bought.pop(name)


def test_sma_cross_has_the_default_periods():
    assert SmaCross.params.fast_period == 10
    assert SmaCross.params.slow_period == 30


@pytest.mark.parametrize("runonce", [True, False])
@pytest.mark.parametrize("bars", [1, 9, 10, 29, 30, 31, 32])
def test_sma_cross_bears_a_recording_of_any_length(day, bars, runonce):
    feeds = {"SPY": build_feed(day, "SPY"), "AIG": build_feed(ending(day, "AIG", bars), "AIG")}
    assert {name for name, *_ in fills(run(SmaCross, feeds, runonce=runonce))} == {"SPY"}


# LimitBounce


def test_limit_bounce_buys_below_and_sells_above_the_market(day):
    strategy = run_recording(LimitBounce, day)
    assert {order.isbuy() for order, *_ in strategy.made} == {True, False}
    for order, cash, close, _ in strategy.made:
        assert order.exectype == order.Limit
        limit = order.created.price
        if order.isbuy():
            assert limit == round(close * 0.999, 2) < close
            assert order.created.size * limit <= 0.1 * cash
        else:
            assert limit == round(close * 1.001, 2) > close


class Aged(LimitBounce):
    """Asks for a price that never comes, and notes the age of every order that it cancels, in bars."""

    params = (("patience", 3), ("distance", 0.5))

    def __init__(self):
        super().__init__()
        self.ages = []

    def cancel(self, order):
        self.ages.append(len(order.data) - self.placed[order.data])
        super().cancel(order)


def test_limit_bounce_asks_again_when_a_cancel_had_no_effect(day):
    strategy = run(Aged, {"SPY": build_feed(day, "SPY")}, broker=SlowBroker())
    assert strategy.ages[:4] == [3, 6, 9, 12]


def test_limit_bounce_cancels_an_order_after_its_patience(day):
    strategy = run_recording(Aged, day)
    assert set(strategy.ages) == {3}
    canceled = sum(1 for change in strategy.changes if change[0] == "Canceled")
    assert canceled == len(strategy.ages) > 6 * 80
    assert not fills(strategy)


@pytest.mark.parametrize(
    ("price", "rounded"),
    [(181.5049, 181.5), (1.0, 1.0), (1.006, 1.01), (0.99994, 0.9999), (0.12345, 0.1235), (4e-5, 0.0)],
)
def test_prices_are_rounded_to_the_steps_of_quotes(price, rounded):
    assert round_price(price) == pytest.approx(rounded, abs=1e-9)


def test_limit_bounce_places_nothing_at_a_price_that_rounds_to_zero():
    flat = np.full(20, 0.00004)
    columns = dict.fromkeys(("open", "high", "low", "close", "volume"), flat)
    recording = Recording({"X": {"ts_event_ns": np.arange(20) * MINUTE_NS, **columns}})
    assert not run_recording(LimitBounce, recording).made


# SentimentTilt


def scored_recording(scores: dict[str, list[float]]) -> Recording:
    """Bars at a price of 100 with these scores."""
    columns = {}
    for symbol, values in scores.items():
        flat = dict.fromkeys(("open", "high", "low", "close", "volume"), np.full(len(values), 100.0))
        times = 1_718_112_600 * 10**9 + np.arange(len(values)) * MINUTE_NS
        columns[symbol] = {"ts_event_ns": times, **flat, "sentiment_score": np.array(values)}
    return Recording(columns)


def test_sentiment_tilt_buys_a_good_mood_and_sells_when_it_has_gone():
    recording = scored_recording({"SPY": [0.2, 0.5, 0.5, -0.1, -0.1, 0.0]})
    strategy = run_recording(SentimentTilt, recording, smoothing=1.0)
    assert [(length, order.created.size) for order, _, _, length in strategy.made] == [(2, 200), (4, -200)]


def test_sentiment_tilt_smooths_the_scores():
    recording = scored_recording({"SPY": [0.4, 0.4, 0.4, 0.4, 0.4]})
    strategy = run_recording(SentimentTilt, recording, smoothing=0.5)
    assert [length for _, _, _, length in strategy.made] == [2]  # 0.2, then 0.3
    assert strategy.mood[strategy.datas[0]] == pytest.approx(0.4 * (1 - 0.5**5))


def test_sentiment_tilt_takes_the_best_symbols_first():
    recording = scored_recording({"AIG": [0.5, 0.5], "SPY": [0.9, 0.9], "IBM": [0.7, 0.7], "BAC": [0.5, 0.5]})
    strategy = run_recording(SentimentTilt, recording, smoothing=1.0, most_positions=3)
    assert [order.data._name for order, *_ in strategy.made] == ["SPY", "IBM", "AIG"]


def test_a_bar_without_a_score_leaves_the_mood_as_it_was():
    recording = scored_recording({"SPY": [math.nan, 0.5, math.nan, math.nan, -0.5, math.nan, math.nan]})
    strategy = run_recording(SentimentTilt, recording, smoothing=1.0)
    assert [length for _, _, _, length in strategy.made] == [2, 5]


def test_a_symbol_without_the_line_is_left_alone(day):
    feeds = {"SPY": build_feed(day, "SPY"), "IBM": build_feed(day, "IBM", scored=False)}
    strategy = run(SentimentTilt, feeds)
    assert {order.data._name for order, *_ in strategy.made} == {"SPY"}


def test_another_line_can_be_named():
    recording = scored_recording({"SPY": [0.5, 0.5, 0.5]})
    assert not run_recording(SentimentTilt, recording, smoothing=1.0, field="mood").made
    assert run_recording(SentimentTilt, recording, smoothing=1.0, field="sentiment_score").made


def offering(agent: type, recording: Recording) -> type:
    """The agent, with the bars of the recording offered to its live feeds when it starts."""

    class Offering(agent):
        def start(self):  # the feeds have been started by now
            for data in self.datas:
                for bar in recording.bars(data.symbol) if data.symbol in recording.symbols else ():
                    assert data.offer(bar)
                data.finish()

    return Offering


def test_a_line_that_appears_on_a_live_feed_is_used():
    recording = scored_recording({"SPY": [math.nan, math.nan, 0.5, math.nan, -0.5, math.nan]})
    strategy = run(offering(SentimentTilt, recording), {"SPY": LiveFeed(symbol="SPY")}, smoothing=1.0)
    assert [length for _, _, _, length in strategy.made] == [3, 5]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_live_feed_that_never_has_a_bar_does_not_stop_the_others(agent, day):
    alone = run(offering(agent, day), {"SPY": LiveFeed(symbol="SPY")})
    beside = run(offering(agent, day), {"MSFT": LiveFeed(symbol="MSFT"), "SPY": LiveFeed(symbol="SPY")})
    recorded = run(agent, {"SPY": build_feed(day, "SPY")})
    assert fills(alone) == fills(beside) == fills(recorded)
    assert fills(alone)
