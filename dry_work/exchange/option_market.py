"""The prices of option contracts as they are known at a time. Pure.

A recorded contract has what was recorded; a synthetic one what follows from its stock's minute bars of the regular
session (see `option_prices`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.exchange.option_contracts import OptionChains, OptionContract
from dry_work.exchange.option_prices import derive_bars, price_options, quote_around, to_cents
from dry_work.exchange.option_trades import split_bars
from dry_work.exchange.tables import BarTable, MarketTables, Table, aggregate_bars
from dry_work.exchange.timeframes import MINUTE, NEW_YORK, Timeframe, find_starts
from dry_work.market.calendar import SessionCalendar
from dry_work.wire.alpaca_stream import encode_rest_row

_CONDITION = "a"
_VENUES = ("C", "N", "X", "Q", "A", "B")
_ACTIVE = 10  # contracts around the price whose trades `*` stands for


class OptionTradeTable:
    """The trades of bars."""

    def __init__(self, bars: BarTable, length_ns: int, symbol: str) -> None:
        self.times, self._prices, self._sizes = split_bars(bars.times, bars.columns, length_ns)
        self._symbol = symbol

    def encode(self, row: int) -> dict[str, Any]:
        return encode_rest_row(self.build(row))

    def build(self, row: int) -> dict[str, Any]:
        """Return a trade as an item of the stream."""
        return build_trade(self._symbol, int(self.times[row]), float(self._prices[row]), float(self._sizes[row]))


class OptionMarket:
    """Gives the prices of contracts.

    Args:
        chains: the contracts.
        tables: the bars and ticks of the recording.
        calendar: sessions of the stocks.
        length_ns: of a recorded bar.
    """

    def __init__(
        self, chains: OptionChains, *, tables: MarketTables, calendar: SessionCalendar, length_ns: int = MINUTE_NS
    ) -> None:
        self.chains = chains
        self._tables = tables
        self._calendar = calendar
        self._length_ns = length_ns

    def bars(self, symbol: str, timeframe: Timeframe, now_ns: int) -> BarTable | None:
        """Return the bars that are known at a time; None when there is no such contract."""
        contract = self.chains.contract(symbol)
        if contract is None:
            return None
        if not self.chains.is_synthetic(symbol):
            return self._tables.bars(symbol, timeframe, now_ns)
        stock = self._tables.bars(contract.underlying, MINUTE, now_ns)
        if stock is None:
            return None
        made = self._derive(contract, stock)
        if timeframe == MINUTE:
            return made
        return aggregate_bars(find_starts(made.times, timeframe, NEW_YORK), dict(made.columns))

    def trades(self, symbol: str, now_ns: int) -> Table | None:
        """Return the trades before a time; None when there is no such contract."""
        if self.chains.contract(symbol) is not None and not self.chains.is_synthetic(symbol):
            recorded = self._tables.ticks("trades", symbol, now_ns)
            if recorded is not None:
                return recorded
        bars = self.bars(symbol, MINUTE, now_ns)
        return None if bars is None else OptionTradeTable(bars, self._length_ns, symbol)

    def slice_items(self, symbol: str, end_ns: int) -> dict[str, list[dict[str, Any]]]:
        """Return what the bar that ends at a time brings, by channel: its trades, and the quote behind them."""
        contract = self.chains.contract(symbol)
        source = symbol if contract is None or not self.chains.is_synthetic(symbol) else contract.underlying
        table = None if contract is None else self._tables.bars(source, MINUTE, end_ns)
        if contract is None or table is None or not len(table.times):
            return {}
        last = slice(len(table.times) - 1, None)
        bars = BarTable(table.times[last], {name: column[last] for name, column in table.columns.items()})
        if int(bars.times[0]) + self._length_ns != end_ns:
            return {}
        if source != symbol:
            bars = self._derive(contract, bars)
        if not len(bars.times):
            return {}
        trades = OptionTradeTable(bars, self._length_ns, symbol)
        quote = build_quote(symbol, end_ns, float(bars.columns["close"][0]))
        return {"trades": [trades.build(row) for row in range(len(trades.times))], "quotes": [quote]}

    def _derive(self, contract: OptionContract, stock: BarTable) -> BarTable:
        """Return the bars of a synthetic contract, made of its stock's."""
        close_ns = self.chains.close_ns(contract)
        rows = self._find_regular(stock.times) & (stock.times < close_ns)
        times = stock.times[rows]
        columns = {name: stock.columns[name][rows] for name in ("open", "high", "low", "close", "volume")}
        return BarTable(times, derive_bars(contract, times, columns, self._length_ns, close_ns))

    def last_trade(self, symbol: str, now_ns: int) -> dict[str, Any] | None:
        """Return the last trade as the market-data REST API writes it."""
        item = self.build_items(symbol, now_ns).get("trades")
        return None if item is None else encode_rest_row(item)

    def last_quote(self, symbol: str, now_ns: int) -> dict[str, Any] | None:
        """Return the last quote as the market-data REST API writes it."""
        item = self.build_items(symbol, now_ns).get("quotes")
        return None if item is None else encode_rest_row(item)

    def build_items(self, symbol: str, now_ns: int) -> dict[str, dict[str, Any]]:
        """Return the last trade and quote as items of the stream; empty when there is no price."""
        found = self._find_last(symbol, now_ns)
        if found is None:
            return {}
        items = self.slice_items(symbol, found[0])
        return {name: several[-1] for name, several in items.items()}

    def stock_price(self, contract: OptionContract, now_ns: int) -> float | None:
        """Return the last price of a contract's stock in a regular session."""
        found = self._find_stock(contract, now_ns)
        return None if found is None else found[1]

    def last_ns(self, contract: OptionContract, now_ns: int) -> int | None:
        """Return when a contract's price was last made."""
        found = self._find_last(contract.symbol, now_ns)
        return None if found is None else found[0]

    def last_close(self, contract: OptionContract, now_ns: int) -> tuple[int, float] | None:
        """Return the open and close of the last session that is over."""
        sessions = [one for one in self._calendar.sessions(*_days_before(now_ns)) if one.close_ns <= now_ns]
        if not sessions:
            return None
        found = self._find_last(contract.symbol, sessions[-1].close_ns)
        return None if found is None or found[0] < sessions[-1].open_ns else (sessions[-1].open_ns, found[1])

    def find_active(self, now_ns: int) -> Iterator[str]:
        """Yield the contracts whose trades are told to who asks for all: those around the price that end first."""
        for underlying in self.chains.underlyings:
            living = [
                contract
                for contract in self.chains.contracts([underlying])
                if self.chains.close_ns(contract) > now_ns and self.chains.is_synthetic(contract.symbol)
            ]
            price = self.stock_price(living[0], now_ns) if living else None
            if price is not None:
                first = min(contract.expires for contract in living)
                near = sorted(
                    (abs(float(contract.strike) - price), contract.symbol)
                    for contract in living
                    if contract.expires == first
                )
                yield from (symbol for _, symbol in near[:_ACTIVE])

    def _find_last(self, symbol: str, now_ns: int) -> tuple[int, float] | None:
        """Return the end of a contract's last bar, and its close."""
        contract = self.chains.contract(symbol)
        if contract is None:
            return None
        if not self.chains.is_synthetic(symbol):
            bars = self._tables.bars(symbol, MINUTE, now_ns)
            if bars is None or not len(bars.times):
                return None
            return int(bars.times[-1]) + self._length_ns, float(bars.columns["close"][-1])
        found = self._find_stock(contract, now_ns)
        if found is None:
            return None
        time_ns, price = found
        left = np.array([self.chains.close_ns(contract) - time_ns], dtype=np.float64)
        value = to_cents(price_options(contract, np.array([price]), left))
        return time_ns, float(value[0])

    def _find_stock(self, contract: OptionContract, now_ns: int) -> tuple[int, float] | None:
        """Return end and close of the stock's last regular bar before the contract's end."""
        stock = self._tables.bars(contract.underlying, MINUTE, min(now_ns, self.chains.close_ns(contract)))
        if stock is None or not len(stock.times):
            return None
        row = len(stock.times) - 1
        while row >= 0 and not self._calendar.is_open(int(stock.times[row])):
            row -= 1
        if row < 0:
            return None
        return int(stock.times[row]) + self._length_ns, float(stock.columns["close"][row])

    def _find_regular(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of each time (rising) whether it is in a regular session."""
        if not len(times):
            return np.zeros(0, dtype=bool)
        sessions = self._calendar.sessions(*_days_around(int(times[0]), int(times[-1])))
        opens = np.array([session.open_ns for session in sessions], dtype=np.int64)
        closes = np.array([session.close_ns for session in sessions], dtype=np.int64)
        if not len(sessions):
            return np.zeros(len(times), dtype=bool)
        place = np.searchsorted(opens, times, side="right") - 1
        found: NDArray[np.bool_] = (place >= 0) & (times < closes[np.maximum(place, 0)])
        return found


def _day_of(time_ns: int) -> date:
    return datetime.fromtimestamp(time_ns // SECOND_NS, UTC).astimezone(NEW_YORK).date()


def _days_before(time_ns: int) -> tuple[date, date]:
    day = _day_of(time_ns)
    return day - timedelta(days=7), day


def _days_around(first_ns: int, last_ns: int) -> tuple[date, date]:
    return _day_of(first_ns), _day_of(last_ns)


def build_trade(symbol: str, time_ns: int, price: float, size: float) -> dict[str, Any]:
    """Return a trade of a contract as an item of the stream."""
    stamp, contracts = msgpack.Timestamp.from_unix_nano(time_ns), int(size) if size.is_integer() else size
    return {"T": "t", "S": symbol, "t": stamp, "p": price, "s": contracts, "x": _venue_of(symbol), "c": _CONDITION}


def build_quote(symbol: str, time_ns: int, price: float) -> dict[str, Any]:
    """Return the quote around a price of a contract as an item of the stream."""
    bid, ask = quote_around(price)
    stamp, venue = msgpack.Timestamp.from_unix_nano(time_ns), _venue_of(symbol)
    quote = {"T": "q", "S": symbol, "t": stamp, "bx": venue, "bp": bid, "bs": 10 if bid else 0}
    return quote | {"ax": venue, "ap": ask, "as": 10, "c": _CONDITION}


def _venue_of(symbol: str) -> str:
    return _VENUES[sum(symbol.encode()) % len(_VENUES)]
