"""RedisPublisher and RedisSubscriber against the real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from dry_work.embedded.valkey_server import EmbeddedValkey
from dry_work.errors import ConfigError, DryWorkError
from dry_work.redis import CHANNELS, MessageValidationError, RedisPublisher, RedisSubscriber
from tests.ports import find_free_port

from .redis_stack import Stack, serve_stack, until


@pytest.fixture
def server() -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(port=find_free_port())
    server.start()
    yield server
    server.close()


@pytest.fixture
def stack() -> Iterator[Stack]:
    yield from serve_stack()


@pytest.fixture
def publisher(server: EmbeddedValkey) -> Iterator[RedisPublisher]:
    with RedisPublisher(port=server.port, environment={}) as publisher:
        yield publisher


@pytest.fixture
def subscriber(server: EmbeddedValkey) -> Iterator[RedisSubscriber]:
    with RedisSubscriber(environment={"REDIS_PORT": str(server.port)}) as subscriber:
        yield subscriber
    assert not [thread for thread in threading.enumerate() if thread.name == "redis-subscriber"]


def test_handlers_get_messages_of_their_channels_and_patterns(
    publisher: RedisPublisher, subscriber: RedisSubscriber
) -> None:
    plain: list[Any] = []
    named: list[tuple[Any, str]] = []
    subscriber.subscribe("price:AAPL", plain.append)
    subscriber.subscribe("price:*", lambda message, channel: named.append((message, channel)))
    assert subscriber.start_listening()
    assert publisher.publish(CHANNELS.price("aapl"), {"price": 1}) == 2
    assert publisher.publish("price:MSFT", {"price": 2}) == 1
    assert publisher.publish("bar:MSFT", {"close": 2}) == 0
    until(lambda: len(named) == 2, "both")
    assert plain == [{"price": 1}]
    assert named == [({"price": 1}, "price:AAPL"), ({"price": 2}, "price:MSFT")]
    late: list[Any] = []
    subscriber.subscribe("order:1", late.append)
    assert subscriber.start_listening(), "what is added later is confirmed too"
    assert publisher.publish(CHANNELS.order("1"), {"status": "new"}) == 1
    until(lambda: late == [{"status": "new"}], "it")


def test_a_handler_that_fails_and_a_message_that_is_no_json_stop_nothing(
    server: EmbeddedValkey, publisher: RedisPublisher, subscriber: RedisSubscriber
) -> None:
    heard: list[Any] = []

    def fail(message: Any) -> None:
        raise RuntimeError(message)

    subscriber.subscribe("a", fail)
    subscriber.subscribe("a", heard.append)
    assert subscriber.start_listening()
    with redis.Redis(port=server.port) as client:
        for text in (b"no json", b"\xff", b"[1]"):
            assert client.publish("a", text) == 1
    publisher.publish("a", {"n": 1})
    publisher.publish("a", {"n": 2})
    until(lambda: heard == [{"n": 1}, {"n": 2}], "both")
    assert (subscriber.malformed, subscriber.failures) == (3, 2)


def test_a_subscriber_goes_on_after_a_restart_of_the_server_and_waits_for_one_that_is_not_there(
    server: EmbeddedValkey, publisher: RedisPublisher, subscriber: RedisSubscriber
) -> None:
    heard: list[Any] = []
    server.kill()
    subscriber.subscribe("a", heard.append)
    assert not subscriber.start_listening(timeout_s=0.1)
    for number in (1, 2):
        server.start()
        until(lambda number=number: publisher.publish("a", {"n": number}), "it hears again")
        until(lambda number=number: {"n": number} in heard, "it")
        server.kill()


def test_a_message_that_its_channel_does_not_take_is_not_published(publisher: RedisPublisher) -> None:
    bad: list[tuple[str, Any, str]] = [
        (CHANNELS.BROKER_REGISTRATION, {"action": "sell", "symbols": ["AAPL"]}, "action 'sell'"),
        (CHANNELS.BROKER_REGISTRATION, {"action": "register", "symbols": ["no symbol"]}, "'no symbol'"),
        ("BROKER_REGISTRATION", {"data": {"action": "buy"}}, "action 'buy'"),
        ("price:AAPL", [1], "type list: expected a dict"),
        ("price:AAPL", {"price": object()}, "no JSON"),
    ]
    for channel, message, reason in bad:
        with pytest.raises(MessageValidationError, match=reason):
            publisher.publish(channel, message)
    assert issubclass(MessageValidationError, DryWorkError)
    with pytest.raises(ConfigError, match="REDIS_PORT"):
        RedisPublisher(environment={"REDIS_PORT": "x"})


def test_messages_on_legacy_channels_go_in_the_envelope(server: EmbeddedValkey, subscriber: RedisSubscriber) -> None:
    heard: list[Any] = []
    subscriber.subscribe("PROFIT_REPORT", heard.append)
    assert subscriber.start_listening()
    with RedisPublisher(port=server.port, environment={}, sender="scale_t") as publisher:
        publisher.publish("PROFIT_REPORT", {"symbol": "AAPL", "total": 1})
        publisher.publish("PROFIT_REPORT", {"data": {"total": 2}, "timestamp": "t", "sender": "me"})
    until(lambda: len(heard) == 2, "both")
    assert heard[0]["data"] == {"symbol": "AAPL", "total": 1}
    assert heard[0]["sender"] == "scale_t"
    assert heard[0]["timestamp"].endswith("Z")
    assert heard[1] == {"data": {"total": 2}, "timestamp": "t", "sender": "me"}


def test_the_documented_program_gets_prices_from_the_hub(stack: Stack) -> None:
    stack.start_hub()
    prices: list[float] = []
    address = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(stack.redis.port)}
    with RedisSubscriber(environment=address) as subscriber, RedisPublisher(environment=address) as publisher:
        subscriber.subscribe("price:AAPL", lambda message: prices.append(message["price"]))
        subscriber.start_listening()
        heard = publisher.publish(CHANNELS.BROKER_REGISTRATION, {"action": "register", "symbols": ["AAPL"]})
        assert heard == 1
        stack.trade("AAPL", 150.25)
        until(lambda: prices == [150.25], "the price")
