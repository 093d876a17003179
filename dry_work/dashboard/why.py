"""Why a strategy did, or did not, trade in a slice, in a sentence. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from dry_work.dashboard.sessions import DecisionView
from dry_work.dashboard.snapshot import RiskView

_NAMED = 3  # of a longer list


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A data that has fewer bars than the strategy's lines need."""

    data: str
    bars: int
    needed: int


def explain_silence(
    *,
    bars: int,
    symbols: int,
    waiting: Sequence[Waiting],
    risk: RiskView,
    halted: Mapping[str, str],
    open_orders: int,
) -> str:
    """Return why nothing was ordered.

    Args:
        bars: of the slice.
        symbols: of the run.
        waiting: datas that are too short for the strategy's lines.
        risk: state of the gate.
        halted: why symbols take only orders that shrink their positions.
        open_orders: that waited for a fill.
    """
    parts = []
    if waiting:
        shown = ", ".join(f"{each.data} has {each.bars} of {each.needed} bars" for each in waiting[:_NAMED])
        more = f" and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else ""
        parts.append(f"No order: Backtrader called prenext, since indicators were not ready ({shown}{more}).")
    else:
        parts.append(f"No order: next ran with new bars of {bars} of {symbols} symbols and asked for nothing.")
    if risk.state not in ("active", "off"):
        parts.append(f"Orders would have been refused: {risk.state} by {risk.who}: {risk.reason}.")
    elif risk.trouble:
        parts.append(f"Orders would have been refused: {risk.trouble}.")
    else:
        parts.append("Trading was allowed.")
    if halted:
        named = ", ".join(f"{symbol} ({reason})" for symbol, reason in list(halted.items())[:_NAMED])
        parts.append(f"Only orders that shrink were taken of {named}.")
    if open_orders:
        parts.append(f"{open_orders} order{'s' * (open_orders != 1)} waited for a fill.")
    return " ".join(parts)


def describe_sent(decisions: Sequence[DecisionView]) -> str:
    """Return what was decided, in a sentence."""
    refused = [each for each in decisions if each.verdict == "refused"]
    taken = len(decisions) - len(refused)
    parts = [f"{taken} decision{'s' * (taken != 1)}"] if taken else []
    if refused:
        parts.append(f"{len(refused)} refused: {refused[0].reason}")
    return "; ".join(parts) + "."
