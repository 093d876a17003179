"""At which price an order fills in a bar. Pure.

A bar says neither the way of its price nor how much was on offer, so an order fills as a whole or not at all, and
what happened inside the bar is decided the way Backtrader's own `BackBroker` decides it (no slippage):

- market: at the open.
- limit: at the open when that is at least as good as the limit, else at the limit when the bar reached it.
- stop: at the open when that lies behind the stop (a gap), else at the stop when the bar reached it.
- stop limit: the stop triggers as above. A gap at the open makes it a limit order for the same bar. A trigger inside
  the bar fills at the stop when the limit allows it; otherwise at the limit when the bar's close proves that the price
  came back to it after the trigger; else it rests as a limit order.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec
from msgspec.structs import replace

from dry_work.market.messages import Bar
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import OrderType, Side, VenueOrder

_COLLAR_PRICE = Decimal(50)
_WIDE_COLLAR, _COLLAR = Decimal("1.04"), Decimal("1.025")  # of a buy stop below that price, and from it on


class BarPrices(msgspec.Struct, frozen=True, kw_only=True):
    """A bar's prices as money, and its times."""

    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    start_ns: int
    end_ns: int
    volume: float = 0.0  # 0: not known


class Match(msgspec.Struct, frozen=True):
    """What a bar does to an order: the price it fills at (None: it does not), and whether its stop has triggered."""

    price: Decimal | None
    triggered: bool = False


def build_money(value: float) -> Decimal:
    """Return a market-data price as money: the shortest decimal that means the same float, so that both order alike."""
    return Decimal(repr(float(value)))


def build_bar_prices(bar: Bar) -> BarPrices:
    """Return the prices of `bar` as money."""
    return BarPrices(
        open=build_money(bar.open),
        high=build_money(bar.high),
        low=build_money(bar.low),
        close=build_money(bar.close),
        start_ns=bar.ts_event_ns,
        end_ns=bar.end_ns,
        volume=bar.volume,
    )


def match_limit(side: Side, limit: Decimal, bar: BarPrices) -> Decimal | None:
    """Return the price at which a limit order fills in `bar`, or None."""
    if side is Side.BUY:
        if limit >= bar.open:
            return bar.open
        return limit if limit >= bar.low else None
    if limit <= bar.open:
        return bar.open
    return limit if limit <= bar.high else None


def match_stop(side: Side, stop: Decimal, bar: BarPrices) -> Decimal | None:
    """Return the price at which a stop order fills in `bar`, or None."""
    if side is Side.BUY:
        if bar.open >= stop:
            return bar.open
        return stop if bar.high >= stop else None
    if bar.open <= stop:
        return bar.open
    return stop if bar.low <= stop else None


def match_stop_limit(side: Side, stop: Decimal, limit: Decimal, bar: BarPrices) -> Match:
    """Match a stop-limit order whose stop has not triggered before `bar`."""
    buy = side is Side.BUY
    if bar.open >= stop if buy else bar.open <= stop:
        return Match(match_limit(side, limit, bar), triggered=True)
    if bar.high < stop if buy else bar.low > stop:
        return Match(None)
    if limit >= stop if buy else limit <= stop:
        return Match(stop, triggered=True)
    # Only a bar that turned after the trigger proves that the limit was reached after it. BackBroker counts a bar
    # with open == close as turned for a sell and as not turned for a buy.
    turned = (bar.open > bar.close and limit >= bar.close) if buy else (bar.open <= bar.close and limit <= bar.close)
    return Match(limit if turned else None, triggered=True)


def match_at_open(order: VenueOrder, bar: BarPrices, *, triggered: bool = False) -> Match:
    """Match an immediate order (ioc, fok) against `bar`: what the opening does not give, the bar does not give.

    The limit of a stop-limit order is immediate from its trigger on, wherever in the bar that was.
    """
    if order.type is OrderType.STOP_LIMIT and not triggered:
        return match_order(order, bar)
    if order.type is OrderType.MARKET:
        return Match(bar.open)
    limit = _given(order.limit_price, order)
    is_marketable = bar.open <= limit if order.side is Side.BUY else bar.open >= limit
    return Match(bar.open if is_marketable else None, triggered=triggered)


def match_order(order: VenueOrder, bar: BarPrices, *, triggered: bool = False) -> Match:
    """Match an order against `bar`; `triggered` tells that the stop of a stop-limit order was hit before.

    A trailing stop is matched where its stop stands.
    """
    if order.type is OrderType.MARKET:
        return Match(bar.open)
    if order.type is OrderType.LIMIT:
        return Match(match_limit(order.side, _given(order.limit_price, order), bar))
    if order.type in (OrderType.STOP, OrderType.TRAILING_STOP):
        return Match(match_stop(order.side, _given(order.stop_price, order), bar))
    limit = _given(order.limit_price, order)
    if triggered:
        return Match(match_limit(order.side, limit, bar), triggered=True)
    return match_stop_limit(order.side, _given(order.stop_price, order), limit, bar)


def _given(price: Decimal | None, order: VenueOrder) -> Decimal:
    if price is None:
        raise ValueError(f"order {order.id} is a {order.type} order without its price")
    return price


def collar_stop(order: VenueOrder) -> VenueOrder:
    """Return what Alpaca makes of an order: of a buy stop for stocks a stop-limit order."""
    stop = order.stop_price
    if order.type is not OrderType.STOP or order.side is Side.SELL or stop is None or is_crypto(order.symbol):
        return order
    factor = _WIDE_COLLAR if stop < _COLLAR_PRICE else _COLLAR
    return replace(order, type=OrderType.STOP_LIMIT, limit_price=stop * factor)
