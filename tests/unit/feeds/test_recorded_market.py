"""Bars from what was recorded: bars, longer bars, trades, quotes; and resampling beside Backtrader's."""

from __future__ import annotations

import os
from pathlib import Path
from zoneinfo import ZoneInfo

import backtrader as bt
import numpy as np
import pandas as pd
import pytest

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS
from dry_work.engine.live import LiveCerebro
from dry_work.errors import ConfigError
from dry_work.feeds.base import LiveFeed, line_time_ns
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.feeds.recorded_market import read_market
from dry_work.market.aggregation import aggregate_trades
from dry_work.market.messages import Slice
from dry_work.wakeup import Wakeup
from tests.unit.engine.sources import ListSource

DATA_DIR = Path(os.environ.get("DRY_WORK_DATA_DIR") or Path(__file__).parents[4] / "shared" / "data")
START = pd.Timestamp("2024-06-11 13:30", tz="UTC")

needs_recordings = pytest.mark.skipif(
    not DATA_DIR.is_dir(), reason=f"no recordings at {DATA_DIR}; set DRY_WORK_DATA_DIR to their folder"
)


def bars(symbol: str = "SPY", step: str = "1min", count: int = 30) -> pd.DataFrame:
    closes = 100.0 + np.arange(count)
    return pd.DataFrame(
        {
            "symbol": symbol,
            "timestamp": pd.date_range(START, periods=count, freq=step),
            "open": closes,
            "high": closes + 1,
            "low": closes - 1,
            "close": closes,
            "volume": 10.0,
        }
    )


def trades(symbol: str = "SPY") -> pd.DataFrame:
    times = pd.date_range(START, periods=60, freq="10s")
    return pd.DataFrame({"symbol": symbol, "timestamp": times, "price": np.arange(60) + 50.0, "size": 2.0})


def quotes(bid: float = 10.0, ask: float = 11.0) -> pd.DataFrame:
    times = pd.date_range(START, periods=12, freq="10s")
    values = {"bid_price": bid, "bid_size": 1.0, "ask_price": ask, "ask_size": 1.0}
    return pd.DataFrame({"symbol": "SPY", "timestamp": times, **values})


def save(table: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path, index=False)
    return path


def test_bars_are_taken_where_there_are_some_else_trades_else_quotes(tmp_path):
    save(quotes(), tmp_path / "quotes.parquet")
    recording = read_market([tmp_path])
    assert recording.columns("SPY")["close"].tolist() == [10.5, 10.5]
    assert recording.extra_fields("SPY") == ("quote_count",)
    assert recording.describe_repairs() == ["bars of 1m were made of 12 quotes"]
    save(trades(), tmp_path / "trades.parquet")
    recording = read_market([tmp_path])
    assert recording.columns("SPY")["close"].tolist() == [55.0 + 6 * minute for minute in range(10)]
    assert recording.columns("SPY")["trade_count"].tolist() == [6.0] * 10
    assert recording.describe_repairs() == ["bars of 1m were made of 60 trades"]
    save(bars(), tmp_path / "bars.parquet")
    assert read_market([tmp_path]).fingerprint == read_bars([tmp_path]).fingerprint
    assert read_market([tmp_path], source="trades").fingerprint == recording.fingerprint
    assert read_market([tmp_path], source="quotes", length_ns=DAY_NS).count("SPY") == 1


