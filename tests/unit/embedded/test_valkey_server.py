"""The embedded Valkey server: a real server that clients can use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dry_work.embedded.valkey_server import EmbeddedValkey
from dry_work.errors import ConfigError
from tests.ports import find_free_port


def connect(port: int, **settings: Any) -> Any:
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), **settings)


@pytest.fixture
def server() -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(port=find_free_port())
    yield server
    server.close()


def test_clients_can_use_it_and_a_restarted_one_has_its_port_and_nothing_else(server: EmbeddedValkey) -> None:
    server.start()
    server.start()
    port = server.port
    with connect(port) as client:
        assert client.set("key", "value")
    server.kill()
    server.kill()
    assert server.pid is None
    server.start()
    assert server.port == port
    with connect(port) as client:
        assert client.get("key") is None
    server.close()
    server.close()
    with connect(port) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_a_folder_keeps_what_is_written_and_a_password_is_asked_for(tmp_path: Path) -> None:
    server = EmbeddedValkey(port=find_free_port(), folder=tmp_path / "data", password="a word")
    try:
        server.start()
        with connect(server.port, password="a word") as client:
            assert client.set("key", "value")
        with connect(server.port) as client, pytest.raises(redis.AuthenticationError):
            client.get("key")
        server.stop()
        server.start()
        with connect(server.port, password="a word") as client:
            assert client.get("key") == b"value"
        assert "a word" not in repr(server)
    finally:
        server.close()


def test_a_port_that_is_taken_is_an_error_that_says_so(server: EmbeddedValkey) -> None:
    server.start()
    other = EmbeddedValkey(port=server.port)
    try:
        with pytest.raises(ConfigError, match="did not start"):
            other.start()
    finally:
        other.close()
