"""Results of runs, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.engine.result import EquityCurve, RunResult, measure_equity
from dry_work.feeds.recorded import Recording
from dry_work.wire.pubsub import encode_time

MONDAY_NS = 19_723 * DAY_NS  # 2024-01-01


def fill(
    at_ns: int, side: str, qty: float, price: float, symbol: str = "SPY", commission: float = 0.0
) -> dict[str, Any]:
    return {
        "time": encode_time(at_ns), "symbol": symbol, "side": side, "qty": qty, "price": price,
        "commission": commission,
    }  # fmt: skip


def recording_of(
    closes: Mapping[str, Sequence[float]],
    *,
    start_ns: int = MONDAY_NS,
    length_ns: int = MINUTE_NS,
    offsets: Mapping[str, int] | None = None,
) -> Recording:
    """Return bars one after the other; `offsets` tells by how many bars a symbol begins later."""
    columns = {}
    for symbol, values in closes.items():
        close = np.array(values, dtype=np.float64)
        opened = np.concatenate([close[:1], close[:-1]])
        first = start_ns + (offsets or {}).get(symbol, 0) * length_ns
        columns[symbol] = {
            "ts_event_ns": first + np.arange(len(close)) * length_ns,
            "open": opened,
            "high": np.maximum(opened, close) + 0.5,
            "low": np.minimum(opened, close) - 0.5,
            "close": close,
            "volume": np.full(len(close), 100.0),
        }
    return Recording(columns, length_ns=length_ns)


def result_of(
    recording: Recording,
    values: Sequence[float] | None = None,
    fills: Sequence[Mapping[str, Any]] = (),
    *,
    start: float = 100_000.0,
    **changes: Any,
) -> RunResult:
    """Return the result of a run over the recording's slices; `values` None: the account's value never changes."""
    ends = recording.slice_ends()
    given = np.full(len(ends), start) if values is None else np.array(values, dtype=np.float64)
    curve = EquityCurve(end_ns=ends[: len(given)], value=given)
    fields: dict[str, Any] = {
        "mode": "backtest", "engine": "lean", "agent": "agents.sma_cross:SmaCross", "params": {"fast_period": 10},
        "symbols": recording.symbols, "bars": {symbol: recording.count(symbol) for symbol in recording.symbols},
        "orders": [], "fills": list(fills), "positions": {}, "equity": measure_equity(start, curve), "seconds": 1.5,
        "curve": curve, "fingerprint": recording.fingerprint, "assumptions": {"fills": "at the next open"},
    }  # fmt: skip
    return RunResult(**{**fields, **changes})


def traded(recording: Recording, fills: Sequence[Mapping[str, Any]], *, start: float = 100_000.0) -> RunResult:
    """Return a result whose account value follows from the fills and the closes, slice by slice."""
    ends = recording.slice_ends()
    values = []
    for end_ns in ends.tolist():
        cash, held = start, dict.fromkeys(recording.symbols, 0.0)
        for each in fills:
            if each["time"] <= encode_time(end_ns):
                signed = each["qty"] * (1 if each["side"] == "buy" else -1)
                held[each["symbol"]] += signed
                cash -= signed * each["price"] + each["commission"]
        for symbol in recording.symbols:
            columns = recording.columns(symbol)
            known = columns["close"][columns["ts_event_ns"] + recording.length_ns <= end_ns]
            cash += held[symbol] * known[-1] if len(known) else 0.0
        values.append(cash)
    return result_of(recording, values, fills, start=start)