def test_a_catalog_gives_bars_of_any_length_that_can_be_made(tmp_path):
    save(bars(count=60), tmp_path / "bars/1m/SPY/2024-06-11.parquet")
    save(bars(step="5min", count=12), tmp_path / "bars/5m/SPY/2024-06-11.parquet")
    save(trades(), tmp_path / "trades/SPY/2024-06-11.parquet")
    assert read_market([tmp_path]).length_ns == MINUTE_NS
    recording = read_market([tmp_path], length_ns=15 * MINUTE_NS)
    assert recording.columns("SPY")["close"].tolist() == [102.0, 105.0, 108.0, 111.0]  # made of those of 5 minutes
    recording = read_market([tmp_path], length_ns=15 * MINUTE_NS, recorded_ns=MINUTE_NS)
    assert recording.columns("SPY")["close"].tolist() == [114.0, 129.0, 144.0, 159.0]
    assert recording.columns("SPY")["volume"].tolist() == [150.0] * 4
    assert recording.left_out == ("bars of 5m left out: those of 1m are read",)
    assert read_market([tmp_path], length_ns=MINUTE_NS // 2, source="trades").count("SPY") == 20
    with pytest.raises(ConfigError, match="bars of 30s cannot be made of bars of 1m"):
        read_market([tmp_path], length_ns=MINUTE_NS // 2)


def test_plain_files_of_longer_bars_need_a_word(tmp_path):
    path = save(bars(step="5min"), tmp_path / "bars.parquet")
    with pytest.raises(ConfigError, match="are 5m apart"):
        read_market([path])
    recording = read_market([path], recorded_ns=5 * MINUTE_NS, length_ns=HOUR_NS)
    assert (recording.length_ns, recording.count("SPY")) == (HOUR_NS, 3)


@pytest.mark.parametrize("length_ns", [MINUTE_NS // 2, 7 * MINUTE_NS, 90 * MINUTE_NS + 1, 2 * DAY_NS, 0])
def test_a_length_that_cannot_be_made_is_refused(tmp_path, length_ns):
    path = save(bars(), tmp_path / "bars.parquet")
    with pytest.raises(ConfigError, match=r"expected a (multiple of that which|length that) divides a day"):
        read_market([path], length_ns=length_ns)


def test_what_is_not_there_is_named(tmp_path):
    save(trades(), tmp_path / "trades.parquet")
    with pytest.raises(ConfigError, match="no bars in it, only trades"):
        read_market([tmp_path], source="bars")
    with pytest.raises(ConfigError, match=r"no trades of IBM in .*"):
        read_market([tmp_path], ["SPY", "IBM"])
    with pytest.raises(ConfigError, match=r"no trades of SPY from 2030-01-01 00:00 UTC to the end"):
        read_market([tmp_path], ["SPY"], start_ns=pd.Timestamp("2030-01-01").value)
    with pytest.raises(ConfigError, match="source 'news': expected auto, bars, trades, quotes"):
        read_market([tmp_path], source="news")
    only_bids = save(quotes(ask=0.0), tmp_path / "bids/quotes.parquet")
    with pytest.raises(ConfigError, match="no bars of SPY can be made: none of its 12 quotes has two sides"):
        read_market([only_bids])


def test_a_period_of_trades_is_read_alone(tmp_path):
    path = save(trades(), tmp_path / "trades.parquet")
    start_ns = START.value + 2 * MINUTE_NS
    recording = read_market([path], start_ns=start_ns, end_ns=start_ns + MINUTE_NS)
    assert recording.columns("SPY")["close"].tolist() == [67.0]
    assert recording.columns("SPY")["trade_count"].tolist() == [6.0]


def test_daily_bars_are_days_of_a_zone(tmp_path):
    table = bars(step="1h", count=24)
    table["timestamp"] -= pd.Timedelta("30min")
    path = save(table, tmp_path / "bars.parquet")
    in_zone = {"length_ns": DAY_NS, "recorded_ns": HOUR_NS, "zone": ZoneInfo("America/New_York")}
    utc = read_market([path], length_ns=DAY_NS, recorded_ns=HOUR_NS)
    assert utc.columns("SPY")["volume"].tolist() == [110.0, 130.0]
    assert read_market([path], **in_zone).columns("SPY")["volume"].tolist() == [150.0, 90.0]


@pytest.mark.recordings
@needs_recordings
def test_the_recorded_trades_and_quotes_make_bars():
    made = read_market([str(DATA_DIR / "trades-*")], ["IBM", "SPY"])
    for symbol in made.symbols:
        table = pd.read_parquet(DATA_DIR / f"trades-{symbol}-2013-10-07.parquet")
        times = table["timestamp"].astype("int64").to_numpy()
        expected = aggregate_trades(times, table["price"].to_numpy(), table["size"].to_numpy(), MINUTE_NS)
        for name, column in made.columns(symbol).items():
            assert np.array_equal(column, expected[name], equal_nan=True), name
    published = read_bars([str(DATA_DIR / "bars-IBM-2013-10-07*")]).columns("IBM")
    middle = read_market([str(DATA_DIR / "quotes-*")]).columns("IBM")
    common, at, of = np.intersect1d(published["ts_event_ns"], middle["ts_event_ns"], return_indices=True)
    assert len(common) > 400
    apart = np.abs(middle["close"][of] / published["close"][at] - 1)
    assert np.median(apart) < 0.002  # the sides are of different venues


# Beside the resampling of a run


def resample_live(recording: Recording, length_ns: int) -> dict[str, dict[int, tuple[float, ...]]]:
    """Return the bars, by symbol and end, of feeds that are resampled in a run of the live engine."""
    seen: dict[str, dict[int, tuple[float, ...]]] = {symbol: {} for symbol in recording.symbols}

    class Watch(bt.Strategy):
        def prenext(self) -> None:
            self.next()

        def next(self) -> None:
            for data in self.datas[len(recording.symbols) :]:
                if len(data):
                    values = (data.open[0], data.high[0], data.low[0], data.close[0], data.volume[0])
                    seen[data.symbol][line_time_ns(data.datetime[0])] = values

    slices = [Slice(end_ns=end, bars=tuple(found)) for end, found in recording.slices()]
    slices[-1] = Slice(end_ns=slices[-1].end_ns, bars=slices[-1].bars, last=True)
    cerebro = LiveCerebro(source=ListSource(slices), wakeup=Wakeup())
    feeds = [LiveFeed(symbol=symbol) for symbol in recording.symbols]
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds:
        frame = {"timeframe": bt.TimeFrame.Minutes, "compression": length_ns // MINUTE_NS}
        cerebro.resampledata(feed, name=f"{feed.symbol}@", **frame)
    cerebro.addstrategy(Watch)
    cerebro.run()
    return seen


def resample_recording(recording: Recording, length_ns: int) -> dict[str, dict[int, tuple[float, ...]]]:
    longer = recording.resample(length_ns)
    result = {}
    for symbol in longer.symbols:
        columns = longer.columns(symbol)
        rows = zip(*(columns[name].tolist() for name in ("open", "high", "low", "close", "volume")), strict=True)
        result[symbol] = dict(zip((columns["ts_event_ns"] + length_ns).tolist(), rows, strict=True))
    return result


@pytest.mark.recordings
@needs_recordings
@pytest.mark.parametrize("minutes", [5, 15, 60])
def test_longer_bars_of_the_recordings_are_those_of_a_run(minutes):
    stocks = ["SPY", "IBM", "BAC", "AIG"]  # SPY has a bar in every minute of the session
    session = pd.Timestamp("2013-10-07 13:30").value
    recording = read_bars(
        [str(DATA_DIR / "bars-*-2013-10-07*")], stocks, start_ns=session, end_ns=session + 390 * MINUTE_NS
    )
    assert recording.count("AIG") <= recording.count("SPY") == 390
    crypto = read_bars([str(DATA_DIR / "bars-*-2017-09-03*")])
    for bars_of in (recording, crypto):
        expected = resample_recording(bars_of, minutes * MINUTE_NS)
        assert resample_live(bars_of, minutes * MINUTE_NS) == expected


def test_a_bar_on_the_edge_is_merged_into_no_older_open_one(tmp_path):
    table = bars(count=30)
    # Minutes 10:00 and 10:01, then nothing of any symbol until the minute that ends at the edge of the next bar.
    recording = read_bars([save(table.iloc[[0, 1, 9, 10]], tmp_path / "bars.parquet")])
    expected = resample_recording(recording, 5 * MINUTE_NS)
    assert [row[3] for row in expected["SPY"].values()] == [101, 109, 110]
    assert resample_live(recording, 5 * MINUTE_NS) == expected


def test_bars_that_would_lie_in_two_longer_ones_are_refused(tmp_path):
    path = save(bars(step="1h", count=24), tmp_path / "bars.parquet")  # from half past
    recording = read_bars([path], length_ns=HOUR_NS)
    with pytest.raises(ConfigError, match=r"SPY that begins at 2024-06-11 13:30 UTC would lie in two of them"):
        recording.resample(2 * HOUR_NS)
    assert recording.resample(HOUR_NS) is recording


def test_a_resampled_recording_keeps_what_was_told_of_its_files(tmp_path):
    table = bars()
    table.loc[3, "open"] = -1.0
    recording = read_bars([save(table.assign(rsi=50.0, note="x"), tmp_path / "bars.parquet")])
    longer = recording.resample(5 * MINUTE_NS)
    assert longer.describe_repairs() == recording.describe_repairs()
    assert len(longer.describe_repairs()) == 2
    assert longer.extra_fields("SPY") == ("rsi",)
    assert longer.count("SPY") == 6
