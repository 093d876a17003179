"""Feeds: several with gaps, resampled, replayed, cut, copied, with zones, sessions, holes and more lines."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd
import pytz

from dry_work.feeds.columnar import columnar_feed
from dry_work.feeds.recorded import Recording
from tests.conftest import recordings_folder
from tests.parity import market
from tests.parity.orders import BUY, O, close_all, order, price
from tests.parity.scenario import Acts, Cross, acting, add, at, cerebro_of, crossing, every, scenario

FILLS = {"fills": 2}
MINUTES, DAYS, WEEKS, MONTHS = bt.TimeFrame.Minutes, bt.TimeFrame.Days, bt.TimeFrame.Weeks, bt.TimeFrame.Months


def feeds(name: str, build: Any, *, lean: bool = True, least: dict[str, int] | None = None, **details: Any) -> None:
    add(f"feeds: {name}", build, lean=lean, least=FILLS if least is None else least, **details)


def cut(frame: pd.DataFrame, start: int | None = None, stop: int | None = None) -> pd.DataFrame:
    return frame.iloc[start:stop]


# Several feeds -------------------------------------------------------------------------------------------------------
for i, frames in enumerate(itertools.permutations(market.trio())):
    feeds(f"three with gaps, order {i}", crossing(frames))
A, B, C = market.trio(0.0)
SEVERAL = {
    "two alike": (A, A),
    "three without gaps": (A, B, C),
    "many gaps": market.trio(0.8),
    "late start of the second": (A, cut(B, 50)),
    "late start of the first": (cut(A, 50), B),
    "early end of the second": (A, cut(B, None, 60)),
    "early end of the first": (cut(A, None, 60), B),
    "one after the other": (cut(A, None, 50), cut(B, 70)),
    "one after the other, second first": (cut(A, 70), cut(B, None, 50)),
    "one of one bar": (A, cut(B, 30, 31)),
    "one too short for its indicators": (A, cut(B, 30, 34)),
    "different hours": (A, market.walk(12, 90, start="2021-03-01 15:00", freq="1min", price=40.0)),
    "a coarse and a fine one": (market.walk(12, 30, freq="5min"), A),
    "a fine and a coarse one": (A, market.walk(12, 30, freq="5min")),
    "shifted by half a minute": (A, market.walk(12, 110, start="2021-03-01 14:31:30")),
    "times with microseconds": (A, market.walk(12, 110, start="2021-03-01 14:31:00.123457")),
    "several days with gaps": (market.days(6, gaps=0.3), market.days(7, gaps=0.3)),
}
TOO_SHORT = "IndexError"  # stock's way when an indicator is longer than its feed
for name, frames in SEVERAL.items():
    short = min(map(len, frames)) < 8
    for prenext in (False, True) if {"start", "end", "gaps", "short"} & set(name.split()) else (False,):
        feeds(
            f"{name}{', prenext is next' if prenext else ''}",
            crossing(frames, prenext=prenext), raised=TOO_SHORT if short else "", least={"bars": 0 if short else 1},
        )  # fmt: skip
    feeds(f"{name}, no indicators", acting((every(9, 1), BUY), (every(9, 5), close_all), frames=frames), least={})
feeds("ten with gaps", crossing([market.walk(20 + i, 60, gaps=0.3) for i in range(10)]))
EMPTY = {"raised": TOO_SHORT, "least": {"bars": 0}}
feeds("a feed with no bar, beside another", crossing((A, cut(B, 0, 0)), prenext=True), **EMPTY)
feeds(
    "a feed with no bar, beside another, no indicators", acting((every(9, 1), BUY), frames=(A, cut(B, 0, 0))), least={}
)
feeds("a feed of one bar", acting((at(1), BUY), frames=[cut(A, 0, 1)]), least={})
feeds("a feed with no bar", acting((at(1), BUY), frames=[cut(A, 0, 0)]), least={"bars": 0})
feeds("coarser time frame first", crossing(feeds=lambda: [market.feed(A, compression=5), market.feed(B)]))
feeds(
    "days beside minutes",
    crossing(feeds=lambda: [market.feed(market.days(4, 12, 8)),
                    market.feed(market.walk(5, 12, freq="B", start="2021-02-25"), timeframe=DAYS)]),
)  # fmt: skip


class OrdersAcross(Acts):
    """Trades in the second feed at bars of the first."""

    def next(self) -> None:
        if len(self) % 7 == 1:
            self.buy(self.data1, size=3)
            self.sell(self.data1, size=2, exectype=O.Limit, price=self.data1.close[0] * 1.001)
        elif len(self) % 7 == 4:
            self.buy(
                self.data1, size=1, exectype=O.Stop, price=self.data1.close[0] * 1.0005, valid=dt.timedelta(minutes=9)
            )
            self.close(self.data1)


for name in ("many gaps", "late start of the first", "early end of the second", "a fine and a coarse one"):
    feeds(f"{name}, orders in the other", acting(frames=SEVERAL[name][:2], strategy=OrdersAcross), least={"orders": 4})


class OrdersInAFeedToCome(Acts):
    def prenext(self) -> None:
        if len(self) == 3:
            self.kept.append(self.buy(self.data1, size=3))


feeds("an order in a feed that has not begun", acting(frames=(A, cut(B, 50)), strategy=OrdersInAFeedToCome), least={})


# Stamps --------------------------------------------------------------------------------------------------------------
def restamped(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    copied = frame.copy()
    copied.index = pd.DatetimeIndex([change(i, time) for i, time in enumerate(frame.index)])
    return copied


def doubled(i: int, time: pd.Timestamp) -> pd.Timestamp:
    return time - pd.Timedelta(minutes=1) if i % 10 == 9 else time


def backwards(i: int, time: pd.Timestamp) -> pd.Timestamp:
    return time - pd.Timedelta(minutes=3) if i % 25 == 20 else time


for name, change in (("two bars at one time", doubled), ("a bar that goes back", backwards)):
    feeds(f"{name}, one feed", crossing([restamped(A, change)]), lean=False)
    feeds(f"{name}, two feeds", crossing([restamped(A, change), B]), lean=False)
    feeds(f"{name}, second of two feeds", crossing([B, restamped(A, change)]), lean=False)

# Values --------------------------------------------------------------------------------------------------------------


def holed(
    frame: pd.DataFrame, columns: tuple[str, ...] = ("open", "high", "low", "close"), step: int = 17
) -> pd.DataFrame:
    copied = frame.copy()
    copied.loc[copied.index[step::step], list(columns)] = np.nan
    return copied


def changed(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    return frame.assign(**columns)


VALUES = {
    "NaN prices": holed(A),
    "NaN volumes": holed(A, ("volume",)),
    "NaN closes alone": holed(A, ("close",)),
    "infinite volumes": changed(A, volume=np.where(np.arange(len(A)) % 9, A.volume, np.inf)),
    "all prices equal": changed(A, open=50.0, high=50.0, low=50.0, close=50.0),
    "negative prices": A - 100.0,
    "tiny prices": A / 1e6,
    "huge prices": A * 1e9,
    "prices across a power of two": A.assign(**{c: A[c] + 28.0 for c in ("open", "high", "low", "close")}),
    "prices of many digits": A / 3.0,
    "integer prices": A.round().astype(int),
    "float32 prices": A.astype("float32"),
    "prices with minus zero": changed(A, close=np.where(np.arange(len(A)) % 9, A.close, -0.0)),
}
for name, frame in VALUES.items():
    raised = {}.get(name, "")
    feeds(name, crossing([frame]), least={}, raised=raised)
    feeds(
        f"{name}, second feed with gaps",
        crossing([market.walk(11, gaps=0.25), frame.iloc[::2]]),
        least={},
        raised=raised,
    )

# Cuts, zones and sessions --------------------------------------------------------------------------------------------
D = market.days(8, 4)
NEW_YORK = pytz.timezone("US/Eastern")
SETTINGS: dict[str, dict[str, Any]] = {
    "from a date": {"fromdate": dt.datetime(2021, 2, 26)},
    "to a date": {"todate": dt.datetime(2021, 3, 1, 16, 0)},
    "from and to": {"fromdate": dt.datetime(2021, 2, 26, 15, 0), "todate": dt.datetime(2021, 3, 1)},
    "a zone": {"tz": NEW_YORK},
    "a zone by name": {"tz": "Europe/Berlin"},
    "an input zone": {"tzinput": NEW_YORK},
    "both zones": {"tzinput": pytz.timezone("Europe/Berlin"), "tz": NEW_YORK},
    "a session": {"sessionstart": dt.time(14, 30), "sessionend": dt.time(16, 0)},
    "a session in a zone": {"sessionstart": dt.time(9, 30), "sessionend": dt.time(16, 0), "tz": NEW_YORK},
    "a zone and dates": {"tz": NEW_YORK, "fromdate": dt.datetime(2021, 2, 26, 10, 0)},
}


class Clockwork(Cross):
    """Writes down times in every way that a strategy may ask for them, and sends orders for the close."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def next(self) -> None:
        super().next()
        line = self.data.datetime
        self.seen.append(
            (
                line.datetime(0),
                line.date(-1),
                line.time(0),
                self.datetime.datetime(0),
                line.tm_raw(),
                self.data.num2date(),
            )
        )
        if len(self) % 11 == 3:
            self.buy(size=1, exectype=O.Close)
            self.sell(
                size=1,
                exectype=O.Limit,
                price=self.data.close[0] * 1.002,
                valid=line.datetime(0) + dt.timedelta(hours=1),
            )

    def stop(self) -> None:
        self.buy(size=1, reason=repr(self.seen))  # what was seen gets into the records


