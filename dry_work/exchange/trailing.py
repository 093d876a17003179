"""Where the stop of a trailing stop order stands. Pure.

`hwm` is the best price that the order has seen: the highest of a sell, the lowest of a buy. The stop follows it at the
trail's distance and never goes back.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

from msgspec.structs import replace

from dry_work.exchange.matching import BarPrices, match_stop
from dry_work.orders.model import Side, VenueOrder

_CENT, _TICK = Decimal("0.01"), Decimal("0.0001")


def follow_price(order: VenueOrder, price: Decimal) -> VenueOrder:
    """Return a trailing stop after it has seen `price`: exact amounts, the stop of a percentage on a tick."""
    if not _is_better(order, price):
        return order
    if order.trail_price is not None:
        distance = order.trail_price
    else:
        assert order.trail_percent is not None
        distance = price * order.trail_percent / 100
    stop = price - distance if order.side is Side.SELL else price + distance
    if order.trail_percent is not None:
        stop = stop.quantize(_CENT if stop >= 1 else _TICK, ROUND_HALF_EVEN)
    return replace(order, hwm=price, stop_price=stop)


def match_trail(order: VenueOrder, bar: BarPrices) -> tuple[VenueOrder, Decimal | None]:
    """Return a trailing stop after `bar`, and the price at which it fills there.

    The stop is tried where it stood; then it follows the bar's best price. A close behind the moved stop proves that
    the stop was hit on the way.
    """
    sells = order.side is Side.SELL
    if order.stop_price is not None:
        price = match_stop(order.side, order.stop_price, bar)
        if price is not None:
            return order, price
    moved = follow_price(order, bar.high if sells else bar.low)
    assert moved.stop_price is not None
    was_hit = bar.close <= moved.stop_price if sells else bar.close >= moved.stop_price
    return moved, moved.stop_price if was_hit else None


def follow_close(order: VenueOrder, close: Decimal) -> VenueOrder:
    """Return a trailing stop after a bar's close, by the float operations of Backtrader's `trailadjust`."""
    price = float(close)
    if order.trail_price is not None:
        distance = float(order.trail_price)
    else:
        assert order.trail_percent is not None
        distance = price * float(order.trail_percent / 100)
    stop = Decimal(repr(price - distance if order.side is Side.SELL else price + distance))
    before = order.stop_price
    if before is not None and (stop <= before if order.side is Side.SELL else stop >= before):
        return order
    return replace(order, hwm=close, stop_price=stop)


def _is_better(order: VenueOrder, price: Decimal) -> bool:
    if order.hwm is None:
        return True
    return price > order.hwm if order.side is Side.SELL else price < order.hwm
