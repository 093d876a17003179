"""A stream of order updates that answers pings and keeps updates back: the hub finds that out, and goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest

from . import alpaca_upstream
from .test_hub_broker_events import QUICK as QUICK_BROKER
from .test_hub_broker_events import Stack as BrokerStack
from .test_hub_orders import QUICK, Stack

# Nothing but a check may end a session here, however busy the machine is.
PATIENT = {"silence_timeout_s": 120.0, "auth_timeout_s": 60.0, "open_timeout_s": 60.0}
CHECKED = msgspec.structs.replace(QUICK, order_check_s=0.2, order_grace_s=2.0, **PATIENT)
CHECKED_BROKER = msgspec.structs.replace(QUICK_BROKER, order_check_s=0.2, order_grace_s=2.0, **PATIENT)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for long: a check waits for its grace, and the history of events until it is silent."""
    alpaca_upstream.wait_until(condition, what, 90.0)


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


@pytest.fixture
def broker_stack() -> Iterator[BrokerStack]:
    stack = BrokerStack()
    yield stack
    stack.close()


def wait_settled(stack: Stack | BrokerStack) -> None:
    """Wait until the hub knows where the account stands, and what comes is told at once."""
    assert stack.hub is not None
    relay = stack.hub._order_connections["orders.paper"].relay
    wait_until(
        lambda: stack.feed().state == "connected" and not relay.ledger.is_new and relay._waiting is None,
        "the hub has caught up",
    )


@pytest.mark.parametrize("has_history", [True, False])
def test_updates_that_a_silent_stream_keeps_back_are_found_and_told_once(stack: Stack, has_history: bool) -> None:
    stack.start(timing=CHECKED)
    wait_settled(stack)
    if not has_history:
        stack.set_fault(on="http", kind="status", status=404, path="/v2/events", times=None)
    first = stack.submit()
    wait_until(lambda: ("new", "order-1") in stack.told(), "the stream tells")
    before = len(stack.told())
    stack.set_fault(on="trades", kind="silent")
    stack.client.cancel_order_by_id(first.id)
    stack.submit()
    missed = {("canceled", "order-1"), ("new", "order-2")}
    wait_until(lambda: missed <= set(stack.told()), "what it kept back is found")
    (canceled,) = (event for event in stack.replay(before) if event.item["event"] == "canceled")
    assert canceled.event_id.startswith("dw-") is not has_history
    wait_until(lambda: stack.feed().reconnects and stack.feed().state == "connected", "the stream is opened anew")
    assert stack.feed().ends["behind"]
    stack.submit()
    wait_until(lambda: ("new", "order-3") in stack.told(), "the new one tells")
    wait_settled(stack)
    assert max(Counter(stack.told()).values()) == 1


def test_one_update_that_is_left_out_of_a_stream_that_goes_on_is_found(stack: Stack) -> None:
    stack.start(timing=CHECKED)
    wait_settled(stack)
    first = stack.submit()
    wait_until(lambda: ("new", "order-1") in stack.told(), "the stream tells")
    stack.set_fault(on="events", kind="drop", path="canceled")
    stack.client.cancel_order_by_id(first.id)
    stack.submit()
    wait_until(lambda: ("new", "order-2") in stack.told(), "and goes on to tell")
    wait_until(lambda: ("canceled", "order-1") in stack.told(), "what it left out is found")
    wait_settled(stack)
    assert max(Counter(stack.told()).values()) == 1


def test_one_update_that_a_stream_of_the_broker_api_leaves_out_is_found(broker_stack: BrokerStack) -> None:
    stack = broker_stack
    stack.start(timing=CHECKED_BROKER)
    wait_settled(stack)
    first = stack.submit("one")
    wait_until(lambda: ("new", "one") in stack.told(), "the stream tells")
    stack.set_fault(on="events", kind="drop", path="canceled")
    stack.cancel(first)
    stack.submit("two")
    wait_until(lambda: ("new", "two") in stack.told(), "and goes on to tell")
    wait_until(lambda: ("canceled", "one") in stack.told(), "what it left out is found")
    wait_settled(stack)
    assert max(Counter(stack.told()).values()) == 1


def test_a_silent_stream_of_the_broker_api_is_found_out_too(broker_stack: BrokerStack) -> None:
    stack = broker_stack
    stack.start(timing=CHECKED_BROKER)
    wait_settled(stack)
    first = stack.submit("one")
    wait_until(lambda: ("new", "one") in stack.told(), "the stream tells")
    stack.set_fault(on="trades", kind="silent")
    stack.cancel(first)
    wait_until(lambda: ("canceled", "one") in stack.told(), "what it kept back is found")
    wait_until(lambda: stack.feed().reconnects, "the stream is opened anew")
    stack.submit("two")
    wait_until(lambda: ("new", "two") in stack.told(), "the new one tells")
    assert stack.feed().ends["behind"]
    wait_settled(stack)
    assert max(Counter(stack.told()).values()) == 1
