"""How much of each risk limit is used. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from dry_work.dashboard.snapshot import LimitUse
from dry_work.orders.risk import LossMarks
from dry_work.orders.risk_limits import Bound, RiskLimits


def measure_limits(
    limits: RiskLimits,
    *,
    equity: float,
    positions: Iterable[float],
    orders_last_minute: int,
    marks: LossMarks | None,
) -> tuple[LimitUse, ...]:
    """Return the limits that can be measured between orders, each with what is used of it.

    Args:
        equity: of the account now.
        positions: signed value of each position.
        orders_last_minute: that have left.
        marks: what losses are measured from; None: nothing was measured yet.
    """
    values = [abs(value) for value in positions]
    day_equity = float(marks.day_equity) if marks is not None else equity
    peak = float(marks.peak) if marks is not None else equity
    found = [
        _money("largest position", limits.position_value, max(values, default=0.0), equity),
        _money("gross exposure", limits.gross_exposure, sum(values), equity),
        _money("day loss", limits.day_loss, max(day_equity - equity, 0.0), day_equity),
        _money("drawdown", limits.drawdown, max(peak - equity, 0.0), peak),
    ]
    if limits.orders_per_minute:
        count = float(limits.orders_per_minute)
        found.append(LimitUse(name="orders in a minute", used=float(orders_last_minute), allowed=count, unit="count"))
    return tuple(use for use in found if use is not None)


def _money(name: str, bound: Bound | None, used: float, equity: float) -> LimitUse | None:
    if bound is None:
        return None
    return LimitUse(name=name, used=used, allowed=float(bound.amount(Decimal(repr(equity)))))
