"""A venue with one account, asked in few words."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from dry_work.clock import MINUTE_NS
from dry_work.exchange.venue import RefusedError, RuleSet, Venue
from dry_work.market.messages import Bar
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce, TradeEvent, VenueOrder

KEY = "PKTEST"
ASSETS = ("SPY", "IBM", "BTC/USD")

Prices = tuple[float, float, float, float] | float


class Desk:
    """Places orders with short names and keeps the events told so far."""

    def __init__(
        self,
        rules: RuleSet,
        *,
        cash: str = "10000",
        now_ns: int,
        is_open: Callable[[int], bool] = lambda now_ns: True,
        session_close_ns: Callable[[int], int] = lambda now_ns: now_ns,
        **options: Any,
    ) -> None:
        self.events: list[TradeEvent] = []
        self._seen = 0
        self._number = 0
        self.venue = Venue(
            rules=rules,
            assets=ASSETS,
            emit=lambda key_id, event: self.events.append(event),
            now_ns=now_ns,
            is_open=is_open,
            session_close_ns=session_close_ns,
            **options,
        )
        self.venue.open_account(KEY, cash=Decimal(cash))

    def move(self, end_ns: int, **bars: Prices) -> list[TradeEvent]:
        """Advance to `end_ns` with minute bars (BTC for BTC/USD; one number for a flat bar); return new events."""
        self.venue.advance(end_ns, [make_bar(symbol, end_ns, prices) for symbol, prices in bars.items()])
        return self.news()

    def step(self, **bars: Prices) -> list[TradeEvent]:
        """Advance by a minute."""
        return self.move(self.venue.now_ns + MINUTE_NS, **bars)

    def news(self) -> list[TradeEvent]:
        """Return the events since the last call."""
        news = self.events[self._seen :]
        self._seen = len(self.events)
        return news

    def names(self) -> list[str]:
        """Return the names of the events since the last call."""
        return [event.event for event in self.news()]

    def buy(self, qty: str, symbol: str = "SPY", /, **asked: Any) -> VenueOrder:
        """Submit an order to buy; at market unless `limit` or `stop` are given, gtc unless `day`."""
        return self.venue.submit(KEY, self.ask(Side.BUY, qty, symbol, **asked))

    def sell(self, qty: str, symbol: str = "SPY", /, **asked: Any) -> VenueOrder:
        """Submit an order to sell."""
        return self.venue.submit(KEY, self.ask(Side.SELL, qty, symbol, **asked))

    def refused(self, side: Side, qty: str | None, symbol: str = "SPY", /, **asked: Any) -> RefusedError:
        """Submit an order that must be refused without a trace."""
        orders = self.venue.orders(KEY)
        with pytest.raises(RefusedError) as caught:
            self.venue.submit(KEY, self.ask(side, qty, symbol, **asked))
        assert self.venue.orders(KEY) == orders
        assert self.news() == []
        return caught.value

    def ask(
        self,
        side: Side,
        qty: str | None,
        symbol: str,
        /,
        *,
        limit: str | None = None,
        stop: str | None = None,
        day: bool = False,
        **fields: Any,
    ) -> OrderRequest:
        """Build a request; `fields` go over what follows from the rest."""
        self._number += 1
        kinds = {
            (False, False): OrderType.MARKET,
            (True, False): OrderType.LIMIT,
            (False, True): OrderType.STOP,
            (True, True): OrderType.STOP_LIMIT,
        }
        built: dict[str, Any] = {
            "client_order_id": f"c-{self._number}",
            "symbol": symbol,
            "side": side,
            "type": kinds[limit is not None, stop is not None],
            "time_in_force": TimeInForce.DAY if day else TimeInForce.GTC,
            "qty": None if qty is None else Decimal(qty),
            "limit_price": None if limit is None else Decimal(limit),
            "stop_price": None if stop is None else Decimal(stop),
        }
        return OrderRequest(**built | fields)

    def cancel_refused(self, order_id: str) -> RefusedError:
        """Cancel an order that cannot be canceled."""
        with pytest.raises(RefusedError) as caught:
            self.venue.cancel(KEY, order_id)
        assert self.news() == []
        return caught.value

    def order(self, order: VenueOrder) -> VenueOrder:
        """Return the order as it is now."""
        found = self.venue.order(KEY, order.id)
        assert found is not None
        return found

    @property
    def cash(self) -> Decimal:
        return self.venue.account(KEY).cash

    def qty(self, symbol: str = "SPY") -> Decimal:
        """Return the position."""
        return next((found.qty for found in self.venue.positions(KEY) if found.symbol == symbol), Decimal(0))


def make_bar(symbol: str, end_ns: int, prices: Prices) -> Bar:
    """Build a minute bar from open, high, low, close or from the one price of a flat bar."""
    open_, high, low, close = prices if isinstance(prices, tuple) else (prices,) * 4
    name = "BTC/USD" if symbol == "BTC" else symbol
    return Bar(symbol=name, ts_event_ns=end_ns - MINUTE_NS, open=open_, high=high, low=low, close=close, volume=1.0)


def tell(events: list[TradeEvent]) -> list[tuple[str, str]]:
    """Return name and status of each event."""
    return [(event.event, event.order.status) for event in events]