for name, settings in SETTINGS.items():

    def one(settings: dict[str, Any] = settings) -> list[Any]:
        return [market.feed(D, **settings)]

    def two(settings: dict[str, Any] = settings) -> list[Any]:
        return [market.feed(D), market.feed(market.days(9, 4), **settings)]

    for number, made in (("one feed", one), ("one of two feeds", two)):
        feeds(f"{name}, {number}", crossing(feeds=made, strategy=Clockwork), lean=True)
feeds("a zone of the index", crossing([D.tz_localize("UTC").tz_convert("US/Eastern")], strategy=Clockwork))
feeds("a zone of Cerebro", crossing([D], strategy=Clockwork, tz=NEW_YORK))
feeds(
    "the zone of the first feed for Cerebro",
    crossing(feeds=lambda: [market.feed(D, tz=NEW_YORK)], strategy=Clockwork, tz=0),
)
feeds(
    "no bar in the period",
    crossing(feeds=lambda: [market.feed(D, fromdate=dt.datetime(2022, 1, 1))]),
    **EMPTY,
)

# Resampled and replayed ----------------------------------------------------------------------------------------------


def sampled(
    how: str, *targets: tuple[int, int], frames: Any = None, base: bool = True, strategy: Any = Cross, **options: Any
) -> Any:
    """Return a builder with the base feeds (or without) and each of them resampled or replayed to each target."""
    params = {name: options.pop(name) for name in ("runonce", "preload", "exactbars") if name in options}

    def build(engine: type[Any]) -> Any:
        cerebro = cerebro_of(engine, (), **params)
        for number, frame in enumerate(frames or [market.walk(31, 110, gaps=0.1)]):
            data = market.feed(frame)
            if base:
                cerebro.adddata(data, name=f"base {number}")
            for timeframe, compression in targets:
                getattr(cerebro, f"{how}data")(
                    data, name=f"{how} {compression} {number}", timeframe=timeframe, compression=compression, **options
                )
                data = data if base else market.feed(frame)
        cerebro.addstrategy(strategy)
        return cerebro

    return build


