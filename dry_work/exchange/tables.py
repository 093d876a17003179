"""Rows of market data by symbol, as they are known at a time: bars of any timeframe, trades, quotes. Pure.

A row keeps its number while time goes on, so that a page can begin where the last one ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.timeframes import DAY, MINUTE, Timeframe, find_starts, find_zone
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickKind, TickRecording, TickTable
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_rest import CODE_VALIDATION
from dry_work.wire.alpaca_stream import encode_quote_item, encode_rest_row, encode_trade_item
from dry_work.wire.pubsub import encode_time

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REVISED = ("open", "high", "low", "close", "volume", "trade_count", "vwap")  # what of a bar may be corrected

_FIELDS = (("o", "open"), ("h", "high"), ("l", "low"), ("c", "close"), ("v", "volume"))
_CACHED_STARTS = 256


class Table(Protocol):
    """Rows by rising time; those whose time has not come are not in it."""

    times: Ints

    def encode(self, row: int) -> dict[str, Any]:
        """Return a row as the market-data REST API writes it."""


class BarTable:
    """Bars as columns; `times` are their starts. A bar that goes on holds what has ended of it."""

    def __init__(self, times: Ints, columns: Mapping[str, Floats]) -> None:
        self.times = times
        self.columns = columns

    def encode(self, row: int) -> dict[str, Any]:
        columns = self.columns
        bar: dict[str, Any] = {"t": encode_time(int(self.times[row]))}
        for key, name in _FIELDS:
            bar[key] = float(columns[name][row])
        count = float(columns["trade_count"][row]) if "trade_count" in columns else math.nan
        vwap = float(columns["vwap"][row]) if "vwap" in columns else math.nan
        bar["n"] = None if math.isnan(count) else int(count)
        bar["vw"] = None if math.isnan(vwap) else vwap
        return bar


class TradeTable:
    """Trades; the id of a trade is its number in the recording."""

    def __init__(self, symbol: str, ticks: TickTable, count: int) -> None:
        self._symbol = symbol
        self._ticks = ticks
        self.times = ticks.times[:count]

    def encode(self, row: int) -> dict[str, Any]:
        return encode_rest_row(build_trade_item(self._symbol, self._ticks, row))


class QuoteTable:
    """Quotes; a side of price 0 means none."""

    def __init__(self, symbol: str, ticks: TickTable, count: int) -> None:
        self._symbol = symbol
        self._ticks = ticks
        self.times = ticks.times[:count]

    def encode(self, row: int) -> dict[str, Any]:
        return encode_rest_row(build_quote_item(self._symbol, self._ticks, row))


class MarketTables:
    """Makes the tables of a recording."""

    def __init__(self, recording: Recording, ticks: TickRecording) -> None:
        self._recording = recording
        self._ticks = ticks
        self._revised: dict[str, dict[str, Any]] = {}  # columns of the symbols with a corrected bar
        self._starts: dict[tuple[str, Timeframe], Ints] = {}  # of every recorded bar, by symbol and timeframe

    def bars(self, symbol: str, timeframe: Timeframe, now_ns: int, *, last: int | None = None) -> BarTable | None:
        """Return the bars that are known at `now_ns`, or the `last` ones; None when the symbol is not recorded."""
        if symbol not in self._recording.symbols:
            return None
        columns = self._columns(symbol)
        times = columns["ts_event_ns"]
        ended = int(np.searchsorted(times, now_ns - self._recording.length_ns, side="right"))
        known = {name: column[:ended] for name, column in columns.items()}
        if timeframe == MINUTE:
            return BarTable(known.pop("ts_event_ns"), known)
        starts = self._find_starts(symbol, timeframe)[:ended]
        first = 0
        if last is not None:
            first = ended
            for _ in range(last if ended else 0):
                first = int(np.searchsorted(starts, starts[max(first - 1, 0)], side="left"))
        return aggregate_bars(starts[first:], {name: column[first:] for name, column in known.items()})

    def last_bars(self, symbol: str, timeframe: Timeframe, now_ns: int, count: int) -> list[dict[str, Any]]:
        """Return the last `count` bars that are known at `now_ns`, the newest first."""
        table = self.bars(symbol, timeframe, now_ns, last=count)
        if table is None:
            return []
        known = len(table.times)
        return [table.encode(row) for row in range(known - 1, max(known - count, 0) - 1, -1)]

    def revise(self, symbol: str, start_ns: int, values: Mapping[str, float], *, now_ns: int) -> Bar:
        """Correct a bar that has ended; return it as it is now.

        Raises:
            RefusedError: there is no such bar yet, or its prices would contradict each other.
        """
        columns = self._columns(symbol)
        times = columns["ts_event_ns"]
        row = int(np.searchsorted(times, start_ns, side="left"))
        if row == len(times) or times[row] != start_ns or start_ns + self._recording.length_ns > now_ns:
            raise RefusedError(
                422, CODE_VALIDATION, f"{symbol} has no bar that began at {encode_time(start_ns)} and has ended"
            )
        bar: dict[str, float] = {name: float(columns[name][row]) for name in REVISED if name in columns}
        bar |= {name: value for name, value in values.items() if name in columns}
        if not (0 < bar["low"] <= min(bar["open"], bar["close"]) and bar["high"] >= max(bar["open"], bar["close"])):
            raise RefusedError(422, CODE_VALIDATION, "open and close must lie between low and high, and low above 0")
        if symbol not in self._revised:
            self._revised[symbol] = {name: np.array(column) for name, column in columns.items()}
        for name, value in bar.items():
            self._revised[symbol][name][row] = value
        known = {name: None if math.isnan(value) else value for name, value in bar.items()}
        return Bar(symbol=symbol, ts_event_ns=start_ns, length_ns=self._recording.length_ns, **known)  # type: ignore[arg-type]

    def ticks(self, kind: TickKind, symbol: str, now_ns: int) -> Table | None:
        """Return the trades or quotes before `now_ns`; None when none are recorded."""
        ticks = self._ticks.table(kind, symbol)
        if ticks is None:
            return None
        count = int(np.searchsorted(ticks.times, now_ns, side="left"))
        return (TradeTable if kind == "trades" else QuoteTable)(symbol, ticks, count)

    def last_tick(self, kind: TickKind, symbol: str, now_ns: int) -> dict[str, Any] | None:
        """Return the last trade or quote before `now_ns`.

        Without recorded ones it is made of the last bar: one share or coin at its close, at its end.
        """
        table = self.ticks(kind, symbol, now_ns)
        if table is not None:
            return table.encode(len(table.times) - 1) if len(table.times) else None
        bars = self.bars(symbol, MINUTE, now_ns)
        if bars is None or not len(bars.times):
            return None
        time_ns, price = int(bars.times[-1]) + self._recording.length_ns, float(bars.columns["close"][-1])
        if kind == "trades":
            item = encode_trade_item(symbol, time_ns=time_ns, price=price, size=1.0, trade_id=len(bars.times))
        else:
            item = encode_quote_item(
                symbol, time_ns=time_ns, bid_price=price, bid_size=1.0, ask_price=price, ask_size=1.0
            )
        return encode_rest_row(item)

    def daily_bar(self, bar: Bar, now_ns: int) -> Bar:
        """Return the day so far of the symbol of `bar`, which has just ended."""
        table = self.bars(bar.symbol, DAY, now_ns, last=1)
        assert table is not None
        values = {name: float(column[-1]) for name, column in table.columns.items()}
        return Bar(
            symbol=bar.symbol,
            ts_event_ns=int(table.times[-1]),
            open=values["open"],
            high=values["high"],
            low=values["low"],
            close=values["close"],
            volume=values["volume"],
            trade_count=values.get("trade_count"),
            vwap=values.get("vwap"),
        )

    def _columns(self, symbol: str) -> Mapping[str, Any]:
        return self._revised.get(symbol) or self._recording.columns(symbol)

    def _find_starts(self, symbol: str, timeframe: Timeframe) -> Ints:
        starts = self._starts.get((symbol, timeframe))
        if starts is None:
            times = self._recording.columns(symbol)["ts_event_ns"]
            starts = find_starts(times, timeframe, find_zone(symbol))
            if len(self._starts) >= _CACHED_STARTS:
                self._starts.clear()
            self._starts[symbol, timeframe] = starts
        return starts


def aggregate_bars(starts: Ints, columns: Mapping[str, Any]) -> BarTable:
    """Join bars with equal `starts` (rising) to one each.

    The price average is weighted with volume; it and the count are NaN where a part lacks them.
    """
    if not len(starts):
        return BarTable(starts, {name: np.empty(0) for name in columns})
    edges = np.flatnonzero(np.concatenate(([True], starts[1:] != starts[:-1])))
    lasts = np.concatenate((edges[1:], [len(starts)])) - 1
    volume = np.add.reduceat(columns["volume"], edges)
    joined: dict[str, Floats] = {
        "open": columns["open"][edges],
        "high": np.maximum.reduceat(columns["high"], edges),
        "low": np.minimum.reduceat(columns["low"], edges),
        "close": columns["close"][lasts],
        "volume": volume,
    }
    if "trade_count" in columns:
        joined["trade_count"] = np.add.reduceat(columns["trade_count"], edges)
    if "vwap" in columns:
        worth = np.add.reduceat(columns["vwap"] * columns["volume"], edges)
        joined["vwap"] = np.divide(worth, volume, out=np.full(len(edges), np.nan), where=volume > 0)
    return BarTable(starts[edges], joined)


def build_trade_item(symbol: str, ticks: TickTable, row: int) -> dict[str, Any]:
    """Return a recorded trade as an item of the stream."""
    return encode_trade_item(
        symbol,
        time_ns=int(ticks.times[row]),
        price=float(ticks.numbers["price"][row]),
        size=float(ticks.numbers["size"][row]),
        trade_id=row + 1,
        exchange=ticks.text("exchange", row),
        conditions=ticks.conditions(row),
        tape=ticks.text("tape", row),
        taker_side=ticks.text("taker_side", row),
    )


def build_quote_item(symbol: str, ticks: TickTable, row: int) -> dict[str, Any]:
    """Return a recorded quote as an item of the stream."""
    numbers = ticks.numbers
    return encode_quote_item(
        symbol,
        time_ns=int(ticks.times[row]),
        bid_price=float(numbers["bid_price"][row]),
        bid_size=float(numbers["bid_size"][row]),
        ask_price=float(numbers["ask_price"][row]),
        ask_size=float(numbers["ask_size"][row]),
        bid_exchange=ticks.text("bid_exchange", row),
        ask_exchange=ticks.text("ask_exchange", row),
        conditions=ticks.conditions(row),
        tape=ticks.text("tape", row),
    )
