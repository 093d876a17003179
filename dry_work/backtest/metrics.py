"""The figures of a run: returns, risk, exposure, trades, costs, and what buying and holding would have given. Pure.

Ratios of daily returns come from empyrical-reloaded: the quantstats alternative wants charts and downloads with it. It
is imported when it is used, because it is slow to import.

Daily returns are those of UTC days; the year has 252 of them, or 365 when every symbol is a crypto pair, which trades
on all days. Fractions are fractions: 0.01 is one per cent. What is not defined is None: never NaN, never infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from dry_work.backtest.series import Floats, RunSeries, build_series, measure_drawdown
from dry_work.backtest.trades import Trade, build_trades
from dry_work.clock import DAY_NS, SECOND_NS
from dry_work.engine.result import CRYPTO_DAYS_A_YEAR, EquityCurve, RunResult, daily_returns, days_a_year, fill_value
from dry_work.feeds.recorded import Recording
from dry_work.wire.pubsub import encode_time


class PeriodFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Time covered by the equity curve; the times are None when it is empty."""

    start_ns: int | None  # start of the first bar
    end_ns: int | None  # end of the last slice
    slices: int
    days: int  # UTC days with a slice, each of which gives one daily return
    days_a_year: int


class ReturnFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of an equity curve. Those by the year and the ratios rest on daily returns and need two of them.

    annual: (1 + total) ^ (days a year / days) - 1. volatility: sample standard deviation × √days a year. sharpe: mean ÷
    standard deviation × √days a year, without a riskless rate. sortino: mean × days a year ÷ downside deviation a year.
    calmar: annual ÷ deepest drawdown.
    """

    total: float | None
    annual: float | None = None
    volatility: float | None = None
    sharpe: float | None = None
    sortino: float | None = None
    calmar: float | None = None
    max_drawdown: float | None = None
    best_day: float | None = None
    worst_day: float | None = None


class DrawdownFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The deepest drawdown, a fraction of the peak; times are None when there was none."""

    depth: float | None
    peak_ns: int | None = None
    trough_ns: int | None = None
    recovery_ns: int | None = None  # None too while the peak is not reached again
    length_ns: int | None = None  # from the peak to the recovery, or to the end of the run


class ExposureFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of slices, and value held as a fraction of equity, averaged over all slices."""

    time_in_market: float | None  # slices at whose end anything was held
    gross: float | None
    gross_max: float | None
    net: float | None
    traded_value: float
    turnover: float | None  # traded value ÷ average equity
    turnover_a_year: float | None


class TradeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the closed trades, after costs; money is in the account's currency."""

    closed: int
    open: int
    long: int
    short: int
    won: int
    win_rate: float | None
    profit_factor: float | None  # sum of gains ÷ sum of losses; None without losses
    average_win: float | None
    average_loss: float | None  # negative
    expectancy: float | None  # average profit or loss of a trade
    average_return: float | None  # of the value entered
    best: float | None
    worst: float | None
    average_holding_ns: int | None
    realised: float  # of open trades too, what was closed of them
    unrealised: float  # of what is still held
    unexplained: float | None  # change of equity that no trade accounts for


class CostFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Commissions. Slippage is in the prices of the fills."""

    commission: float
    of_traded_value: float | None
    of_start: float | None
    orders: int
    fills: int


class BenchmarkFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Buying at the first close and holding to the last; the basket holds equal parts of all symbols.

    alpha and beta are those of the agent's daily returns against the basket's; alpha is by the year, compounded.
    """

    symbols: Mapping[str, float | None]
    basket: ReturnFigures
    alpha: float | None
    beta: float | None


class MonthReturn(msgspec.Struct, frozen=True, kw_only=True):
    """Return of one UTC month, from the value at the end of the month before (or the first value)."""

    year: int
    month: int
    value: float | None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of a run."""

    period: PeriodFigures
    returns: ReturnFigures
    drawdown: DrawdownFigures
    exposure: ExposureFigures
    trades: TradeFigures
    costs: CostFigures
    benchmark: BenchmarkFigures
    months: Sequence[MonthReturn]
    years: Mapping[int, float | None]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as one JSON object: fractions, ISO times, lengths in seconds, null where not defined."""
        built: dict[str, Any] = {
            name: _json_group(msgspec.structs.asdict(getattr(self, name)))
            for name in ("period", "returns", "drawdown", "exposure", "trades", "costs")
        }
        built["period"]["annualisation"] = describe_annualisation(self.period)
        built["benchmark"] = {
            "symbols": dict(self.benchmark.symbols),
            "basket": _json_group(msgspec.structs.asdict(self.benchmark.basket)),
            "alpha": self.benchmark.alpha,
            "beta": self.benchmark.beta,
        }
        built["monthly"] = {f"{each.year:04d}-{each.month:02d}": each.value for each in self.months}
        built["yearly"] = {str(year): value for year, value in self.years.items()}
        return built


