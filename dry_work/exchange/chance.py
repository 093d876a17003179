"""What the rule set `alpaca` leaves to chance, and to the night. Pure: the same seed and order id decide the same."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, time
from decimal import Decimal
from zoneinfo import ZoneInfo

from dry_work.clock import SECOND_NS
from dry_work.errors import ConfigError
from dry_work.exchange.account import truncate_qty
from dry_work.exchange.book import OpenOrder
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import OrderType, TimeInForce

ALPACA_RATE = 0.1  # about which share of orders Alpaca's paper account fills in part first

_NEW_YORK = ZoneInfo("America/New_York")
_NIGHT, _MORNING = time(20, 0), time(4, 0)
_TYPES = frozenset({OrderType.MARKET, OrderType.LIMIT, OrderType.STOP_LIMIT})
_WHOLE = frozenset({TimeInForce.FOK, TimeInForce.OPG, TimeInForce.CLS})


def is_night(time_ns: int) -> bool:
    """Tell whether a time is of the overnight session, 20:00 to 04:00 in New York."""
    clock = datetime.fromtimestamp(time_ns // SECOND_NS, UTC).astimezone(_NEW_YORK).time()
    return clock >= _NIGHT or clock < _MORNING


class PartialFills:
    """Gives some orders a part of their first execution; what is left goes on as before.

    Orders that have to be filled as a whole, or that follow a stop, are not eligible, nor those for a single share.

    Args:
        rate: share of the eligible orders, 0 to 1.
        seed: of the chance.
    """

    def __init__(self, rate: float = 0.0, seed: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise ConfigError(f"a rate of partial fills of {rate} is not usable: expected 0 to 1")
        self._rate = rate
        self._seed = seed

    def cut(self, entry: OpenOrder, qty: Decimal) -> Decimal:
        """Return how much of `qty` an order gets now."""
        order = entry.order
        if not self._rate or entry.executions or order.type not in _TYPES or order.time_in_force in _WHOLE:
            return qty
        digest = hashlib.sha256(f"partial {self._seed} {order.id}".encode()).digest()
        chance, share = (int.from_bytes(digest[start : start + 6], "big") / 2**48 for start in (0, 6))
        if chance >= self._rate:
            return qty
        part = qty * Decimal(repr(round(0.05 + 0.9 * share, 6)))
        part = truncate_qty(part) if is_crypto(order.symbol) else Decimal(max(int(part), 1))
        return part if 0 < part < qty else qty
