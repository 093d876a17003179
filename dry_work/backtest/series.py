"""What a run held over time, against what buying and holding would have given: columns, one value for each slice. Pure.

No loop runs over bars: positions are sums of fills looked up at the end of each slice, prices the last closes then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dry_work.backtest.trades import REST
from dry_work.engine.result import RunResult
from dry_work.feeds.recorded import Recording
from dry_work.market.symbols import contract_size
from dry_work.wire.pubsub import parse_time

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class RunSeries(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of one length. Exposures are fractions of the account's value, NaN where that is not positive."""

    end_ns: Ints  # of each slice, rising
    equity: Floats
    drawdown: Floats  # fall from the highest value so far, as a fraction of it; 0 or more
    basket: Floats  # equal parts of the first value, each symbol bought at its first close and held
    long: Floats  # value of what is held, 0 or more
    short: Floats  # value of what is sold short, 0 or less
    is_held: npt.NDArray[np.bool_]  # whether anything was held at the end of the slice
    buy_and_hold: Mapping[str, float | None]  # return of each symbol from its first close to its last, a fraction
    last_prices: Mapping[str, float]  # last close of each symbol in the period

    def __len__(self) -> int:
        return len(self.end_ns)


def build_series(result: RunResult, recording: Recording) -> RunSeries:
    """Return the columns of a run; they are empty when it has no equity curve.

    Bars outside of the curve's time, a symbol that was not recorded, and fills after the last slice are left out.
    """
    curve = result.curve
    end_ns: Ints = np.empty(0, np.int64) if curve is None else curve.end_ns
    equity: Floats = np.empty(0) if curve is None else curve.value
    count = len(end_ns)
    long, short, growth = np.zeros(count), np.zeros(count), np.zeros(count)
    is_held = np.zeros(count, dtype=np.bool_)
    buy_and_hold: dict[str, float | None] = {}
    last_prices: dict[str, float] = {}
    positions = _positions(result, end_ns)
    for symbol in result.symbols:
        buy_and_hold[symbol] = None
        rows = period_rows(recording, symbol, end_ns)
        ends = recording.columns(symbol)["ts_event_ns"][rows] + recording.length_ns if rows is not None else end_ns[:0]
        if rows is None or not len(ends) or not recording.columns(symbol)["close"][rows][0] > 0:
            growth += 1.0  # its part of the basket stays money
            continue
        closes = recording.columns(symbol)["close"][rows]
        last = np.searchsorted(ends, end_ns, side="right") - 1
        prices = closes[np.maximum(last, 0)]
        growth += prices / closes[0]
        buy_and_hold[symbol] = float(closes[-1] / closes[0] - 1)
        last_prices[symbol] = float(closes[-1])
        held = positions.get(symbol)
        if held is not None:
            is_held |= held != 0
            value = held * prices * contract_size(symbol)
            long += np.maximum(value, 0.0)
            short += np.minimum(value, 0.0)
    worth = np.where(equity > 0, equity, np.nan)
    start = result.equity.start
    return RunSeries(
        end_ns=end_ns,
        equity=equity,
        drawdown=measure_drawdown(start, equity),
        basket=start * growth / max(1, len(result.symbols)),
        long=long / worth,
        short=short / worth,
        is_held=is_held,
        buy_and_hold=buy_and_hold,
        last_prices=last_prices,
    )


def measure_drawdown(start: float, values: Floats) -> Floats:
    """Return how far each value is below the highest one up to it, `start` included, as a fraction of that one."""
    peaks = np.maximum.accumulate(np.concatenate([[start], values]))[1:]
    falls = np.zeros(len(values))
    np.divide(peaks - values, peaks, out=falls, where=peaks > 0)
    return falls


def period_rows(recording: Recording, symbol: str, end_ns: Ints) -> slice | None:
    """Return the rows of `symbol` that end in the time of the slices; None when it has none at all."""
    if symbol not in recording.symbols or not len(end_ns):
        return None
    starts = recording.columns(symbol)["ts_event_ns"]
    first, last = end_ns[0] - recording.length_ns, end_ns[-1] - recording.length_ns
    return slice(
        int(np.searchsorted(starts, first, side="left")),
        int(np.searchsorted(starts, last, side="right")),
    )


def _positions(result: RunResult, end_ns: Ints) -> dict[str, Floats]:
    """Return the signed quantity held at the end of each slice, of every symbol with fills."""
    by_symbol: dict[str, list[Mapping[str, Any]]] = {}
    for fill in result.fills:
        by_symbol.setdefault(str(fill["symbol"]), []).append(fill)
    positions: dict[str, Floats] = {}
    for symbol, fills in by_symbol.items():
        times = np.array([parse_time(str(fill["time"])) for fill in fills], dtype=np.int64)
        signed = np.array([float(fill["qty"]) * (1 if fill["side"] == "buy" else -1) for fill in fills])
        order = np.argsort(times, kind="stable")
        held = np.concatenate([[0.0], np.cumsum(signed[order])])
        held[np.abs(held) <= REST * np.abs(held).max()] = 0.0
        positions[symbol] = held[np.searchsorted(times[order], end_ns, side="right")]
    return positions
