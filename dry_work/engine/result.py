"""The result of a run: figures, one JSON object, and a text for people. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.table import Table

from dry_work.clock import DAY_NS
from dry_work.market.completeness import Completeness
from dry_work.market.symbols import contract_size, is_crypto

TRADING_DAYS_A_YEAR = 252
CRYPTO_DAYS_A_YEAR = 365
_NO_SPREAD = 1e-12  # of daily returns: what rounding leaves of none


class EquityCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Account value at the end of each slice: two arrays of one length."""

    end_ns: npt.NDArray[np.int64]  # rising
    value: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.end_ns)


def build_curve(points: Sequence[tuple[int, float]]) -> EquityCurve:
    """Return the curve of (end of a slice in nanoseconds, value) pairs in order of time."""
    return EquityCurve(
        end_ns=np.array([end_ns for end_ns, _ in points], dtype=np.int64),
        value=np.array([value for _, value in points], dtype=np.float64),
    )


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
    curve: EquityCurve | None = None
    fingerprint: str = ""  # of the data, sha256; empty when it is not known
    completeness: Mapping[str, Completeness] = {}  # of the bars of a run with an account, by symbol
    assumptions: Mapping[str, str] = {}  # of a backtest: what it takes for granted, for people

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
            "fingerprint": self.fingerprint,
            "assumptions": dict(self.assumptions),
            "completeness": {symbol: msgspec.to_builtins(each) for symbol, each in self.completeness.items()},
            "seconds": round(self.seconds, 3),
        }


def _describe_completeness(parts: Collection[Completeness]) -> str:
    sums = {name: sum(getattr(part, name) for part in parts) for name in ("expected", "late", "filled", "missing")}
    if not sums["expected"]:
        return "no bars were expected: the market was closed"
    share = 1 - sums["missing"] / sums["expected"]
    told = [f"{sums[name]:,} {name}" for name in ("late", "filled", "missing") if sums[name]]
    return f"{share:.2%} of {sums['expected']:,} expected bars" + (f" ({', '.join(told)})" if told else "")


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return str(value)


def days_a_year(symbols: Iterable[str]) -> int:
    """Return the trading days of a year: 365 for crypto alone, otherwise 252."""
    found = list(symbols)
    return CRYPTO_DAYS_A_YEAR if found and all(map(is_crypto, found)) else TRADING_DAYS_A_YEAR


def measure_equity(start: float, curve: EquityCurve, *, days_in_year: int = TRADING_DAYS_A_YEAR) -> EquityFigures:
    """Return the figures of an equity curve.

    Args:
        start: value before the first point.
        curve: values in order of time.
        days_in_year: what a year has of the days that ratios are made of.

    `max_drawdown` is the largest fall from a peak, as a fraction of that peak. `sharpe` is the mean of the daily
    returns over their sample standard deviation, times the square root of `days_in_year`; days are those of UTC, a
    day's value is its last. It is None with fewer than two days or without variation.
    """
    values = np.concatenate([[start], curve.value])
    peaks = np.maximum.accumulate(values)
    is_positive = peaks > 0
    falls = (peaks[is_positive] - values[is_positive]) / peaks[is_positive]
    returns = daily_returns(start, curve)
    sharpe = None
    if len(returns) >= 2:
        spread = float(np.std(returns, ddof=1))
        if spread > _NO_SPREAD:
            sharpe = float(np.mean(returns)) / spread * math.sqrt(days_in_year)
    end = float(values[-1])
    return EquityFigures(
        start=start,
        end=end,
        total_return=end / start - 1 if start else 0.0,
        max_drawdown=float(falls.max()) if len(falls) else 0.0,
        sharpe=sharpe,
    )


def daily_returns(start: float, curve: EquityCurve) -> npt.NDArray[np.float64]:
    """Return the change of each UTC day with a point, as a fraction of the value before; days after 0 are left out."""
    if not len(curve):
        return np.empty(0)
    # A slice that ends at midnight belongs to the day before.
    days = (curve.end_ns - 1) // DAY_NS
    is_last = np.append(days[1:] != days[:-1], True)
    values = np.concatenate([[start], curve.value[is_last]])
    before, after = values[:-1], values[1:]
    return np.asarray(after[before > 0] / before[before > 0] - 1, dtype=np.float64)


def fill_value(fill: Mapping[str, Any]) -> float:
    """Return what was paid in a fill: quantity times price, of options times 100."""
    return float(fill["qty"]) * float(fill["price"]) * contract_size(str(fill["symbol"]))


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
    if result.completeness:
        summary.add_row("complete", _describe_completeness(result.completeness.values()))
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
        spent = {side: sum(fill_value(f) for f in fills if f["side"] == side) for side in ("buy", "sell")}
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
