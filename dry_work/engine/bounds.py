"""What Backtrader's strategies collect for ever, and how much of it a live run keeps. Engine thread only.

`Strategy._orders` gets every notification of every order, and `Strategy._trades` every trade; Backtrader reads of them
only the last trade of each data and trade id. Analyzers count what they are told and need neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

KEPT_NOTIFICATIONS = 500  # of orders
KEPT_TRADES = 10  # of each data and trade id, those that are closed
KEPT_TRADE_IDS = 1000  # of each data; an open trade's is never let go of
LOOK_EVERY = 64  # slices


def trim_strategies(strategies: Iterable[Any]) -> None:
    """Let go of all but the newest notifications of orders and closed trades."""
    for strat in strategies:
        del strat._orders[:-KEPT_NOTIFICATIONS]
        for by_id in strat._trades.values():
            for trades in by_id.values():
                del trades[:-KEPT_TRADES]
            surplus = len(by_id) - KEPT_TRADE_IDS
            if surplus > 0:
                closed = [tradeid for tradeid, trades in by_id.items() if not trades or trades[-1].isclosed]
                for tradeid in closed[:surplus]:
                    del by_id[tradeid]
