"""The value of an account over time, from its fills and the closes of what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dry_work.engine.result import EquityCurve
from dry_work.feeds.recorded import Recording
from dry_work.market.symbols import contract_size
from dry_work.wire.pubsub import parse_time

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def trace_value(
    recording: Recording,
    fills: Iterable[Mapping[str, Any]],
    *,
    cash: float,
    begin_ns: int = 0,
    last_ns: int | None = None,
) -> EquityCurve:
    """Return the account's value at the end of each slice: cash plus what is held at its last close.

    Args:
        recording: the bars.
        fills: as `RunResult.fills` has them; paid in full.
        cash: before the first fill.
        begin_ns: slices that end up to then are left out.
        last_ns: the last slice's end; None: that of the recording.
    """
    ends = recording.slice_ends()
    ends = ends[ends > begin_ns]
    if last_ns is not None:
        ends = ends[ends <= last_ns]
    value = np.full(len(ends), cash)
    by_symbol: dict[str, list[tuple[int, float, float]]] = {}
    for fill in fills:
        size = fill["qty"] if fill["side"] == "buy" else -fill["qty"]
        paid = size * fill["price"] * contract_size(fill["symbol"]) + fill["commission"]
        by_symbol.setdefault(fill["symbol"], []).append((parse_time(fill["time"]), size, paid))
    for symbol, rows in by_symbol.items():
        times = np.array([time_ns for time_ns, _, _ in rows], dtype=np.int64)
        held = _sum_until(times, np.array([size for _, size, _ in rows]), ends)
        value -= _sum_until(times, np.array([paid for _, _, paid in rows]), ends)
        columns = recording.columns(symbol)
        bar_ends = columns["ts_event_ns"] + recording.length_ns
        newest = np.searchsorted(bar_ends, ends, side="right") - 1
        # Before its first bar nothing of a symbol can be held.
        value += held * contract_size(symbol) * np.where(newest >= 0, columns["close"][np.maximum(newest, 0)], 0.0)
    return EquityCurve(end_ns=ends, value=value)


def _sum_until(times: Ints, amounts: Floats, ends: Ints) -> Floats:
    order = np.argsort(times, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(amounts[order])])
    return np.asarray(totals[np.searchsorted(times[order], ends, side="right")], dtype=np.float64)
