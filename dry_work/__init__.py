"""Run an unchanged Backtrader strategy in a backtest, on a local stack, on Alpaca paper trading and on GKE."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dry_work.broker.paper import AlpacaPaperTradingBroker
    from dry_work.feeds.pubsub import PubSubMarketDataFeed

__version__ = "0.1.0"

__all__ = ["AlpacaPaperTradingBroker", "PubSubMarketDataFeed", "__version__"]

_WHERE = {
    "AlpacaPaperTradingBroker": "dry_work.broker.paper",
    "PubSubMarketDataFeed": "dry_work.feeds.pubsub",
}


def __getattr__(name: str) -> Any:
    # Backtrader, alpaca-py and gRPC are loaded when they are first used, so that the command line starts fast.
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
