"""Bundled strategies to run and to copy. Each file stands alone: it needs Backtrader and nothing else.

- `agents.sma_cross.SmaCross`: moving average crossover with orders at market; the default agent.
- `agents.limit_bounce.LimitBounce`: buys a little below the market and sells a little above it with limit orders.
- `agents.sentiment_tilt.SentimentTilt`: holds the symbols whose extra line `sentiment_score` is the best.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {"SmaCross": "sma_cross", "LimitBounce": "limit_bounce", "SentimentTilt": "sentiment_tilt"}

__all__ = ["LimitBounce", "SentimentTilt", "SmaCross"]


def __getattr__(name: str) -> object:
    # Backtrader is slow to import, so a strategy is loaded when it is asked for.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
