"""Sending an order or a replacement until it is known what became of it. On the order worker's thread.

What may have been taken, because of a time-out or a 5xx, is looked up by its client order id before it is sent again,
so that an intent makes at most one order. What the venue refused is never repeated.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

from dry_work.backoff import Backoff
from dry_work.broker.gateway_tasks import ReplaceTask
from dry_work.broker.outcomes import OrderRefused, OrderTaken, OrderUnresolved, ReplacementRefused, ReplacementTaken
from dry_work.errors import (
    BrokerError,
    BrokerUnavailableError,
    OrderRejectedError,
    OutcomeUnknownError,
    RateLimitedError,
    RiskRefusedError,
    VenueAuthError,
)
from dry_work.orders.model import OrderRequest, Replacement, VenueOrder
from dry_work.orders.risk import Breach
from dry_work.pulse import give_pulse

LONGEST_WAIT_S = 5.0
# A clock may be wrong by a time zone's hour; ids of sessions are random, so that no order of an hour ago can be meant.
CLOCK_TOLERANCE_NS = 2 * 3_600 * 1_000_000_000  # between the venue's clock and its orders' times

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class OrderVenue(Protocol):
    """What the worker asks of the venue; see `dry_work.alpaca.trading.TradingApi`."""

    def submit(self, request: OrderRequest) -> VenueOrder: ...
    def order(self, order_id: str) -> VenueOrder | None: ...
    def replace(self, order_id: str, change: Replacement) -> VenueOrder: ...
    def order_by_client_id(self, client_order_id: str) -> VenueOrder | None: ...
    def cancel(self, order_id: str) -> None: ...
    def report_slice(self, number: int, *, consumer: str, orders: int) -> None: ...
    def close(self) -> None: ...


class StoppedError(Exception):
    """The worker was told to give up."""


class OrderSender:
    """Sends, looks up and sends again.

    Args:
        started_ns: venue time at which the session began: an order that is older is not adopted.
        attempts: of one request.
        order_age_s: an order that could not be sent for so long is refused instead.
        judge: returns why an order must not leave, by its client order id; asked right before each request.
        find_order_id: returns the venue's id of an order, None when the venue does not have it.
    """

    def __init__(
        self,
        venue: OrderVenue,
        *,
        started_ns: int,
        rng: random.Random,
        attempts: int,
        first_wait_s: float,
        order_age_s: float,
        judge: Callable[[str], Breach | None],
        find_order_id: Callable[[str], str | None],
    ) -> None:
        self.is_sending = False  # an order is under way
        self.abandon = threading.Event()
        self._venue = venue
        self._started_ns = started_ns
        self._rng = rng
        self._attempts = attempts
        self._first_wait_s = first_wait_s
        self._order_age_s = order_age_s
        self._judge = judge
        self._find_order_id = find_order_id

    def send(self, request: OrderRequest, since_s: float) -> OrderTaken | OrderRefused | OrderUnresolved:
        """Send an order; `since_s` is the monotonic time of the decision."""
        name = request.client_order_id
        backoff = self._new_backoff()
        last: BrokerError = OutcomeUnknownError("the order worker was stopped")
        is_unknown = False  # a request may have arrived whose answer did not
        for attempt in range(self._attempts):
            if attempt:
                try:
                    self._wait(backoff, last)
                except StoppedError:
                    break
            if is_unknown:
                try:
                    found = self._venue.order_by_client_id(name)
                except BrokerError as error:
                    last = error
                    continue
                if found is not None:
                    return self._adopt(request, found)
                is_unknown = False
            if time.monotonic() - since_s >= self._order_age_s:
                # Prices have moved on since the decision.
                reason = f"not sent within {self._order_age_s:g} s: {last.message if attempt else 'others came first'}"
                return OrderRefused(name, BrokerUnavailableError(reason))
            self.is_sending = True  # before the question, so that nobody who turns the brake on misses this order
            try:
                breach = self._judge(name)
                if breach is not None:
                    return OrderRefused(name, RiskRefusedError(str(breach), reject_code=breach.code))
                return OrderTaken(name, self._venue.submit(request))
            except OutcomeUnknownError as error:
                is_unknown, last = True, error
            except (RateLimitedError, BrokerUnavailableError) as error:
                last = error
            except OrderRejectedError as error:
                if not _says_duplicate(error):
                    return OrderRefused(name, error)
                # It is there: an answer was lost on the way, or the id is not ours. The look-up tells.
                is_unknown, last = True, OutcomeUnknownError(error.message, code=error.code)
            except VenueAuthError as error:
                return OrderRefused(name, error, is_fault=True)
            finally:
                self.is_sending = False
            _log.warning("order is not through yet", client_order_id=name, attempt=attempt + 1, error=str(last))
        if is_unknown:
            return OrderUnresolved(name, last)
        return OrderRefused(name, BrokerUnavailableError(f"not sent: {last.message}", http_status=None))

    def send_replacement(self, task: ReplaceTask) -> ReplacementTaken | ReplacementRefused:
        """Ask for a replacement until its outcome is known: the new order's id is used once."""
        name, new_id = task.client_order_id, task.request.client_order_id
        backoff = self._new_backoff()
        last: BrokerError = OutcomeUnknownError("the order worker was stopped")
        is_unknown = False
        for attempt in range(self._attempts):
            try:
                if attempt:
                    self._wait(backoff, last)
                if is_unknown:
                    found = self._venue.order_by_client_id(new_id)
                    if found is not None:
                        return ReplacementTaken(name, found)
                    is_unknown = False
                order_id = self._find_order_id(name)
                if order_id is None:
                    return ReplacementRefused(name, new_id, OrderRejectedError("the venue does not have the order"))
                self.is_sending = True  # before the question, as in `send`
                breach = self._judge(new_id)
                if breach is not None:
                    error = RiskRefusedError(str(breach), reject_code=breach.code)
                    return ReplacementRefused(name, new_id, error)
                return ReplacementTaken(name, self._venue.replace(order_id, task.change))
            except StoppedError:
                break
            except OutcomeUnknownError as error:
                is_unknown, last = True, error
            except (RateLimitedError, BrokerUnavailableError) as error:
                last = error
            except BrokerError as error:
                if not _says_duplicate(error):
                    return ReplacementRefused(name, new_id, error)
                is_unknown, last = True, OutcomeUnknownError(error.message, code=error.code)
            finally:
                self.is_sending = False
            _log.warning("replacement is not through yet", client_order_id=name, attempt=attempt + 1, error=str(last))
        return ReplacementRefused(name, new_id, last, is_unknown=is_unknown)

    def retry(self, call: Callable[[], _Answer]) -> _Answer:
        """Repeat a request that may safely be repeated."""
        backoff = self._new_backoff()
        for attempt in range(self._attempts):
            try:
                return call()
            except BrokerError as error:
                if not error.retryable or attempt + 1 == self._attempts:
                    raise
                self._wait(backoff, error)
        raise AssertionError("unreachable")

    def _adopt(self, request: OrderRequest, found: VenueOrder) -> OrderTaken | OrderRefused:
        """Take an order that the venue has under our id, if it is the one that was sent."""
        name = request.client_order_id
        differences = list_differences(request, found)
        if found.created_ns and found.created_ns < self._started_ns - CLOCK_TOLERANCE_NS:
            differences.append("a time before this session")
        if not differences:
            return OrderTaken(name, found)
        error = OrderRejectedError(
            f"the venue has another order under the id {name}, with {', '.join(differences)}; it is not adopted"
        )
        return OrderRefused(name, error, is_fault=True)

    def _new_backoff(self) -> Backoff:
        return Backoff(self._rng, initial_s=self._first_wait_s, cap_s=LONGEST_WAIT_S, jitter=0.5)

    def _wait(self, backoff: Backoff, error: BrokerError) -> None:
        wait_s = backoff.next_wait_s(time.monotonic())
        if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
            wait_s = max(wait_s, min(error.retry_after_s, 60.0))
        give_pulse()
        if self.abandon.wait(wait_s):
            raise StoppedError


def list_differences(request: OrderRequest, found: VenueOrder) -> list[str]:
    """Return in what an order of the venue differs from a request of the same client order id."""
    return [
        f"{what} {theirs} instead of {ours}"
        for what, ours, theirs in (
            ("symbol", request.symbol, found.symbol),
            ("side", request.side.value, found.side.value),
            ("quantity", request.qty, found.qty if request.notional is None else None),
            ("value", request.notional, found.notional if request.notional is not None else None),
            ("type", request.type.value, found.type.value),
        )
        if ours != theirs
    ]


def _says_duplicate(error: BrokerError) -> bool:
    return error.http_status == 422 and "client_order_id" in error.message and "unique" in error.message
