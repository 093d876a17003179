"""The result of a run: figures, one JSON object, and a text for people. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.table import Table

TRADING_DAYS_A_YEAR = 252


class EquityPoint(msgspec.Struct, frozen=True):
    """Account value at the end of a slice."""

    end_ns: int
    value: float


class EquityFigures(msgspec.Struct, frozen=True, kw_only=True):
    """`total_return` and `max_drawdown` are fractions; `sharpe` is None when it is not defined."""

    start: float
    end: float
    total_return: float
    max_drawdown: float
    sharpe: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the figures under their public names."""
        return {
            "start": self.start,
            "end": self.end,
            "return": self.total_return,
            "max_drawdown": self.max_drawdown,
            "sharpe": self.sharpe,
        }


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did. Times in `orders` and `fills` are ISO 8601 UTC, quantities are positive."""

    mode: str
    engine: str
    agent: str
    params: Mapping[str, Any]
    symbols: Sequence[str]
    bars: Mapping[str, int]  # after the warm-up
    orders: Sequence[Mapping[str, Any]]  # in order of submission
    fills: Sequence[Mapping[str, Any]]  # in order of execution
    positions: Mapping[str, float]  # flat ones left out
    equity: EquityFigures
    seconds: float
    notes: Sequence[str] = ()  # counted drops and repairs, for people

    def to_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints. It holds no NaN."""
        return {
            "mode": self.mode,
            "engine": self.engine,
            "agent": self.agent,
            "params": {name: _json_value(value) for name, value in self.params.items()},
            "symbols": list(self.symbols),
            "bars": dict(self.bars),
            "orders": [dict(order) for order in self.orders],
            "fills": [dict(fill) for fill in self.fills],
            "positions": dict(self.positions),
            "equity": self.equity.to_json(),
            "seconds": round(self.seconds, 3),
        }


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return str(value)


def measure_equity(start: float, points: Sequence[EquityPoint]) -> EquityFigures:
    """Return the figures of an equity curve.

    Args:
        start: value before the first point.
        points: values in order of time.

    `max_drawdown` is the largest fall from a peak, as a fraction of that peak. `sharpe` is the mean of the daily
    returns over their sample standard deviation, times the square root of 252; days are those of UTC, a day's value is
    its last. It is None with fewer than two days or without variation.
    """
    peak, deepest = start, 0.0
    days: dict[int, float] = {}
    for point in points:
        peak = max(peak, point.value)
        if peak > 0:
            deepest = max(deepest, (peak - point.value) / peak)
        # A slice that ends at midnight belongs to the day before.
        days[(point.end_ns - 1) // 86_400_000_000_000] = point.value
    end = points[-1].value if points else start
    values = [start, *days.values()]
    returns = [after / before - 1 for before, after in itertools.pairwise(values) if before > 0]
    sharpe = None
    if len(returns) >= 2:
        spread = statistics.stdev(returns)
        if spread > 0:
            sharpe = statistics.fmean(returns) / spread * math.sqrt(TRADING_DAYS_A_YEAR)
    return EquityFigures(
        start=start, end=end, total_return=end / start - 1 if start else 0.0, max_drawdown=deepest, sharpe=sharpe
    )


def build_tables(result: RunResult, *, shown_fills: int = 8) -> list[Table | str]:
    """Return what is printed for people: tables and lines."""
    summary = Table(show_header=False, box=None, pad_edge=False)
    summary.add_column(style="bold")
    summary.add_column()
    params = ", ".join(f"{name}={value}" for name, value in result.params.items()) or "none"
    statuses: dict[str, int] = {}
    for order in result.orders:
        statuses[str(order["status"])] = statuses.get(str(order["status"]), 0) + 1
    listed = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    equity = result.equity
    summary.add_row("agent", f"{result.agent} ({params})")
    summary.add_row("mode", f"{result.mode}, {result.seconds:.1f} s")
    summary.add_row("bars", f"{sum(result.bars.values()):,} of {len(result.symbols)} symbols")
    summary.add_row("orders", f"{len(result.orders)}" + (f" ({listed})" if listed else ""))
    summary.add_row("fills", f"{len(result.fills)}")
    summary.add_row("equity", f"{equity.start:,.2f} → {equity.end:,.2f} ({equity.total_return:+.3%})")
    sharpe = "not defined (fewer than two days)" if equity.sharpe is None else f"{equity.sharpe:.2f} a year"
    summary.add_row("drawdown", f"{equity.max_drawdown:.3%} at most")
    summary.add_row("Sharpe", sharpe)
    shown: list[Table | str] = [summary]
    by_symbol = Table(title="By symbol", title_justify="left", title_style="bold")
    by_symbol.add_column("symbol")
    for name in ("bars", "fills", "bought", "sold", "position"):
        by_symbol.add_column(name, justify="right")
    for symbol in result.symbols:
        fills = [fill for fill in result.fills if fill["symbol"] == symbol]
        spent = {side: sum(f["qty"] * f["price"] for f in fills if f["side"] == side) for side in ("buy", "sell")}
        by_symbol.add_row(
            symbol,
            f"{result.bars.get(symbol, 0):,}",
            str(len(fills)),
            f"{spent['buy']:,.2f}",
            f"{spent['sell']:,.2f}",
            f"{result.positions.get(symbol, 0):g}",
        )
    shown.append(by_symbol)
    if result.fills:
        rest = len(result.fills) - shown_fills
        title = "Fills" if rest <= 0 else f"Last {shown_fills} of {len(result.fills)} fills"
        fills_table = Table(title=title, title_justify="left", title_style="bold")
        for name in ("time (UTC)", "symbol", "side"):
            fills_table.add_column(name)
        for name in ("quantity", "price"):
            fills_table.add_column(name, justify="right")
        for fill in result.fills[-shown_fills:]:
            at = str(fill["time"])[:19].replace("T", " ")
            fills_table.add_row(at, fill["symbol"], fill["side"], f"{fill['qty']:g}", f"{fill['price']:,.2f}")
        shown.append(fills_table)
    shown.extend(f"note: {note}" for note in result.notes)
    return shown
