"""Backtests: Backtrader's own engine, and a leaner one with the same results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dry_work.backtest.lean import LeanCerebro

__all__ = ["LeanCerebro"]


def __getattr__(name: str) -> Any:
    if name == "LeanCerebro":  # Backtrader is slow to import; the command line does not need it
        from dry_work.backtest.lean import LeanCerebro

        return LeanCerebro
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
