"""The order worker: one order for an intent, whatever happens on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from dry_work.alpaca.trading import TradingApi
from dry_work.broker.gateway import (
    CancelRefused,
    OrderGateway,
    OrderLookedUp,
    OrderRefused,
    OrderTaken,
    OrderUnresolved,
)
from dry_work.broker.journal import Journal
from dry_work.errors import BrokerUnavailableError, InsufficientFundsError, OrderRejectedError, VenueAuthError
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce
from dry_work.wire.alpaca_rest import encode_error
from tests.ports import find_free_port

from .scripted_venue import NOW_NS, ScriptedVenue, wait_until


class Desk:
    """A gateway at the venue, and what it said."""

    def __init__(self, venue: ScriptedVenue, journal: Journal, *, timeout_s: float = 60.0, **settings: Any) -> None:
        self.outcomes: list[Any] = []
        self.failures: list[BaseException] = []
        self.journal = journal
        self.session = journal.mint_session("a", session="s", started_ns=NOW_NS)
        self.api = TradingApi("KEY", "SECRET", url=venue.url, timeout_s=timeout_s)
        self.gateway = OrderGateway(
            self.api, journal, on_outcome=self.outcomes.append, on_failure=self.failures.append, agent="a",
            session=self.session, consumer="me", **{"first_wait_s": 0.01, "attempts": 4, **settings},
        )  # fmt: skip
        self.gateway.start()
        self.number = 0

    def submit(self, **changes: Any) -> OrderRequest:
        self.number += 1
        request = OrderRequest(
            client_order_id=f"dw-a-s-{self.number}", symbol="AAPL", side=Side.BUY, type=OrderType.MARKET,
            time_in_force=TimeInForce.DAY, qty=Decimal(5),
        )  # fmt: skip
        request = replace(request, **changes)
        self.gateway.submit(request, number=self.number, at_ns=1)
        return request

    def wait(self, count: int = 1) -> Any:
        wait_until(lambda: len(self.outcomes) >= count, f"{count} outcomes")
        return self.outcomes[count - 1]


@pytest.fixture
def desk(venue: ScriptedVenue, journal: Journal) -> Iterator[Desk]:
    desk = Desk(venue, journal)
    yield desk
    desk.gateway.stop()


def test_orders_arrive_in_the_order_of_their_decision(venue: ScriptedVenue, desk: Desk) -> None:
    names = [desk.submit().client_order_id for _ in range(20)]
    desk.wait(20)
    assert [request.client_order_id for request in venue.submits] == names
    assert [outcome.client_order_id for outcome in desk.outcomes] == names
    assert all(isinstance(outcome, OrderTaken) for outcome in desk.outcomes)
    assert desk.journal.unanswered() == []


def test_an_intent_is_on_disk_before_its_request_arrives(venue: ScriptedVenue, desk: Desk, journal: Journal) -> None:
    known: list[bool] = []
    venue.on_submit = lambda request, number: known.append(request.client_order_id in Journal(journal.path).intents())
    desk.submit()
    desk.wait()
    assert known == [True]


@pytest.mark.parametrize("first", ["take_and_drop", "hang"])
def test_an_answer_that_is_lost_is_looked_up_and_not_sent_again(
    venue: ScriptedVenue, journal: Journal, first: str
) -> None:
    desk = Desk(venue, journal, timeout_s=2.0 if first == "hang" else 60.0)

    async def lose(request: OrderRequest, number: int) -> Any:
        if first == "hang":
            venue._take(request)
        return first if number == 1 else None

    venue.on_submit = lose
    request = desk.submit()
    outcome = desk.wait()
    assert isinstance(outcome, OrderTaken)
    assert outcome.order.id == f"taken-{request.client_order_id}"
    assert len(venue.submits) == 1
    assert venue.count("GET", "/v2/orders:by_client_order_id") == 1
    desk.gateway.stop()


@pytest.mark.parametrize(
    "failure", ["drop", (500, encode_error(50010000, "internal")), (504, {}), (429, {"message": "too many requests."})]
)
def test_a_request_that_did_not_get_through_is_repeated(venue: ScriptedVenue, desk: Desk, failure: Any) -> None:
    venue.on_submit = lambda request, number: failure if number < 3 else None
    desk.submit()
    assert isinstance(desk.wait(), OrderTaken)
    assert len(venue.submits) == 3
    assert len(venue.orders) == 1
    # What cannot have been taken needs no look-up.
    looked_up = venue.count("GET", "/v2/orders:by_client_order_id")
    assert looked_up == (0 if isinstance(failure, tuple) and failure[0] == 429 else 2)


def test_a_504_after_acceptance_makes_one_order(venue: ScriptedVenue, desk: Desk) -> None:
    def accept(request: OrderRequest, number: int) -> Any:
        venue._take(request)
        return 504, {}

    venue.on_submit = accept
    desk.submit()
    assert isinstance(desk.wait(), OrderTaken)
    assert len(venue.submits) == 1


def test_an_order_that_overtakes_its_look_up_is_found_by_its_id(venue: ScriptedVenue, desk: Desk) -> None:
    """The first request arrives only after the look-up, so the second is refused as a duplicate."""

    def late(request: OrderRequest, number: int) -> Any:
        if number == 1:
            return "drop"
        venue._take(request)
        return 422, encode_error(40010001, "client_order_id must be unique")

    venue.on_submit = late
    desk.submit()
    assert isinstance(desk.wait(), OrderTaken)
    assert len(venue.submits) == 2


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (403, 40310000, "insufficient buying power", InsufficientFundsError),
        (403, 40310000, "account is not allowed to short", OrderRejectedError),
        (422, 42210000, "invalid symbol", OrderRejectedError),
        (400, 40010000, "request body format is invalid", OrderRejectedError),
    ],
)
def test_a_refusal_is_final(
    venue: ScriptedVenue, desk: Desk, status: int, code: int, message: str, kind: type[Exception]
) -> None:
    venue.on_submit = lambda request, number: (status, encode_error(code, message))
    desk.submit()
    outcome = desk.wait()
    assert isinstance(outcome, OrderRefused)
    assert not outcome.is_fault
    assert type(outcome.error) is kind
    assert (outcome.error.message, outcome.error.code, outcome.error.http_status) == (message, code, status)
    assert len(venue.submits) == 1


def test_refused_credentials_are_a_fault(venue: ScriptedVenue, desk: Desk) -> None:
    venue.credentials_are_good = False
    desk.submit()
    outcome = desk.wait()
    assert isinstance(outcome, OrderRefused)
    assert outcome.is_fault
    assert isinstance(outcome.error, VenueAuthError)
    assert venue.count("POST", "/v2/orders") == 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"symbol": "IBM"}, "symbol IBM instead of AAPL"),
        ({"side": Side.SELL}, "side sell instead of buy"),
        ({"qty": Decimal(6)}, "quantity 6 instead of 5"),
        ({"created_ns": NOW_NS - 3 * 3_600 * 10**9}, "a time before this session"),
    ],
)
def test_another_order_under_our_id_is_not_adopted(
    venue: ScriptedVenue, desk: Desk, changes: dict[str, Any], word: str
) -> None:
    def other(request: OrderRequest, number: int) -> Any:
        venue._take(request)
        venue.update(request.client_order_id, **changes)
        return "drop"

    venue.on_submit = other
    desk.submit()
    outcome = desk.wait()
    assert isinstance(outcome, OrderRefused)
    assert outcome.is_fault
    assert word in outcome.error.message
    assert len(venue.submits) == 1


def test_an_outcome_that_stays_unknown_is_not_called_rejected(venue: ScriptedVenue, desk: Desk) -> None:
    venue.on_submit = lambda request, number: (500, {})
    request = desk.submit()
    outcome = desk.wait()
    assert isinstance(outcome, OrderUnresolved)
    assert desk.journal.unanswered() == [request.client_order_id]


def test_a_venue_that_is_gone_never_got_the_order(venue: ScriptedVenue, journal: Journal) -> None:
    desk = Desk(venue, journal)
    desk.gateway.stop()
    gone = Desk.__new__(Desk)
    gone.outcomes, gone.failures, gone.number = [], [], 0
    port = find_free_port()
    gone.gateway = OrderGateway(
        TradingApi("KEY", "SECRET", url=f"http://127.0.0.1:{port}"), journal,
        on_outcome=gone.outcomes.append, on_failure=gone.failures.append, agent="a", session=desk.session,
        consumer="me", first_wait_s=0.01, attempts=3,
    )  # fmt: skip
    gone.gateway.start()
    gone.submit()
    outcome = gone.wait()
    assert isinstance(outcome, OrderRefused)
    assert isinstance(outcome.error, BrokerUnavailableError)
    assert not outcome.is_fault
    gone.gateway.stop()


def test_an_order_that_waited_too_long_is_not_sent(venue: ScriptedVenue, journal: Journal) -> None:
    desk = Desk(venue, journal, order_age_s=0.0)
    desk.submit()
    outcome = desk.wait()
    assert isinstance(outcome, OrderRefused)
    assert "not sent within 0 s" in outcome.error.message
    assert venue.submits == []
    desk.gateway.stop()


def test_an_order_that_cannot_be_journalled_does_not_leave(venue: ScriptedVenue, desk: Desk, journal: Journal) -> None:
    journal.close()
    desk.submit()
    outcome = desk.wait()
    assert isinstance(outcome, OrderRefused)
    assert outcome.is_fault
    assert str(journal.path) in outcome.error.message
    assert venue.submits == []


def test_a_cancellation_goes_to_the_venues_id_behind_its_order(venue: ScriptedVenue, desk: Desk) -> None:
    request = desk.submit()
    desk.gateway.cancel(request.client_order_id, at_ns=1)
    wait_until(lambda: venue.count("DELETE", f"/v2/orders/taken-{request.client_order_id}"), "the cancellation")
    assert len(desk.outcomes) == 1


def test_the_cancellation_of_an_order_that_is_not_there_is_refused(venue: ScriptedVenue, desk: Desk) -> None:
    venue.on_submit = lambda request, number: (422, encode_error(42210000, "no"))
    request = desk.submit()
    desk.gateway.cancel(request.client_order_id, at_ns=1)
    assert isinstance(desk.wait(2), CancelRefused)
    assert venue.count("DELETE", "/") == 0


def test_a_look_up_tells_what_the_venue_knows(venue: ScriptedVenue, desk: Desk) -> None:
    request = desk.submit()
    desk.wait()
    desk.gateway.look_up([request.client_order_id, "dw-a-s-99"])
    found, missing = desk.wait(2), desk.wait(3)
    assert isinstance(found, OrderLookedUp)
    assert found.order is not None
    assert missing == OrderLookedUp("dw-a-s-99", None)


def test_a_slice_that_cannot_be_reported_is_a_failure(venue: ScriptedVenue, desk: Desk) -> None:
    venue.credentials_are_good = False
    desk.gateway.report(3)
    wait_until(lambda: desk.failures, "the failure")
    assert "slice 3 could not be reported done" in str(desk.failures[0])


def test_what_is_queued_is_sent_before_the_worker_stops(venue: ScriptedVenue, desk: Desk) -> None:
    for _ in range(10):
        desk.submit()
    desk.gateway.stop(5.0)
    desk.gateway.stop()
    assert len(venue.submits) == 10


def test_a_worker_in_a_wait_stops_at_once(venue: ScriptedVenue, journal: Journal) -> None:
    venue.on_submit = lambda request, number: (429, {"message": "slow down"})
    desk = Desk(venue, journal, first_wait_s=5.0)
    desk.submit()
    wait_until(lambda: venue.submits, "the first try")
    desk.gateway.stop(0.1)
    wait_until(lambda: not any(thread.name == "order worker" for thread in threading.enumerate()), "it has ended")
    assert len(venue.submits) == 1
    assert isinstance(desk.wait(), OrderRefused)
