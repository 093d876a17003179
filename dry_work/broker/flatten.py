"""Canceling orders and closing positions straight at the venue. Used by the trader's brake and by other processes.

Every request may be repeated, also by several processes at the same time: a closing order has an id that follows from
the flattening, its symbol and how many there were before it, and the venue takes an id once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Protocol

import msgspec
import structlog

from dry_work.broker.tickets import position_key
from dry_work.errors import BrokerError, OrderRejectedError, RateLimitedError
from dry_work.market.symbols import is_crypto
from dry_work.orders.client_ids import build_client_order_id, parse_client_order_id
from dry_work.orders.exposure import Holding, Portfolio, describe_open_order
from dry_work.orders.model import TERMINAL, OrderRequest, OrderType, Side, TimeInForce, VenueOrder, VenuePosition

STEP_S = 0.25
LOOKS_NEEDED = 2  # in a row, without an order or position: what was under way may arrive after the first

_log = structlog.get_logger(__name__)


class FlattenVenue(Protocol):
    """What is asked of the venue; see `dry_work.alpaca.venue_api.VenueApi`."""

    def positions(self) -> list[VenuePosition]: ...
    def open_orders(self) -> list[VenueOrder]: ...
    def cancel(self, order_id: str) -> None: ...
    def submit(self, request: OrderRequest) -> VenueOrder: ...
    def order_by_client_id(self, client_order_id: str) -> VenueOrder | None: ...


class Closing(msgspec.Struct, frozen=True):
    """An order that closes a position."""

    symbol: str
    side: Side
    qty: Decimal


class Flattening:
    """Cancels all orders of an account and closes all its positions, step by step. One thread at a time.

    Args:
        agent: part of the ids of the closing orders.
        token: of this flattening, part of the ids too.
    """

    def __init__(self, *, agent: str, token: str) -> None:
        self.canceled: list[str] = []  # symbols of the orders that were canceled
        self.closings: list[Closing] = []  # orders that were sent
        self.positions: list[VenuePosition] = []  # left at the last step
        self.orders: list[VenueOrder] = []  # open at the last step
        self.problem = ""  # of the last step
        self._agent = agent
        self._token = token
        self._rounds: dict[str, int] = {}
        self._waits: set[str] = set()
        self._asked: set[str] = set()
        self._looks = 0

    @property
    def is_done(self) -> bool:
        """Tell whether nothing is left, seen often enough."""
        return self._looks >= LOOKS_NEEDED

    def describe(self) -> str:
        """Return what was done in a few words."""
        closed = ", ".join(f"{closing.side.value} {closing.qty:f} {closing.symbol}" for closing in self.closings)
        canceled = f"{len(self.canceled)} order{'' if len(self.canceled) == 1 else 's'}"
        return f"canceled {canceled}; closing orders: {closed or 'none'}"

    def look_again(self) -> None:
        """Let what was seen so far not count: an order may have been under way to the venue."""
        self._looks = 0

    def step(self, venue: FlattenVenue) -> bool:
        """Do what can be done now; tell whether nothing is left.

        Raises:
            BrokerError: the venue did not answer; another step may go on.
        """
        self.problem = ""
        if self._cancel(venue):
            self._looks = 0
            return False
        self.positions = [held for held in venue.positions() if held.qty]
        for held in self.positions:
            self._close(venue, held)
        self._looks = 0 if self.positions or self.orders else self._looks + 1
        return self.is_done

    def _cancel(self, venue: FlattenVenue) -> bool:
        """Cancel all orders but our closing ones; tell whether some of them are still there."""
        for attempt in range(2):
            self.orders = venue.open_orders()
            others = [order for order in self.orders if not self._is_ours(order)]
            if not others or attempt:
                break
            self._looks = 0
            for order in others:
                try:
                    venue.cancel(order.id)
                except OrderRejectedError as error:
                    self.problem = f"{order.symbol}: the order cannot be canceled: {error.message}"
                    continue  # it has ended meanwhile, or the next look finds it again
                if order.id not in self._asked:
                    self._asked.add(order.id)
                    self.canceled.append(order.symbol)
        if not others:
            self.problem = ""
        return bool(others)

    def _is_ours(self, order: VenueOrder) -> bool:
        parts = parse_client_order_id(order.client_order_id)
        return parts is not None and parts.agent == self._agent and parts.session.startswith(f"flat{self._token}_")

    def _close(self, venue: FlattenVenue, held: VenuePosition) -> None:
        key = position_key(held.symbol)
        name = build_client_order_id(
            self._agent,
            f"flat{self._token}_{''.join(letter if letter.isalnum() else '_' for letter in key)}",
            self._rounds.get(key, 0) + 1,
        )
        known = venue.order_by_client_id(name)
        if known is not None:
            if known.status in TERMINAL and key not in self._waits:
                self._waits.add(key)  # the position may be from before its last fill
            elif known.status in TERMINAL:
                self._waits.discard(key)
                self._rounds[key] = self._rounds.get(key, 0) + 1
                if known.status != "filled":
                    reason = f": {known.reject_reason}" if known.reject_reason else ""
                    self.problem = f"{held.symbol}: the closing order was {known.status}{reason}"
            return
        side, qty = (Side.SELL if held.qty > 0 else Side.BUY), abs(held.qty)
        try:
            venue.submit(
                OrderRequest(
                    client_order_id=name,
                    symbol=held.symbol,
                    side=side,
                    type=OrderType.MARKET,
                    time_in_force=TimeInForce.GTC if is_crypto(held.symbol) else TimeInForce.DAY,
                    qty=qty,
                )
            )
        except OrderRejectedError as error:
            if "unique" not in error.message:  # another process was quicker with it
                self.problem = f"{held.symbol}: the position cannot be closed: {error.message}"
            return
        self.closings.append(Closing(held.symbol, side, qty))


def run_flattening(
    flattening: Flattening,
    venue: FlattenVenue,
    *,
    deadline_s: float,
    may_go_on: Callable[[], bool],
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Step until nothing is left; False when time ran out or `may_go_on` says no."""
    while True:
        wait_s = STEP_S
        try:
            if flattening.step(venue):
                return True
        except BrokerError as error:
            if not error.retryable:
                raise
            flattening.problem = str(error)
            if isinstance(error, RateLimitedError) and error.retry_after_s:
                wait_s = min(error.retry_after_s, 5.0)
        if time.monotonic() + wait_s > deadline_s or not may_go_on():
            return False
        sleep(wait_s)


