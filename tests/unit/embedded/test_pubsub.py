"""The life of the Pub/Sub server, and what it says it does not offer; what it serves is in tests/contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.errors import ConfigError

TIMEOUT_S = 60.0


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[EmbeddedPubSub]:
    server = EmbeddedPubSub()
    server.start()
    yield server
    server.stop()


NOT_OFFERED = [
    "google.pubsub.v1.SchemaService/CreateSchema",
    "google.pubsub.v1.SchemaService/GetSchema",
    "google.pubsub.v1.SchemaService/ListSchemas",
    "google.pubsub.v1.SchemaService/ValidateMessage",
    "google.iam.v1.IAMPolicy/GetIamPolicy",
    "google.iam.v1.IAMPolicy/SetIamPolicy",
]


@pytest.mark.parametrize("method", NOT_OFFERED)
def test_a_method_that_is_not_offered_says_so_by_name(server: EmbeddedPubSub, method: str) -> None:
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{method}")(b"", timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.details() == f"{method} is not offered by this Pub/Sub server."


def test_a_port_in_use_is_a_configuration_error_that_names_it(server: EmbeddedPubSub) -> None:
    second = EmbeddedPubSub(port=server.port)
    with pytest.raises(ConfigError, match=rf"{server.port}.*--port"):
        second.start()
    second.stop()


def test_a_host_of_another_machine_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1.*--host"):
        EmbeddedPubSub(host="192.0.2.1").start()


def test_stopping_leaves_no_thread_and_may_be_done_twice() -> None:
    before = set(threading.enumerate())
    server = EmbeddedPubSub()
    server.stop()
    server.start()
    assert any(thread.name == "embedded-pubsub" for thread in threading.enumerate())
    server.stop()
    server.stop()
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_server_whose_thread_dies_tells_it_once() -> None:
    failures: list[BaseException] = []

    class Clock:
        def time_ns(self) -> int:
            return 0

        def monotonic(self) -> float:
            return 0.0

    server = EmbeddedPubSub(clock=Clock(), on_failure=failures.append)
    server.start()
    assert server._loop is not None
    server._loop.call_soon_threadsafe(server._loop.stop)
    wait_until(lambda: failures)
    server.stop()
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"port": 70_000}, "port 70000"),
        ({"max_backlog_bytes": 1}, "at least 10000000"),
        ({"topics": ["market-data"]}, "market-data cannot be created"),
    ],
)
def test_settings_that_make_no_sense_are_configuration_errors(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        EmbeddedPubSub(**settings)
