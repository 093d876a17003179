"""Which order of the venue stands for which of ours, and look-ups by that. On the order worker's thread.

A leg has a client order id of the venue's, a replaced order another id: our name for it stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog

from dry_work.broker.gateway_tasks import SubmitTask
from dry_work.broker.outcomes import OrderLookedUp, OrderTaken
from dry_work.broker.sending import OrderVenue
from dry_work.errors import BrokerError
from dry_work.orders.groups import assign_legs, exit_side
from dry_work.orders.model import OrderClass, OrderStatus, VenueOrder

_CHAIN = 16  # replacements that are followed from one order
_WHOLE_CHAIN = 250  # the same when all are asked for

_Answer = TypeVar("_Answer")
_Retry = Callable[[Callable[[], VenueOrder | None]], VenueOrder | None]
_Legs = tuple[tuple[str, VenueOrder], ...]

_log = structlog.get_logger(__name__)


class OrderNames:
    """The venue's ids by our names, and what follows from them.

    Args:
        venue: asked for orders.
        retry: repeats a request as often as it makes sense.
    """

    def __init__(self, venue: OrderVenue, retry: _Retry) -> None:
        self._venue = venue
        self._retry = retry
        self._ids: dict[str, str] = {}  # the venue's ids by our names
        self._heads: dict[str, str] = {}  # name of the order that a leg went out with
        self._groups: dict[str, SubmitTask] = {}  # what went out with legs
        self._renamed: set[str] = set()  # orders that the venue has under another client order id

    def add(self, task: SubmitTask) -> None:
        """Take note of what is about to be sent."""
        name = task.request.client_order_id
        if task.request.order_class is not OrderClass.SIMPLE:
            self._groups[name] = task
            self._heads.update((leg.request.client_order_id, name) for leg in task.legs)

    def bind(self, name: str, order_id: str) -> None:
        """Take note of the venue's id of an order of ours."""
        self._ids[name] = order_id

    def assign(self, name: str, order_id: str) -> None:
        """Let an order of ours stand for the venue's order `order_id` from now on."""
        self._renamed.add(name)
        self._ids[name] = order_id

    def forget(self, names: Iterable[str]) -> None:
        """Let go of orders that have ended, by our names; from any thread."""
        for name in names:
            self._ids.pop(name, None)
            self._heads.pop(name, None)
            self._groups.pop(name, None)
            self._renamed.discard(name)

    def find_id(self, name: str) -> str | None:
        """Return the venue's id of an order of ours, None when the venue does not have it.

        Raises:
            BrokerError: the venue did not answer.
        """
        known = self._ids.get(name)
        if known is not None:
            return known
        if name in self._heads:
            self.look_up(self._heads[name])
            return self._ids.get(name)
        found = self._retry(lambda: self._venue.order_by_client_id(name))
        return found.id if found is not None else None

    def with_legs(self, taken: OrderTaken) -> OrderTaken:
        """Add the legs of a group; when the answer does not have them they are asked for."""
        name = taken.client_order_id
        legs = self._name_legs(name, taken.order)
        if legs is None:
            return taken
        if len(legs) < len(self._groups[name].legs):
            try:
                found = self._retry(lambda: self._venue.order(taken.order.id))
            except BrokerError as error:
                _log.warning("legs are not known yet", client_order_id=name, error=str(error))
                found = None
            legs = legs if found is None else self._name_legs(name, found) or legs
        return OrderTaken(name, taken.order, legs)

    def heads_of(self, names: Iterable[str]) -> Iterable[str]:
        """Return the orders to ask for: a leg without an id is asked for through the order that it went out with."""
        for name in names:
            yield self._heads.get(name, name) if name not in self._ids else name

    def look_up(self, name: str, *, whole: bool = False) -> OrderLookedUp:
        """Ask for an order, and for the one that stands in its place if it was replaced.

        Args:
            name: ours.
            whole: ask for all orders that it has replaced, not for the last one alone.

        Raises:
            BrokerError: the venue did not answer.
        """
        order_id = self._ids.get(name)
        if order_id is not None and name in self._renamed:
            found = self._retry(lambda: self._venue.order(order_id))
        else:
            found = self._retry(lambda: self._venue.order_by_client_id(name))
        before: list[VenueOrder] = []
        if found is not None and found.replaces and name in self._renamed:
            before += self._predecessors(found, most=_WHOLE_CHAIN if whole else 1)
        while found is not None and found.status == OrderStatus.REPLACED and found.replaced_by:
            before.append(found)
            successor = found.replaced_by
            found = self._retry(lambda successor=successor: self._venue.order(successor))  # type: ignore[misc]
            if len(before) >= (_WHOLE_CHAIN if whole else _CHAIN):
                break
        legs: _Legs = ()
        if found is not None:
            if before and found.id != order_id:
                self.assign(name, found.id)
            self._ids.setdefault(name, found.id)
            if name in self._groups:
                legs = self._find_legs(name, found)
        return OrderLookedUp(name, found, tuple(before), legs)

    def _predecessors(self, order: VenueOrder, *, most: int) -> list[VenueOrder]:
        """Return the orders that an order has replaced, one after the other, the oldest first."""
        found: list[VenueOrder] = []
        replaced = order.replaces
        while replaced and len(found) < most:
            old = self._retry(lambda replaced=replaced: self._venue.order(replaced))  # type: ignore[misc]
            if old is None:
                break
            found.insert(0, old)
            replaced = old.replaces
        return found

    def _find_legs(self, name: str, order: VenueOrder) -> _Legs:
        legs = self._name_legs(name, order)
        if not legs:
            found = self._retry(lambda: self._venue.order(order.id))
            legs = None if found is None else self._name_legs(name, found)
        return legs or ()

    def _name_legs(self, name: str, order: VenueOrder) -> _Legs | None:
        """Return the legs of an order by our names; None when it went out without any."""
        task = self._groups.get(name)
        if task is None:
            return None
        by_role = assign_legs(order.legs, task.request.symbol, exit_side(task.request))
        named = tuple((leg.request.client_order_id, by_role[leg.role]) for leg in task.legs if leg.role in by_role)
        for leg_name, leg in named:
            self.assign(leg_name, leg.id)
        return named