def cancel_entries(venue: FlattenVenue, *, agent: str, everything: bool = False) -> list[str]:
    """Cancel the agent's open orders that can do more than shrink a position; return their symbols.

    Args:
        venue: asked for positions and orders of the account.
        agent: orders of others are left alone, but count.
        everything: cancel those as well that only shrink one.

    Raises:
        BrokerError: the venue did not answer.
    """
    orders = sorted(venue.open_orders(), key=lambda order: order.created_ns)
    own = {
        order.id: order
        for order in orders
        if (parts := parse_client_order_id(order.client_order_id)) is not None and parts.agent == agent
    }
    if not own:
        return []
    holdings = {position_key(held.symbol): Holding(held.qty, held.avg_entry_price) for held in venue.positions()}
    found = (msgspec.structs.replace(o, symbol=position_key(o.symbol)) for x in orders for o in describe_open_order(x))
    entries = list(own) if everything else Portfolio(Decimal(0), holdings, found).entries()
    canceled = []
    for order_id in entries:
        if order_id not in own:
            continue
        try:
            venue.cancel(order_id)
        except OrderRejectedError as error:
            _log.info("an order was not canceled", symbol=own[order_id].symbol, reason=error.message)
            continue
        canceled.append(own[order_id].symbol)
    return canceled