SWITCHES = ("bar2edge", "adjbartime", "rightedge", "boundoff", "takelate")
for how in ("resample", "replay"):
    samples: dict[str, Any] = {
        "alone": sampled(how, (MINUTES, 5), base=False),
        "beside the base": sampled(how, (MINUTES, 5)),
        "1 to 5 to 60": sampled(how, (MINUTES, 5), (MINUTES, 60), frames=[market.walk(32, 200)]),
        "two feeds with gaps": sampled(how, (MINUTES, 5), frames=market.pair()),
        "two feeds alone": sampled(how, (MINUTES, 5), frames=market.pair(), base=False),
        "to days": sampled(how, (DAYS, 1), frames=[market.days(33, 12, 10)]),
        "to days alone": sampled(how, (DAYS, 1), frames=[market.days(33, 14, 10)], base=False),
        "to weeks": sampled(how, (WEEKS, 1), frames=[market.days(33, 30, 3)]),
        "to months alone": sampled(how, (MONTHS, 1), frames=[market.daily()], base=False),
        "to two minutes, clock unchanged": sampled(how, (MINUTES, 2)),
        "to one minute": sampled(how, (MINUTES, 1)),
    }
    for switch in SWITCHES:
        samples[f"without {switch}" if switch != "boundoff" else "with boundoff"] = sampled(
            how, (MINUTES, 5), **{switch: 1 if switch == "boundoff" else False}
        )
    samples["without bar2edge, alone"] = sampled(how, (MINUTES, 5), bar2edge=False, base=False)
    samples["with preload off"] = sampled(how, (MINUTES, 5), preload=False)
    samples["with runonce off"] = sampled(how, (MINUTES, 5), runonce=False)
    samples["with exactbars"] = sampled(how, (MINUTES, 5), exactbars=1)
    for name, build in samples.items():
        feeds(f"{how}, {name}", build, lean=False, least={})


