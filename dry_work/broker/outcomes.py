"""What comes of requests to the venue, and what goes out with them; see `gateway`."""

from __future__ import annotations

import threading

import msgspec

from dry_work.errors import BrokerError
from dry_work.orders.groups import Role
from dry_work.orders.model import OrderRequest, VenueOrder

PAIR_WAIT_S = 1.0  # at most so long an exit waits for the other of its pair, when nobody says that none will come


class OrderTaken(msgspec.Struct, frozen=True):
    """The venue has the order; of a group also its legs, by our names for them."""

    client_order_id: str
    order: VenueOrder
    legs: tuple[tuple[str, VenueOrder], ...] = ()


class OrderRefused(msgspec.Struct, frozen=True):
    """The venue does not have the order, and will not."""

    client_order_id: str
    error: BrokerError
    is_fault: bool = False  # not the venue's word on this order: something is wrong, and the run should end


class OrderUnresolved(msgspec.Struct, frozen=True):
    """The venue may or may not have the order."""

    client_order_id: str
    error: BrokerError


class CancelRefused(msgspec.Struct, frozen=True):
    """An order was not canceled."""

    client_order_id: str
    error: BrokerError


class ReplacementTaken(msgspec.Struct, frozen=True):
    """The venue has the order that is to take another's place; whether it does is told by events."""

    client_order_id: str  # of the order as it was submitted
    order: VenueOrder  # the new one


class ReplacementRefused(msgspec.Struct, frozen=True):
    """An order was not replaced, or (`is_unknown`) it may have been."""

    client_order_id: str  # of the order as it was submitted
    new_id: str  # client order id of the one that was to take its place
    error: BrokerError
    is_unknown: bool = False


class OrderLookedUp(msgspec.Struct, frozen=True):
    """The venue's word on an order, None when it does not know it."""

    client_order_id: str
    order: VenueOrder | None
    before: tuple[VenueOrder, ...] = ()  # the orders whose places it has taken, or is to take, the oldest first
    legs: tuple[tuple[str, VenueOrder], ...] = ()


Outcome = (
    OrderTaken | OrderRefused | OrderUnresolved | CancelRefused | OrderLookedUp | ReplacementTaken | ReplacementRefused
)


class LegIntent(msgspec.Struct, frozen=True):
    """An order that goes out as part of another."""

    role: Role
    request: OrderRequest  # under our name for it, which the venue does not know
    number: int
    terms: str = ""  # JSON: the order as the strategy gave it


class PairHold:
    """Keeps an order back until it is known whether it goes out alone or as one of a pair. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._has_begun = self._is_withdrawn = False

    def release(self) -> None:
        """Let the order go."""
        self._released.set()

    def withdraw(self) -> bool:
        """Take the order back; False when it has gone."""
        with self._lock:
            self._is_withdrawn = not self._has_begun
        self._released.set()
        return self._is_withdrawn

    def begin(self) -> bool:
        """Wait for a word; tell whether the order is to go."""
        self._released.wait(PAIR_WAIT_S)
        with self._lock:
            self._has_begun = not self._is_withdrawn
        return self._has_begun
