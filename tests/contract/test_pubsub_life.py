"""What ends with time or with the server: unused subscriptions, old messages, streams and ports.

On our server only, whose clock the tests move by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import structlog
from google.api_core import exceptions
from google.protobuf.duration_pb2 import Duration

from dry_work.clock import SECOND_NS, ManualClock
from dry_work.embedded.pubsub import EmbeddedPubSub
from tests.ports import find_free_port

from .waits import TIMEOUT_S, wait_until

if TYPE_CHECKING:
    from conftest import Pubsub


@pytest.fixture
def timed(make_pubsub: Callable[[str], Pubsub]) -> Iterator[tuple[Pubsub, ManualClock]]:
    """Clients on our server, whose clock is moved by the test."""
    clock = ManualClock(1_700_000_000 * SECOND_NS)
    server = EmbeddedPubSub(clock=clock)
    server.start()
    yield make_pubsub(server.target), clock
    server.stop()


# Detached, unused and old: time is moved by hand


def test_a_stream_of_a_subscription_that_is_detached_ends(ours: Pubsub) -> None:
    ours.create()
    ours.publish(b"x")
    with ours.open_stream() as stream:
        wait_until(lambda: stream.received)
        ours.publisher.detach_subscription(request={"subscription": ours.subscription})
        assert stream.ended.wait(TIMEOUT_S)
        assert isinstance(stream.error, exceptions.FailedPrecondition)
    with ours.open_stream() as stream:
        assert stream.ended.wait(TIMEOUT_S)
        assert isinstance(stream.error, exceptions.FailedPrecondition)


def test_a_subscription_that_nobody_uses_expires(timed: tuple[Pubsub, ManualClock]) -> None:
    pubsub, clock = timed
    pubsub.create(expiration_policy={"ttl": Duration(seconds=86_400)})
    clock.advance(86_399)
    pubsub.publish(b"x")
    assert [one.message.data for one in pubsub.pull_all(1)] == [b"x"]
    clock.advance(86_399)
    assert pubsub.subscriber.get_subscription(subscription=pubsub.subscription)
    clock.advance(1)
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.get_subscription(subscription=pubsub.subscription)
    assert list(pubsub.publisher.list_topic_subscriptions(topic=pubsub.topic)) == []


def test_a_subscription_with_an_open_stream_does_not_expire(timed: tuple[Pubsub, ManualClock]) -> None:
    pubsub, clock = timed
    pubsub.create(expiration_policy={"ttl": Duration(seconds=86_400)})
    with pubsub.open_stream() as stream:
        pubsub.publish(b"1")
        wait_until(lambda: stream.received)
        clock.advance(100 * 86_400)
        pubsub.publish(b"2")
        wait_until(lambda: b"2" in stream.data)
    assert pubsub.subscriber.get_subscription(subscription=pubsub.subscription)


def test_an_unacknowledged_message_is_forgotten_after_the_retention(timed: tuple[Pubsub, ManualClock]) -> None:
    pubsub, clock = timed
    pubsub.create(message_retention_duration=Duration(seconds=600))
    pubsub.publish(b"old")
    clock.advance(300)
    pubsub.publish(b"new")
    clock.advance(301)
    assert [one.message.data for one in pubsub.pull_all(1)] == [b"new"]


def test_deadlines_and_backoffs_follow_the_clock_of_the_server(timed: tuple[Pubsub, ManualClock]) -> None:
    pubsub, clock = timed
    pubsub.create(retry_policy={"minimum_backoff": Duration(seconds=100)}, ack_deadline_seconds=10)
    pubsub.publish(b"x")
    pubsub.pull_all(1)
    clock.advance(10)
    assert pubsub.pull(timeout_s=1.5) == []  # its deadline has passed, its rest begins
    clock.advance(99)
    assert pubsub.pull(timeout_s=1.5) == []
    clock.advance(1)
    assert [one.message.data for one in pubsub.pull_all(1)] == [b"x"]


def test_a_snapshot_expires_after_seven_days(timed: tuple[Pubsub, ManualClock]) -> None:
    pubsub, clock = timed
    pubsub.create(expiration_policy={})
    name = f"projects/{pubsub.project}/snapshots/evening"
    pubsub.subscriber.create_snapshot(name=name, subscription=pubsub.subscription)
    clock.advance(7 * 86_400 - 1)
    assert pubsub.subscriber.get_snapshot(snapshot=name)
    clock.advance(1)
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.get_snapshot(snapshot=name)


# What is not offered, and the server's own life


def test_a_subscription_setting_that_is_not_offered_is_refused_by_name(ours: Pubsub) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match=r"Subscription\.enable_exactly_once_delivery"):
        ours.create(enable_exactly_once_delivery=True)


def test_a_port_can_be_used_again_at_once_after_a_stop(make_pubsub: Callable[[str], Pubsub]) -> None:
    first = EmbeddedPubSub(port=find_free_port())
    first.start()
    pubsub = make_pubsub(first.target)
    try:
        pubsub.create()
        with pubsub.open_stream() as stream:
            pubsub.publish(b"x")
            wait_until(lambda: stream.received)
            first.stop()
            assert stream.ended.wait(TIMEOUT_S)
            assert isinstance(stream.error, exceptions.ServiceUnavailable)
        second = EmbeddedPubSub(port=first.port, topics=[pubsub.topic])
        second.start()
        try:
            pubsub.subscriber.create_subscription(name=pubsub.subscription, topic=pubsub.topic, timeout=TIMEOUT_S)
            pubsub.publish(b"y")
            assert [one.message.data for one in pubsub.pull_all(1)] == [b"y"]
        finally:
            second.stop()
    finally:
        first.stop()


def test_the_server_counts_what_it_did(server: EmbeddedPubSub, ours: Pubsub) -> None:
    ours.create(filter="attributes:symbol")
    ours.publish(b"1", b"2", symbol="SPY")
    ours.publish(b"3")
    ours.acknowledge(*(one.ack_id for one in ours.pull_all(2)))
    assert server.counters() == {
        "published": 3, "filtered": 1, "delivered": 2, "expired": 0, "acknowledged": 2, "dead_lettered": 0,
        "outdated": 0, "dropped": 0,
    }  # fmt: skip


def test_the_server_reports_what_it_dropped(make_pubsub: Callable[[str], Pubsub]) -> None:
    server = EmbeddedPubSub(max_backlog_bytes=10_000_000)
    server.start()
    pubsub = make_pubsub(server.target)
    try:
        pubsub.create()
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                pubsub.publish(b"x" * 3_000_000)
            server.stop()
    finally:
        server.stop()
    assert server.counters()["dropped"] == 2
    assert [(entry["log_level"], entry["dropped_in_all"]) for entry in logs] == [("warning", 1), ("warning", 2)]
