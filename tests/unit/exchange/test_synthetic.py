import os
import subprocess
import sys
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError
from dry_work.exchange import synthetic
from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.option_market import OptionMarket
from dry_work.exchange.synthetic import DAY_START_NS, synthetic_day
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.timeframes import MINUTE
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickRecording
from dry_work.market.calendar import SessionCalendar, shared_calendar

SYMBOLS = ["SPY", "IBM", "BAC", "AIG", "BTC/USD", "ETH/USD"]
FINGERPRINT = "2d779db4c2d7729ac682e9927610219705201fa0b28d9c387a6866d7d051c34d"


def test_the_day_is_the_same_on_every_machine_and_in_every_process():
    assert synthetic_day(SYMBOLS).fingerprint == FINGERPRINT
    code = f"from dry_work.exchange.synthetic import synthetic_day; print(synthetic_day({SYMBOLS}).fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, env=environment)
    assert printed.stdout.decode().strip() == FINGERPRINT


def test_it_is_a_recording_of_the_symbols_in_the_order_asked_for():
    recording = synthetic_day(["ibm", "btc/usd", "SPY", "IBM"])
    assert isinstance(recording, Recording)
    assert recording.symbols == ("IBM", "BTC/USD", "SPY")
    assert recording.describe_repairs() == []


def test_it_says_that_it_is_synthetic():
    assert "SYNTHETIC" in synthetic.__doc__
    assert "SYNTHETIC" in synthetic_day.__doc__


def test_it_is_one_regular_session():
    (session,) = SessionCalendar().sessions(
        *[datetime.fromtimestamp(DAY_START_NS // SECOND_NS, ZoneInfo("UTC")).date()] * 2
    )
    ends = synthetic_day(SYMBOLS).slice_ends()
    assert session.open_ns == DAY_START_NS
    assert ends.tolist() == list(range(session.open_ns + MINUTE_NS, session.close_ns + 1, MINUTE_NS))


def test_a_symbol_is_the_same_whatever_the_others():
    alone, among = synthetic_day(["IBM"]), synthetic_day(SYMBOLS)
    assert alone.bars("IBM") == among.bars("IBM")


def test_a_shorter_day_is_the_beginning_of_a_longer_one():
    short, long = synthetic_day(["BTC/USD"], minutes=100), synthetic_day(["BTC/USD"], minutes=800)
    assert short.bars("BTC/USD") == long.bars("BTC/USD")[: short.count("BTC/USD")]
    assert short.slice_ends()[-1] <= DAY_START_NS + 100 * MINUTE_NS


def test_symbols_and_seeds_differ():
    closes = [
        tuple(synthetic_day([symbol], seed=seed).columns(symbol)["close"][:50] / base)
        for symbol, base in (("SPY", 535.0), ("IBM", 170.0))
        for seed in (7, 8)
    ]
    assert len(set(closes)) == 4


@pytest.mark.parametrize("symbol", [*SYMBOLS, "AAPL", "DOGE/USD", "BRK.B"])
def test_bars_are_plausible(symbol):
    for bar in synthetic_day([symbol]).bars(symbol):
        assert 0 < bar.low <= min(bar.open, bar.close)
        assert bar.high >= max(bar.open, bar.close)
        for price in (bar.open, bar.high, bar.low, bar.close):
            assert price == round(price, 2)
        assert bar.low <= bar.vwap <= bar.high
        assert bar.volume > 0
        assert bar.trade_count >= 1
        assert "/" in symbol or bar.volume == int(bar.volume)
        assert set(bar.extra) == {"sentiment_score"}
        assert -1 <= bar.extra["sentiment_score"] <= 1


def test_some_minutes_are_missing_for_some_symbols():
    recording = synthetic_day(SYMBOLS)
    counts = [recording.count(symbol) for symbol in SYMBOLS]
    assert max(counts) == 390
    assert sum(count < 390 for count in counts) >= 2
    assert min(counts) > 300


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_trends_make_moving_averages_cross_several_times(symbol):
    close = synthetic_day([symbol]).columns(symbol)["close"]
    fast = np.convolve(close, np.full(10, 0.1), "valid")[20:]
    slow = np.convolve(close, np.full(30, 1 / 30), "valid")
    crossings = np.count_nonzero(np.diff(np.sign(fast - slow)))
    assert 4 <= crossings <= 20


@pytest.mark.parametrize("minutes", [0, -1, 1441])
def test_minutes_out_of_range_are_refused(minutes):
    with pytest.raises(ConfigError, match=f"{minutes} was given, 1 to 1440 are allowed"):
        synthetic_day(["SPY"], minutes=minutes)


@pytest.mark.parametrize("symbols", [[], ["no symbol"]])
def test_symbols_must_be_symbols(symbols):
    with pytest.raises(ConfigError, match="symbol"):
        synthetic_day(symbols)


def test_the_bars_of_an_option_follow_from_those_of_its_stock_and_are_those_of_the_exchange():
    option = "SPY240621C00550000"
    found = synthetic_day([option, "SPY"], minutes=400)
    stock = synthetic_day(["SPY"])
    tables, calendar = MarketTables(stock, TickRecording({})), shared_calendar()
    market = OptionMarket(OptionChains(stock, calendar), tables=tables, calendar=calendar)
    bars = market.bars(option, MINUTE, DAY_START_NS + 400 * MINUTE_NS)
    assert bars is not None
    assert found.columns(option)["ts_event_ns"].tolist() == bars.times.tolist()
    assert len(bars.times) == 390
    for name in ("open", "high", "low", "close", "volume"):
        assert found.columns(option)[name].tolist() == bars.columns[name].tolist()
    assert not found.extra_fields(option)
    for symbol, why in (
        ("SPY240610C00550000", "ends before the synthetic day"),
        ("SPY249999C00550000", "no such date"),
    ):
        with pytest.raises(ConfigError, match=why):
            synthetic_day([symbol])
