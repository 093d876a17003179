"""One self-contained HTML file about a run: its figures, charts and trades. Nothing in it is loaded from anywhere.

What the charts draw is cut into buckets of equally many slices, each with its least, greatest and last value, so that
no extreme is lost and a file about a million bars stays small. Prices are cut the same way, each bucket a bar.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dry_work.backtest.metrics import build_metrics
from dry_work.backtest.report_page import Page, render_page
from dry_work.backtest.series import Floats, Ints, RunSeries, build_series, period_rows
from dry_work.backtest.trades import Trade, build_trades
from dry_work.engine.result import RunResult, fill_value
from dry_work.errors import StorageError
from dry_work.feeds.recorded import Recording

CURVE_BUCKETS = 4000  # more than a wide screen has pixels, so that there is something to zoom into
PRICE_BUCKETS = 60_000  # of all symbols together
LEAST_PRICE_BUCKETS = 400  # of one symbol; with more symbols, those traded least have no chart
LISTED_TRADES = 20_000
_MS_NS = 1_000_000


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """Least, greatest and last value of each `step` values; NaN where there is none."""

    step: int
    low: Floats
    high: Floats
    last: Floats


def write_report(
    path: str | os.PathLike[str],
    result: RunResult,
    recording: Recording,
    *,
    title: str | None = None,
    created_ns: int,
) -> None:
    """Write the report of a run as one HTML file, whole or not at all.

    Args:
        path: of the file; its folder is there.
        result: of a backtest or of a live or local run.
        recording: what it ran on.
        title: heading of the page; None: the agent's name.
        created_ns: time now, in nanoseconds since 1970.

    Raises:
        StorageError: the file cannot be written.
    """
    write_whole(Path(path), build_report(result, recording, title=title, created_ns=created_ns).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(path, f"cannot be written ({error.strerror or error})") from error


def build_report(result: RunResult, recording: Recording, *, title: str | None = None, created_ns: int) -> str:
    """Return the report of a run as the text of an HTML file."""
    series = build_series(result, recording)
    trades = build_trades(result.fills, series.last_prices)
    metrics = build_metrics(result, recording, series=series, trades=trades)
    notes = list(result.notes)
    charted = charted_symbols(result, series)
    if len(charted) < len(series.last_prices):
        notes.append(f"charts show the {len(charted)} symbols traded most, of {len(series.last_prices)} with prices")
    if len(trades) > LISTED_TRADES:
        notes.append(f"the table and the charts hold the last {LISTED_TRADES:,} of {len(trades):,} trades")
    unexplained = metrics.trades.unexplained
    if unexplained is not None and abs(unexplained) > max(0.01, 1e-6 * abs(result.equity.start)):
        notes.append(
            f"{unexplained:,.2f} of the change of equity is in no trade: positions from before the run, interest, or "
            "fills at the venue that the agent did not make"
        )
    page = Page(
        result=result,
        metrics=metrics,
        trade_count=len(trades),
        title=title,
        created_ns=created_ns,
        notes=notes,
        data=build_page_data(result, recording, series, trades[-LISTED_TRADES:], charted),
        slices_a_point=_step(len(series), CURVE_BUCKETS),
    )
    return render_page(page)


def charted_symbols(result: RunResult, series: RunSeries) -> list[str]:
    """Return the symbols that get a price chart, in the order of the run: those traded most when they are too many."""
    known = [symbol for symbol in result.symbols if symbol in series.last_prices]
    limit = PRICE_BUCKETS // LEAST_PRICE_BUCKETS
    if len(known) <= limit:
        return known
    traded = dict.fromkeys(known, 0.0)
    for fill in result.fills:
        if fill["symbol"] in traded:
            traded[fill["symbol"]] += fill_value(fill)
    kept = set(sorted(known, key=lambda symbol: -traded[symbol])[:limit])
    return [symbol for symbol in known if symbol in kept]


def build_page_data(
    result: RunResult, recording: Recording, series: RunSeries, trades: Sequence[Trade], charted: Sequence[str]
) -> dict[str, Any]:
    """Return what the page's script draws: plain lists of numbers, null where there is none."""
    count = len(series)
    data: dict[str, Any] = {"slices": count, "symbols": list(result.symbols), "prices": []}
    if not count:
        return data
    money = _decimals_of(series.equity)
    data["times"] = _times(series.end_ns, recording.length_ns, _step(count, CURVE_BUCKETS))
    data["equity"] = _bucket_lists(make_buckets(series.equity, CURVE_BUCKETS), money)
    data["basket"] = _bucket_lists(make_buckets(series.basket, CURVE_BUCKETS), money)
    data["drawdown"] = _bucket_lists(make_buckets(-series.drawdown, CURVE_BUCKETS), 6)
    data["long"] = _bucket_lists(make_buckets(series.long, CURVE_BUCKETS), 5)
    data["short"] = _bucket_lists(make_buckets(series.short, CURVE_BUCKETS), 5)
    data["start"] = result.equity.start
    limit = min(CURVE_BUCKETS, max(LEAST_PRICE_BUCKETS, PRICE_BUCKETS // max(1, len(charted))))
    data["prices"] = [_price_data(recording, symbol, series.end_ns, limit) for symbol in charted]
    data["trades"] = _trade_rows(trades, result.symbols, series.end_ns)
    data["executions"] = _execution_rows(trades, charted, series.end_ns)
    return data


def make_buckets(values: Floats, limit: int) -> Buckets:
    """Return at most `limit` buckets of equally many values; the last one may hold fewer."""
    step = _step(len(values), limit)
    edges = np.arange(0, len(values), step)
    last = values[np.minimum(edges + step, len(values)) - 1]
    return Buckets(
        step=step, low=np.fmin.reduceat(values, edges), high=np.fmax.reduceat(values, edges), last=np.asarray(last)
    )


def _step(count: int, limit: int) -> int:
    return max(1, -(-count // limit))


def _times(end_ns: Ints, length_ns: int, step: int) -> dict[str, Any]:
    """Return the times of the buckets' ends: the first in milliseconds, then steps in a unit that divides them all."""
    last = np.minimum(np.arange(0, len(end_ns), step) + step, len(end_ns)) - 1
    times_ms = end_ns[last] // _MS_NS
    steps = np.diff(times_ms)
    unit = max(1, int(np.gcd.reduce(steps))) if len(steps) else 1
    return {
        "first": int(times_ms[0]),
        "unit": unit,
        "steps": (steps // unit).tolist(),
        "step": step,
        "length": length_ns // _MS_NS,
    }


def _bucket_lists(buckets: Buckets, decimals: int) -> dict[str, Any]:
    lists: dict[str, Any] = {"step": buckets.step, "last": _numbers(buckets.last, decimals)}
    if buckets.step > 1:
        lists["low"] = _numbers(buckets.low, decimals)
        lists["high"] = _numbers(buckets.high, decimals)
    return lists


def _price_data(recording: Recording, symbol: str, end_ns: Ints, limit: int) -> dict[str, Any]:
    """Return the bars of a symbol in buckets of slices: open, high, low, close; null where a bucket has no bar."""
    rows = period_rows(recording, symbol, end_ns)
    assert rows is not None  # a symbol with a chart has bars
    columns = {name: column[rows] for name, column in recording.columns(symbol).items()}
    step = _step(len(end_ns), limit)
    slices = np.searchsorted(end_ns, columns["ts_event_ns"] + recording.length_ns, side="left")
    buckets = slices // step
    edges = np.flatnonzero(np.append(True, buckets[1:] != buckets[:-1]))
    filled = buckets[edges]
    ends = np.append(edges[1:], len(buckets)) - 1
    decimals = _decimals_of(columns["close"])
    made = {
        "open": columns["open"][edges],
        "high": np.maximum.reduceat(columns["high"], edges),
        "low": np.minimum.reduceat(columns["low"], edges),
        "close": columns["close"][ends],
    }
    data: dict[str, Any] = {"symbol": symbol, "step": step, "decimals": decimals}
    for name, values in made.items():
        spread = np.full(-(-len(end_ns) // step), np.nan)
        spread[filled] = values
        data[name] = _numbers(spread, decimals)
    return data


def _trade_rows(trades: Sequence[Trade], symbols: Sequence[str], end_ns: Ints) -> list[list[Any]]:
    index = {symbol: number for number, symbol in enumerate(symbols)}
    entries = _slices(end_ns, [trade.entry_ns for trade in trades])
    exits = _slices(end_ns, [int(end_ns[-1]) if trade.exit_ns is None else trade.exit_ns for trade in trades])
    return [
        [
            trade.number,
            index.get(trade.symbol, trade.symbol),
            1 if trade.direction == "long" else -1,
            trade.entry_ns // _MS_NS,
            None if trade.exit_ns is None else trade.exit_ns // _MS_NS,
            entry,
            exit_,
            _number(trade.qty, 9),
            _number(trade.open_qty, 9),
            _number(trade.entry_price, 6),
            _number(trade.exit_price, 6),
            _number(trade.commission, 4),
            _number(trade.pnl, 4),
            _number(trade.return_share, 7),
            _number(trade.open_pnl, 4),
        ]
        for trade, entry, exit_ in zip(trades, entries, exits, strict=True)
    ]


def _execution_rows(trades: Sequence[Trade], charted: Sequence[str], end_ns: Ints) -> list[list[list[Any]]]:
    """Return the fills of each symbol with a chart: slice, 1 for a purchase, 1 for an entry, price, quantity."""
    rows: dict[str, list[tuple[int, list[Any]]]] = {symbol: [] for symbol in charted}
    for trade in trades:
        for each in trade.executions if trade.symbol in rows else ():
            row = [int(each.side == "buy"), int(each.is_entry), _number(each.price, 6), _number(each.qty, 9)]
            rows[trade.symbol].append((each.time_ns, row))
    return [
        [[at, *row] for at, (_, row) in zip(_slices(end_ns, [time_ns for time_ns, _ in pairs]), pairs, strict=True)]
        for pairs in rows.values()
    ]


def _slices(end_ns: Ints, times_ns: Sequence[int]) -> list[int]:
    """Return the slice that each time falls in; times after the last are in the last."""
    found = np.searchsorted(end_ns, np.array(times_ns, dtype=np.int64), side="left")
    return [int(each) for each in np.minimum(found, len(end_ns) - 1)]


def _decimals_of(values: Floats) -> int:
    """Return with how many decimals, 2 to 8, values of this kind are written; at most some seven digits in all."""
    sample = np.abs(values[:: max(1, len(values) // 1000)])
    sample = sample[np.isfinite(sample)]
    if not len(sample) or not sample.max() > 0:
        return 2
    most = max(2, min(8, 6 - math.floor(math.log10(sample.max()))))
    for decimals in range(2, most):
        if np.all(np.abs(np.round(sample, decimals) - sample) < 0.001 * 10.0**-decimals):
            return decimals
    return most


def _numbers(values: Floats, decimals: int) -> list[float | None]:
    rounded = np.round(values, decimals) + 0.0  # no negative zero
    return [value if math.isfinite(value) else None for value in rounded.tolist()]


def _number(value: float | None, decimals: int) -> float | None:
    return round(value, decimals) + 0.0 if value is not None and math.isfinite(value) else None