def describe_annualisation(period: PeriodFigures) -> str:
    """Return how figures by the year are made, for people."""
    why = "every symbol is a crypto pair" if period.days_a_year == CRYPTO_DAYS_A_YEAR else "trading days"
    days = f"{period.days} daily return" + ("" if period.days == 1 else "s")
    return f"from {days} of UTC days, with {period.days_a_year} days a year ({why})"


def build_metrics(
    result: RunResult, recording: Recording, *, series: RunSeries | None = None, trades: Sequence[Trade] | None = None
) -> Metrics:
    """Return the figures of a run.

    Args:
        result: of a backtest or of a live or local run.
        recording: what it ran on.
        series: `build_series` of the two, when it is at hand.
        trades: `build_trades` of the fills, when they are at hand.
    """
    series = build_series(result, recording) if series is None else series
    trades = build_trades(result.fills, series.last_prices) if trades is None else trades
    days_in_year = days_a_year(result.symbols)
    start = result.equity.start
    daily = _daily(start, series, series.equity)
    basket_daily = _daily(start, series, series.basket)
    count = len(series)
    end_ns = (series.end_ns - 1) // DAY_NS
    days = int(np.count_nonzero(end_ns[1:] != end_ns[:-1])) + 1 if count else 0
    alpha, beta = _alpha_beta(daily, basket_daily, days_in_year)
    return Metrics(
        period=PeriodFigures(
            start_ns=int(series.end_ns[0]) - recording.length_ns if count else None,
            end_ns=int(series.end_ns[-1]) if count else None,
            slices=count,
            days=days,
            days_a_year=days_in_year,
        ),
        returns=_returns(start, series.equity, daily, days_in_year),
        drawdown=_drawdown(start, series, recording.length_ns),
        exposure=_exposure(result, series, days, days_in_year),
        trades=_trades(result, trades),
        costs=_costs(result),
        benchmark=BenchmarkFigures(
            symbols=series.buy_and_hold,
            basket=_returns(start, series.basket, basket_daily, days_in_year),
            alpha=alpha,
            beta=beta,
        ),
        months=[
            MonthReturn(year=year, month=month, value=value)
            for (year, month), value in _returns_by(start, series, "M").items()
        ],
        years={year: value for (year, _), value in _returns_by(start, series, "Y").items()},
    )


def defined(value: float | None) -> float | None:
    """Return a finite number as a float, and None for everything else."""
    return float(value) if value is not None and math.isfinite(value) else None


def _daily(start: float, series: RunSeries, values: Floats) -> Floats | None:
    """Return the daily returns; None when they say nothing, because the value was not positive throughout."""
    if start <= 0 or np.any(values <= 0):
        return None
    return daily_returns(start, EquityCurve(end_ns=series.end_ns, value=values))


def _returns(start: float, values: Floats, daily: Floats | None, days_in_year: int) -> ReturnFigures:
    end = float(values[-1]) if len(values) else start
    total = defined(end / start - 1) if start > 0 else None
    falls = measure_drawdown(start, values)
    depth = defined(falls.max()) if len(falls) else 0.0
    if daily is None or len(daily) < 2:
        return ReturnFigures(total=total, max_drawdown=depth)
    import empyrical

    def ratio(measure: Callable[..., Any]) -> float | None:
        with np.errstate(all="ignore"):
            return defined(measure(daily, annualization=days_in_year))

    annual = ratio(empyrical.annual_return)
    return ReturnFigures(
        total=total,
        annual=annual,
        volatility=ratio(empyrical.annual_volatility),
        sharpe=ratio(empyrical.sharpe_ratio),
        sortino=ratio(empyrical.sortino_ratio),
        calmar=defined(annual / depth) if annual is not None and depth else None,
        max_drawdown=depth,
        best_day=defined(daily.max()),
        worst_day=defined(daily.min()),
    )


def _alpha_beta(daily: Floats | None, basket: Floats | None, days_in_year: int) -> tuple[float | None, float | None]:
    if daily is None or basket is None or len(daily) < 2:
        return None, None
    import empyrical

    with np.errstate(all="ignore"):
        alpha, beta = empyrical.alpha_beta_aligned(daily, basket, annualization=days_in_year)
    return (defined(alpha), defined(beta)) if defined(beta) is not None else (None, None)