@scenario(lean=False, least={})
def resampled_and_replayed(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, ())
    data = market.feed(A)
    cerebro.adddata(data, name="base")
    cerebro.resampledata(data, name="five", timeframe=MINUTES, compression=5)
    cerebro.replaydata(data, name="seven", timeframe=MINUTES, compression=7)
    cerebro.addstrategy(Cross)
    return cerebro


@scenario(lean=False, least={})
def a_resampled_feed_beside_one_from_a_file(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, (B,))
    cerebro.resampledata(market.feed(A), name="five", timeframe=MINUTES, compression=5)
    cerebro.addstrategy(Cross)
    return cerebro


def drop_some(data: Any) -> bool:
    """Take every third minute out."""
    if data.datetime.time(0).minute % 3 == 2:
        data.backwards()
        return True
    return False


FILTERS: dict[str, Any] = {
    "a function": lambda data: data.addfilter(drop_some),
    "a simple filter": lambda data: data.addfilter_simple(lambda d: d.volume[0] < 100),
    "session filter": lambda data: data.addfilter(bt.filters.SessionFilter),
    "session filler": lambda data: data.addfilter(bt.filters.SessionFiller),
    "Heikin Ashi": lambda data: data.addfilter(bt.filters.HeikinAshi),
    "Renko": lambda data: data.addfilter(bt.filters.Renko, size=0.3),
    "day splitter": lambda data: data.addfilter(bt.filters.DaySplitter_Close),
    "calendar days": lambda data: data.addfilter(bt.filters.CalendarDays, fill_price=-1),
}
for name, put in FILTERS.items():
    session = "session" in name
    by_day = name in ("day splitter", "calendar days")
    frame = market.daily(bars=60) if by_day else market.days(35, 3, gaps=0.2) if session else A
    options = {"sessionstart": dt.time(15, 0), "sessionend": dt.time(20, 0)} if session else {}
    options |= {"timeframe": DAYS} if by_day else {"compression": 15} if session else {}

    def filtered(engine: type[Any], frame: Any = frame, put: Any = put, options: Any = options) -> Any:
        data = market.feed(frame, **options)
        put(data)
        return crossing(feeds=lambda: [data])(engine)

    feeds(f"filter, {name}", filtered, lean=name not in ("session filler", "calendar days"))

# Copies and other classes --------------------------------------------------------------------------------------------


@scenario(lean=False, least=FILLS)
def a_clone_of_a_feed(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, (market.walk(11, gaps=0.25), B))
    cerebro.adddata(cerebro.datas[0].clone(), name="clone")
    cerebro.addstrategy(Cross)
    return cerebro


@scenario(lean=False, least=FILLS)
def a_clone_that_is_resampled(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, (A, B))
    cerebro.resampledata(cerebro.datas[0].clone(), name="clone", timeframe=MINUTES, compression=5)
    cerebro.addstrategy(Cross)
    return cerebro


@scenario(lean=False, least=FILLS)
def a_chain_of_feeds(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, ())
    cerebro.chaindata(market.feed(cut(A, None, 60)), market.feed(cut(A, 60)), name="chain")
    cerebro.addstrategy(Cross)
    return cerebro


