"""Minute bars of option trades, which the venue streams no bars of. Pure.

A bar has the trades with times from its start on and before its end: its open and close are the first and last of
them as they come, its volume the contracts, its count the trades, its vwap their average price by contracts. A minute
without a trade has no bar.

By their condition, some reports are no trade at the last price: those that take a trade back (A, C, E, G) are left
out, and what was counted stays; those out of sequence (B, F) count in high, low, volume and vwap, but are neither open
nor close unless nothing else is there. A trade that comes when its bar is closed is left out and counted: bars are not
revised.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from dry_work.clock import MINUTE_NS
from dry_work.errors import CodecError
from dry_work.market.messages import Bar
from dry_work.market.symbols import is_option
from dry_work.wire.times import parse_item_time

AHEAD = 5  # minutes of a contract that may be open at a time; a trade of a later one has a wrong time
SOURCE = "alpaca_stock"  # they go the way of the bars of stocks
COUNTERS = ("trades", "late_trades", "taken_back", "malformed_trades", "bars", "incomplete_minutes")
_TAKEN_BACK = frozenset("ACEG")
_OUT_OF_SEQUENCE = frozenset("BF")


class _OpenBar:
    """What is known of a minute that is not closed."""

    __slots__ = ("close", "count", "high", "is_in_sequence", "low", "money", "open", "recv_ns", "volume")

    def __init__(self, price: float) -> None:
        self.open = self.high = self.low = self.close = price
        self.is_in_sequence = False  # open and close are those of trades in sequence
        self.volume = 0.0
        self.money = 0.0
        self.count = 0
        self.recv_ns = 0

    def add(self, price: float, size: float, *, in_sequence: bool, recv_ns: int) -> None:
        if in_sequence and not self.is_in_sequence:
            self.is_in_sequence = True
            self.open = price
        if in_sequence or not self.is_in_sequence:
            self.close = price
        self.high = max(self.high, price)
        self.low = min(self.low, price)
        self.volume += size
        self.money += price * size
        self.count += 1
        self.recv_ns = max(self.recv_ns, recv_ns)

    def build(self, symbol: str, start_ns: int, length_ns: int) -> Bar:
        vwap = self.money / self.volume if self.volume else None
        return Bar(
            symbol=symbol,
            ts_event_ns=start_ns,
            open=self.open,
            high=self.high,
            low=self.low,
            close=self.close,
            volume=self.volume,
            length_ns=length_ns,
            trade_count=float(self.count),
            vwap=None if vwap is None else round(vwap, 6),
            source=SOURCE,
            ts_recv_ns=self.recv_ns,
        )


class OptionBars:
    """The bars of any number of contracts.

    Counters: `trades`, `late_trades` (of a bar that is closed), `taken_back` (reports that take a trade back),
    `malformed_trades` (also those with a time far ahead, or at no price), `bars`, `incomplete_minutes` (that were not
    listened to from their beginning to their end: they have no bar).

    Args:
        length_ns: of a bar.
    """

    def __init__(self, *, length_ns: int = MINUTE_NS) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))  # no name is added later
        self._length_ns = length_ns
        self._open: dict[int, dict[str, _OpenBar]] = {}  # by start of the minute and symbol
        self._since_ns: dict[str, int] = {}  # the trades of each contract are all here from then on
        self._closed_ns = 0  # bars that end by then are closed
        self._lag_ns: int | None = None  # the shortest way of a trade to here

    @property
    def symbols(self) -> Collection[str]:
        """The contracts that are listened to."""
        return self._since_ns.keys()

    def read_counts(self) -> dict[str, int]:
        """Return the counters; from any thread."""
        return {name: self.counts[name] for name in COUNTERS}

    @property
    def lag_ns(self) -> int:
        """How far the feed is behind the clock, at most: the shortest time that one of its trades took to come here."""
        return self._lag_ns or 0

    def follow(self, symbols: Collection[str], now_ns: int) -> None:
        """Listen to these contracts and no others; 0 as `now_ns` says that nothing of the open minute is missing."""
        self._since_ns = {symbol: self._since_ns.get(symbol, now_ns) for symbol in symbols}
        for bars in self._open.values():
            for symbol in bars.keys() - self._since_ns.keys():
                del bars[symbol]

    def interrupt(self) -> None:
        """Nothing is listened to any more: what is open stays incomplete."""
        self.counts["incomplete_minutes"] += sum(len(bars) for bars in self._open.values())
        self._open.clear()
        self._since_ns.clear()
        self._lag_ns = None

    def add(self, item: Mapping[str, Any], *, now_ns: int) -> None:
        """Take a trade, an item of Alpaca's stream."""
        try:
            symbol, time_ns, price, size = _read(item)
        except CodecError:
            self.counts["malformed_trades"] += 1
            return
        if symbol not in self._since_ns:
            return
        condition = str(item.get("c") or "")
        if condition in _TAKEN_BACK:
            self.counts["taken_back"] += 1
            return
        start_ns = time_ns // self._length_ns * self._length_ns
        if start_ns + self._length_ns <= self._closed_ns:
            self.counts["late_trades"] += 1
            return
        if start_ns not in self._open and (len(self._open) >= AHEAD or start_ns > now_ns + AHEAD * self._length_ns):
            self.counts["malformed_trades"] += 1
            return
        if time_ns < now_ns + self._length_ns:  # of the future is a wrong time: all others of a late feed came too late
            lag_ns = max(now_ns - time_ns, 0)
            self._lag_ns = lag_ns if self._lag_ns is None else min(self._lag_ns, lag_ns)
        bars = self._open.setdefault(start_ns, {})
        if symbol not in bars:
            bars[symbol] = _OpenBar(price)
        bars[symbol].add(price, size, in_sequence=condition not in _OUT_OF_SEQUENCE, recv_ns=now_ns)
        self.counts["trades"] += 1

    def close(self, until_ns: int) -> list[Bar]:
        """Close the bars that end by a time; return those that are whole, by their end and in the order of symbols."""
        found: list[Bar] = []
        for start_ns in sorted(start_ns for start_ns in self._open if start_ns + self._length_ns <= until_ns):
            for symbol, bar in sorted(self._open.pop(start_ns).items()):
                if self._since_ns[symbol] - self.lag_ns > start_ns:
                    self.counts["incomplete_minutes"] += 1
                else:
                    found.append(bar.build(symbol, start_ns, self._length_ns))
        self._closed_ns = max(self._closed_ns, until_ns // self._length_ns * self._length_ns)
        self.counts["bars"] += len(found)
        return found

    def next_end_ns(self) -> int | None:
        """Return when the first bar that is open ends, None when none is."""
        return min(self._open) + self._length_ns if self._open else None


def _read(item: Mapping[str, Any]) -> tuple[str, int, float, float]:
    """Return symbol, time, price and size of a trade.

    Raises:
        CodecError: it is none.
    """
    symbol = item.get("S")
    if not isinstance(symbol, str) or not is_option(symbol):
        raise CodecError("malformed symbol")
    numbers = []
    for name in ("p", "s"):
        value = item.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise CodecError(f"malformed {name}")
        numbers.append(float(value))
    if not numbers[0]:
        raise CodecError("zero price")  # as a bar of that price is dropped by who reads it from Pub/Sub
    return symbol, parse_item_time(item.get("t")), numbers[0], numbers[1]