def _drawdown(start: float, series: RunSeries, length_ns: int) -> DrawdownFigures:
    falls = series.drawdown
    if not len(falls) or not falls.max() > 0:
        return DrawdownFigures(depth=0.0)
    trough = int(np.argmax(falls))
    before = np.flatnonzero(falls[:trough] <= 0)
    # The first value stands before the first bar: a fall from it begins there.
    peak_ns = int(series.end_ns[before[-1]]) if len(before) else int(series.end_ns[0]) - length_ns
    after = np.flatnonzero(falls[trough:] <= 0)
    recovery_ns = int(series.end_ns[trough + after[0]]) if len(after) else None
    end_ns = int(series.end_ns[-1]) if recovery_ns is None else recovery_ns
    return DrawdownFigures(
        depth=float(falls[trough]),
        peak_ns=peak_ns,
        trough_ns=int(series.end_ns[trough]),
        recovery_ns=recovery_ns,
        length_ns=end_ns - peak_ns,
    )


def _exposure(result: RunResult, series: RunSeries, days: int, days_in_year: int) -> ExposureFigures:
    traded = traded_value(result)
    gross = series.long - series.short
    known = np.isfinite(gross)
    average_equity = float(series.equity.mean()) if len(series) else 0.0
    turnover = defined(traded / average_equity) if average_equity > 0 else None
    return ExposureFigures(
        time_in_market=float(series.is_held.mean()) if len(series) else None,
        gross=defined(gross[known].mean()) if known.any() else None,
        gross_max=defined(gross[known].max()) if known.any() else None,
        net=defined((series.long + series.short)[known].mean()) if known.any() else None,
        traded_value=traded,
        turnover=turnover,
        turnover_a_year=None if turnover is None else turnover * days_in_year / days,
    )


def traded_value(result: RunResult) -> float:
    """Return the value of all fills."""
    return math.fsum(map(fill_value, result.fills))


def _trades(result: RunResult, trades: Sequence[Trade]) -> TradeFigures:
    closed = [trade for trade in trades if not trade.is_open]
    gains = [trade.pnl for trade in closed if trade.pnl > 0]
    losses = [trade.pnl for trade in closed if trade.pnl < 0]
    pnls = [trade.pnl for trade in closed]
    returns = [trade.return_share for trade in closed if trade.return_share is not None]
    holdings = [trade.holding_ns for trade in closed if trade.holding_ns is not None]
    realised = math.fsum(trade.pnl for trade in trades)
    unrealised = math.fsum(trade.open_pnl or 0.0 for trade in trades)
    lost = -math.fsum(losses)
    return TradeFigures(
        closed=len(closed),
        open=len(trades) - len(closed),
        long=sum(trade.direction == "long" for trade in closed),
        short=sum(trade.direction == "short" for trade in closed),
        won=len(gains),
        win_rate=len(gains) / len(closed) if closed else None,
        profit_factor=defined(math.fsum(gains) / lost) if lost > 0 else None,
        average_win=_mean(gains),
        average_loss=_mean(losses),
        expectancy=_mean(pnls),
        average_return=_mean(returns),
        best=max(pnls, default=None),
        worst=min(pnls, default=None),
        average_holding_ns=sum(holdings) // len(holdings) if holdings else None,
        realised=realised,
        unrealised=unrealised,
        unexplained=defined(result.equity.end - result.equity.start - realised - unrealised),
    )


def _costs(result: RunResult) -> CostFigures:
    commission = math.fsum(float(fill.get("commission") or 0.0) for fill in result.fills)
    traded, start = traded_value(result), result.equity.start
    return CostFigures(
        commission=commission,
        of_traded_value=commission / traded if traded > 0 else None,
        of_start=commission / start if start > 0 else None,
        orders=len(result.orders),
        fills=len(result.fills),
    )


def _returns_by(start: float, series: RunSeries, unit: str) -> dict[tuple[int, int], float | None]:
    """Return the return of each month (unit M) or year (Y) by (year, month); one that ends or begins at 0 is None."""
    if not len(series):
        return {}
    # A slice that ends at midnight belongs to the day before.
    keys = (series.end_ns - 1).astype("datetime64[ns]").astype(f"datetime64[{unit}]")
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
    values = [start, *series.equity[last].tolist()]
    months = keys[last].astype("datetime64[M]").astype(np.int64).tolist()
    return {
        (1970 + month // 12, month % 12 + 1): defined(after / before - 1) if before > 0 and after > 0 else None
        for month, before, after in zip(months, values[:-1], values[1:], strict=True)
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _json_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with ISO times instead of nanoseconds, and lengths in seconds."""
    built: dict[str, Any] = {}
    for name, value in group.items():
        if name in ("length_ns", "average_holding_ns"):
            built[name.removesuffix("_ns") + "_seconds"] = None if value is None else value / SECOND_NS
        elif name.endswith("_ns"):
            built[name.removesuffix("_ns")] = None if value is None else encode_time(value)
        else:
            built[name] = value
    return built