@scenario(lean=False, least=FILLS)
def a_feed_that_rolls_over(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, ())
    days = [market.days(40 + i, 3) for i in range(2)]
    cerebro.rolloverdata(*map(market.feed, days), name="roll", checkdate=lambda date, data: date.day >= 26,
                         checkcondition=lambda first, second: first.volume[0] < 100)  # fmt: skip
    cerebro.addstrategy(Cross)
    return cerebro


class MoreLines(bt.feeds.PandasData):
    lines = ("sentiment", "vwap")
    params = (("sentiment", -1), ("vwap", -1))


class ActsOnSentiment(bt.Strategy):
    def __init__(self) -> None:
        self.smooth = bt.ind.EMA(self.data.sentiment, period=5)

    def next(self) -> None:
        if self.smooth[0] > 0.2 and not self.position:
            self.buy(price=self.data.vwap[0], exectype=O.Limit, size=3)
        elif self.smooth[0] < 0:
            self.close()


for name, second in (("one feed", False), ("two feeds with gaps", True)):

    def with_more_lines(engine: type[Any], second: bool = second) -> Any:
        frame = (market.walk(11, gaps=0.2) if second else A).copy()
        frame["sentiment"] = np.sin(np.arange(len(frame)) / 7)
        frame["vwap"] = (frame.high + frame.low) / 2
        cerebro = cerebro_of(engine, (), feeds=lambda: [MoreLines(dataname=frame, timeframe=MINUTES)])
        if second:
            cerebro.adddata(market.feed(market.walk(12, gaps=0.2)), name="B")
        cerebro.addstrategy(ActsOnSentiment)
        return cerebro

    feeds(f"more lines, {name}", with_more_lines)


@scenario(lean=True, least=FILLS)
def a_frame_with_a_time_column(engine: type[Any]) -> Any:
    frame = A.reset_index(names="when")
    return crossing(feeds=lambda: [market.feed(frame, datetime="when")])(engine)


@scenario(lean=True, least=FILLS)
def a_frame_with_columns_by_number(engine: type[Any]) -> Any:
    numbers = {"open": 0, "high": 1, "low": 2, "close": 3, "volume": 4, "openinterest": None}
    return crossing(feeds=lambda: [market.feed(A, **numbers)])(engine)


@scenario(lean=True, least=FILLS)
def a_frame_with_names_in_capitals(engine: type[Any]) -> Any:
    return crossing([A.rename(columns=str.upper)])(engine)


@scenario(lean=True, least=FILLS)
def a_frame_without_volume(engine: type[Any]) -> Any:
    return crossing(feeds=lambda: [market.feed(A.drop(columns="volume"), volume=None)])(engine)


@scenario(lean=True, least=FILLS)
def a_frame_with_open_interest(engine: type[Any]) -> Any:
    return crossing([A.assign(openinterest=range(len(A)))])(engine)


@scenario(lean=True, least=FILLS)
def tuples_of_a_frame(engine: type[Any]) -> Any:
    return crossing(feeds=lambda: [bt.feeds.PandasDirectData(dataname=A.assign(oi=0.0), timeframe=MINUTES)])(engine)


@scenario(lean=True, least=FILLS)
def a_csv(engine: type[Any]) -> Any:
    text = io.StringIO(A.to_csv(header=True, index_label="when"))
    data = bt.feeds.GenericCSVData(
        dataname=text, dtformat="%Y-%m-%d %H:%M:%S", timeframe=MINUTES, openinterest=-1, name="A"
    )
    return crossing(feeds=lambda: [data])(engine)


@scenario(lean=True, least=FILLS)
def a_csv_with_a_time_column_and_holes(engine: type[Any]) -> Any:
    frame = holed(A, ("volume",))
    frame = frame.assign(date=frame.index.strftime("%d.%m.%Y"), time=frame.index.strftime("%H:%M"))
    text = io.StringIO(frame[["date", "time", "open", "high", "low", "close", "volume"]].to_csv(index=False, sep=";"))
    data = bt.feeds.GenericCSVData(
        dataname=text, name="A", dtformat="%d.%m.%Y", tmformat="%H:%M", timeframe=MINUTES, separator=";", datetime=0,
        time=1, open=2, high=3, low=4, close=5, volume=6, openinterest=-1, nullvalue=float("nan"),
    )  # fmt: skip
    return crossing(feeds=lambda: [data])(engine)


