"""The subscriptions of a source: whose they are, how they are made, and what is told when they cannot be."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from dry_work.clock import SECOND_NS, ManualClock
from dry_work.errors import ConfigError, FeedError, LeaseHeldError
from dry_work.feeds.router import PubSubMarketSource
from dry_work.feeds.subscriptions import OWNER_LABEL, build_labels, describe_owner, subscription_id
from dry_work.ports import SourceFailed, SourceStatus
from dry_work.wakeup import Wakeup
from dry_work.wire.pubsub import encode_bar

from .router_stack import PROJECT, SOON_S, Server, Sources, bar, serve_pubsub, summary


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve_pubsub()


@pytest.fixture
def sources(server: Server) -> Iterator[Sources]:
    with contextlib.closing(Sources(server)) as found:
        yield found


def test_subscriptions_are_made_as_agreed_and_deleted_at_the_stop(server: Server, sources: Sources) -> None:
    reader = sources.start(("A", "BTC/USD"))
    found = server.subscriptions()
    assert sorted(found) == ["agent-a1-crypto-data", "agent-a1-market-data"]
    stock = found["agent-a1-market-data"]
    assert stock.topic == f"projects/{PROJECT}/topics/market-data"
    assert stock.ack_deadline_seconds == 30
    assert stock.expiration_policy.ttl.total_seconds() == 86_400
    assert stock.filter == ""
    assert stock.labels[OWNER_LABEL] == "n1"
    reader.source.stop()
    assert server.subscriptions() == {}
    reader.source.stop()


def test_only_the_topics_of_the_symbols_are_subscribed(server: Server, sources: Sources) -> None:
    sources.start(("BTC/USD",))
    assert sorted(server.subscriptions()) == ["agent-a1-crypto-data"]


def test_a_subscription_without_owner_is_replaced(server: Server, sources: Sources) -> None:
    server.subscriber.create_subscription(
        request={
            "name": f"projects/{PROJECT}/subscriptions/agent-a1-market-data",
            "topic": f"projects/{PROJECT}/topics/news-data",
            "filter": 'attributes.symbol = "X"',
        }
    )
    reader = sources.start(("A",), watermarks=False)
    server.publish("market-data", encode_bar(bar("A", 1)))
    assert summary(reader.next_slice()) == ["A@1"]


def test_the_same_agent_id_of_another_owner_is_refused(server: Server, sources: Sources) -> None:
    first = sources.start(("A",), watermarks=False)
    second = sources.build(("A", "BTC/USD"), owner_nonce="n2")
    with pytest.raises(LeaseHeldError) as caught:
        second.start(Wakeup())
    text = str(caught.value)
    for fact in ("agent-a1-market-data", "'a1'", socket.gethostname().lower()[:20], "AGENT_ID", "--take-over",
                 "gcloud pubsub subscriptions delete agent-a1-market-data --project demo"):  # fmt: skip
        assert fact in text
    assert sorted(server.subscriptions()) == ["agent-a1-market-data"]
    server.publish("market-data", encode_bar(bar("A", 1)))
    assert summary(first.next_slice()) == ["A@1"]


def test_an_agent_that_is_taken_over_fails_and_leaves_the_subscription_alone(server: Server, sources: Sources) -> None:
    first = sources.start(("A",), watermarks=False)
    server.publish("market-data", encode_bar(bar("A", 0)))
    assert summary(first.next_slice()) == ["A@0"]  # its stream is open, and ends with the subscription
    second = sources.start(("A",), watermarks=False, owner_nonce="n2", take_over=True)
    events = []
    while not events or not isinstance(events[-1], SourceFailed):
        events.append(first.next())
    failed = events[-1]
    assert isinstance(failed, SourceFailed)
    assert "agent-a1-market-data was taken over by process" in str(failed.error)
    first.source.stop()
    assert server.subscriptions()["agent-a1-market-data"].labels[OWNER_LABEL] == "n2"
    server.publish("market-data", encode_bar(bar("A", 1)))
    assert summary(second.next_slice()) == ["A@1"]


def test_a_subscription_that_changes_hands_in_silence_is_noticed(
    server: Server, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dry_work.feeds.subscriptions.GONE_WAIT_S", 3.0)  # so that the other one is first
    reader = sources.start(("A",), owner_check_s=0.05, watermarks=False)
    name = f"projects/{PROJECT}/subscriptions/agent-a1-market-data"
    topic = f"projects/{PROJECT}/topics/market-data"
    server.subscriber.delete_subscription(request={"subscription": name})
    server.subscriber.create_subscription(request={"name": name, "topic": topic, "labels": {OWNER_LABEL: "n2"}})
    event = reader.next()
    while isinstance(event, SourceStatus):
        event = reader.next()
    assert isinstance(event, SourceFailed)
    assert "was taken over" in str(event.error)


def test_a_subscription_that_is_gone_is_made_again_and_the_outage_is_told(server: Server, sources: Sources) -> None:
    reader = sources.start(("A",), watermarks=False)
    name = f"projects/{PROJECT}/subscriptions/agent-a1-market-data"
    server.subscriber.delete_subscription(request={"subscription": name})
    statuses = [reader.next(), reader.next()]
    assert [status.connected for status in statuses if isinstance(status, SourceStatus)] == [False, True]
    assert server.subscriptions()["agent-a1-market-data"].labels[OWNER_LABEL] == "n1"
    server.publish("market-data", encode_bar(bar("A", 1)))
    assert summary(reader.next_slice()) == ["A@1"]
    assert reader.source.counters()["recreated_subscriptions"] == 1


def test_a_missing_topic_is_named_with_what_to_do(server: Server, sources: Sources) -> None:
    source = sources.build(("A", "BTC/USD"), crypto_topic="nowhere")
    with pytest.raises(ConfigError) as caught:
        source.start(Wakeup())
    for fact in ("'nowhere'", "'demo'", "gcloud pubsub topics create nowhere --project demo"):
        assert fact in str(caught.value)
    assert server.subscriptions() == {}


@pytest.mark.parametrize("listens", [False, True], ids=["not there", "does not answer"])
def test_pubsub_out_of_reach_is_an_error_within_the_time_limit(listens: bool) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if listens:
            held.listen()
        endpoint = f"127.0.0.1:{held.getsockname()[1]}"
        source = PubSubMarketSource(
            project_id=PROJECT, symbols=["A"], agent_id="a1", owner_nonce="n1", endpoint=endpoint, connect_timeout_s=0.5
        )
        begun = time.monotonic()
        with pytest.raises(FeedError, match=endpoint):
            source.start(Wakeup())
        assert time.monotonic() - begun < SOON_S
        source.stop()


def test_the_emulator_host_of_the_environment_is_used(
    server: Server, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.pubsub.target)
    sources.start(("A",), endpoint=None)
    assert sorted(server.subscriptions()) == ["agent-a1-market-data"]


def test_a_subscription_id_that_pubsub_would_refuse_is_an_error() -> None:
    assert subscription_id("a1", "market-data") == "agent-a1-market-data"
    for agent_id, topic in (("", "t"), ("a", ""), ("a/b", "t"), ("a", "projects/p/topics/t"), ("a" * 250, "topic")):
        with pytest.raises(ConfigError, match="make no subscription id"):
            subscription_id(agent_id, topic)


def test_an_owner_is_described_by_what_the_labels_say() -> None:
    labels = build_labels("n1", ManualClock(1_700_000_000 * SECOND_NS))
    assert "since 2023-11-14T22:13:20Z" in describe_owner(labels)
    assert describe_owner({}) == "process ? on ? since ?"