class OneByOne(bt.DataBase):
    """A user's own feed."""

    params = (("timeframe", MINUTES), ("rows", ()))

    def start(self) -> None:
        super().start()
        self.left = iter(self.p.rows)

    def _load(self) -> bool:
        row = next(self.left, None)
        if row is None:
            return False
        self.lines.datetime[0] = bt.date2num(row.Index.to_pydatetime())
        for name in ("open", "high", "low", "close", "volume"):
            getattr(self.lines, name)[0] = getattr(row, name)
        self.lines.openinterest[0] = 0.0
        return True


class Talking(OneByOne):
    """A user's own feed that sends notices."""

    def _load(self) -> bool:
        if len(self) % 20 == 5:
            self.put_notification(self.LIVE if len(self) % 40 == 5 else self.DELAYED, "bar", len(self))
        return super()._load()


for own in (OneByOne, Talking):
    feeds(
        f"own feed {own.__name__}",
        lambda engine, own=own: crossing(feeds=lambda: [own(rows=list(A.itertuples()))])(engine),
        lean=True,
    )
    feeds(
        f"own feed {own.__name__} beside another with gaps",
        lambda engine, own=own: crossing(
            feeds=lambda: [market.feed(market.walk(11, gaps=0.25)), own(rows=list(B.itertuples()))]
        )(engine),
        lean=True,
    )


@scenario(lean=True, least=FILLS)
def feeds_without_names(engine: type[Any]) -> Any:
    cerebro = engine(stdstats=False)
    for frame in market.pair():
        cerebro.adddata(market.feed(frame))
    cerebro.addstrategy(Cross)
    return cerebro


class Looks(bt.Strategy):
    """Reads prices in every way."""

    def next(self) -> None:
        data = self.data
        self.seen = [
            data.close.get(ago=0, size=min(5, len(data))), data.close.get(ago=-1, size=2), data.high.getzero(0, 3),
            list(data.close.array[max(0, len(data) - 3) : len(data)]), data.buflen() - len(data), len(data),
            data.datetime.datetime(0), data[0], data.lines[1][0], data.l.low[-1] if len(data) > 1 else None,
            self.data_close[0], self.data0_high[0], self.datas[0].lines.open[0], self.getdatabyname("A").close[0],
            self.dnames["A"].close[0], max(data.high.get(size=min(4, len(data)))), self.datetime.date(),
        ]  # fmt: skip
        if data.buflen() > len(data) and data.close[1] > data.close[0] * 1.0005:  # a look into the future
            self.buy(size=1 + len(self.seen[0]), seen=repr(self.seen[:7]))
        elif self.position and len(self) % 5 == 0:
            self.close(seen=repr(self.seen[7:]))


for name, frames in (("one feed", [A]), ("three feeds with gaps", market.trio())):

    def looks(engine: type[Any], frames: Any = frames) -> Any:
        cerebro = cerebro_of(engine, frames)
        cerebro.addstrategy(Looks)
        return cerebro

    feeds(f"prices read in every way, {name}", looks)

# Columns of a recording ----------------------------------------------------------------------------------------------


def recording_of(**frames: pd.DataFrame) -> Recording:
    """Return frames, stamped at the end of each bar, as a recording."""
    columns = {}
    for symbol, frame in frames.items():
        start = (frame.index - pd.Timedelta(minutes=1)).astype("datetime64[ns]").astype("int64").to_numpy()
        columns[symbol] = {"ts_event_ns": start, **{name: frame[name].to_numpy(float) for name in frame.columns}}
    return Recording(columns)


def columnar(*frames: pd.DataFrame, against_pandas: bool = False, **params: Any) -> list[Any]:
    """Return feeds of a recording; or PandasData with the same content, the other way to the same result."""
    if against_pandas:
        return [market.feed(frame.assign(openinterest=0.0), **params) for frame in frames]
    recording = recording_of(**dict(zip("ABC", frames, strict=False)))
    return [columnar_feed(recording, symbol, **params) for symbol in recording.symbols]


COLUMNAR: dict[str, tuple[tuple[pd.DataFrame, ...], dict[str, Any]]] = {
    "one": ((A,), {}),
    "three with gaps": (market.trio(), {}),
    "late start": ((A, cut(B, 50)), {}),
    "days with dates": ((D, market.days(9, 4, gaps=0.2)), {"fromdate": SETTINGS["from and to"]["fromdate"]}),
    "days to a date": ((D, market.days(9, 4, gaps=0.2)), {"todate": dt.datetime(2021, 3, 1, 16, 0)}),
    "a zone": ((D,), {"tz": NEW_YORK}),
    "a session": ((D,), SETTINGS["a session"]),
}
for name, (frames, params) in COLUMNAR.items():

    def alike(engine: type[Any], frames: Any = frames, params: Any = params) -> Any:
        return crossing(feeds=lambda: columnar(*frames, **params), strategy=Clockwork)(engine)

    def across(engine: type[Any], frames: Any = frames, params: Any = params) -> Any:
        stock = engine is bt.Cerebro
        return crossing(feeds=lambda: columnar(*frames, against_pandas=stock, **params), strategy=Clockwork)(engine)

    feeds(f"columnar, {name}", alike)
    feeds(f"columnar against PandasData in stock, {name}", across)
for name, mode in (
    ("runonce off", {"runonce": False}),
    ("preload off", {"preload": False}),
    ("exactbars", {"exactbars": -1}),
):

    def slowly(engine: type[Any], mode: Any = mode) -> Any:
        stock = engine is bt.Cerebro
        return crossing(feeds=lambda: columnar(*market.pair(), against_pandas=stock), **mode)(engine)

    feeds(f"columnar against PandasData in stock, {name}", slowly, lean=False)
feeds("columnar, twice", crossing(feeds=lambda: columnar(*market.pair())), run=lambda c: [*c.run(), *c.run()])
MORE = A.assign(sentiment=np.sin(np.arange(len(A)) / 7), vwap=(A.high + A.low) / 2)
feeds("columnar, with more fields", crossing(feeds=lambda: columnar(MORE), strategy=ActsOnSentiment))


@scenario(lean=False, least={})
def columnar_feeds_that_are_resampled(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, feeds=lambda: columnar(A, B))
    for data in list(cerebro.datas):
        cerebro.resampledata(data, timeframe=MINUTES, compression=5)
    cerebro.addstrategy(Cross)
    return cerebro


# Real bars -----------------------------------------------------------------------------------------------------------


def real(*names: str, rows: slice = slice(0, 100)) -> list[pd.DataFrame]:
    folder = recordings_folder()
    assert folder is not None
    frames = []
    for name in names:
        frame = pd.read_parquet(folder / f"bars-{name}.parquet").reset_index()
        stamps = pd.DatetimeIndex(frame.pop("timestamp")).tz_convert(None) + pd.Timedelta(minutes=1)
        frames.append(frame.set_index(stamps)[["open", "high", "low", "close", "volume"]].iloc[rows])
    return frames


REAL = {
    "IBM": ("IBM-2013-10-07",),
    "SPY, IBM, BAC and AIG": tuple(f"{symbol}-2013-10-08" for symbol in ("SPY", "IBM", "BAC", "AIG")),
    "Bitcoin and Ether with a hole": ("BTC-USD-2018-04-04", "ETH-USD-2018-04-04"),
}
if recordings_folder() is not None:
    for name, files in REAL.items():
        feeds(f"recorded, {name}", lambda engine, files=files: crossing(real(*files), cash=1e7)(engine))
        feeds(f"recorded, {name}, prenext is next", lambda engine, files=files: crossing(
            real(*files, rows=slice(200, 300)), prenext=True, cash=1e7)(engine))  # fmt: skip
        feeds(f"recorded, {name}, resampled", lambda engine, files=files: sampled(
            "resample", (MINUTES, 5), frames=real(*files))(engine), lean=False, least={})  # fmt: skip
    feeds(
        "recorded, three days",
        lambda engine: acting(
            (every(9, 1), order("buy", size=5, exectype=O.Limit, price=price(0.9995), valid=0)),
            (every(20, 9), close_all),
            frames=[pd.concat([real(f"AIG-2013-10-0{day}", rows=slice(0, 60))[0] for day in (7, 8, 9)])],
        )(engine),
    )
