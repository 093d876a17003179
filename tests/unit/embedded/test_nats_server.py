"""The real nats-server as a child process."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from dry_work.clock import SystemClock
from dry_work.embedded.nats_server import EmbeddedNats
from dry_work.errors import ConfigError
from dry_work.hub.sinks.nats_link import NatsLink
from dry_work.hub.sinks.nats_settings import NatsSettings
from tests.ports import find_free_port


async def test_a_server_started_again_has_its_port_and_its_files(tmp_path: Path) -> None:
    server = EmbeddedNats(port=find_free_port(), folder=tmp_path)
    try:
        server.start()
        port = server.port
        client = await nats.connect(server.url, allow_reconnect=False)
        bucket = await client.jetstream().create_key_value(bucket="b")
        await bucket.put("k", b"v")
        await client.close()
        server.stop()
        server.stop()
        server.start()
        assert server.port == port
        client = await nats.connect(server.url, allow_reconnect=False)
        assert (await (await client.jetstream().key_value("b")).get("k")).value == b"v"
        await client.close()
    finally:
        server.close()
        server.close()


async def test_a_password_is_asked_for(tmp_path: Path) -> None:
    server = EmbeddedNats(folder=tmp_path, user="hub", password="a-password")
    server.start()
    try:
        client = await nats.connect(server.url, user="hub", password="a-password", allow_reconnect=False)
        await client.close()
        stranger = Client()
        with pytest.raises(nats.errors.Error):
            await stranger.connect(server.url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0)
        await stranger.close()
        assert "a-password" not in repr(server)
    finally:
        server.close()


def test_a_port_that_is_taken_is_told() -> None:
    first = EmbeddedNats()
    first.start()
    second = EmbeddedNats(port=first.port)
    try:
        with pytest.raises(ConfigError, match="did not start"):
            second.start()
    finally:
        second.close()
        first.close()


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float' is deprecated:DeprecationWarning")  # nats-py's
async def test_a_websocket_connection_is_compressed_when_asked_for() -> None:
    server = EmbeddedNats(with_websocket=True)
    server.start()
    compressed: list[Any] = []

    async def run(client: Any) -> None:
        compressed.append(client._transport._ws.compress)
        await client.jetstream().create_key_value(bucket="over-websocket")
        done.set()
        await asyncio.Event().wait()

    try:
        for use_compression in (True, False):
            done = asyncio.Event()
            settings = NatsSettings(servers=(server.websocket_url,), use_compression=use_compression)
            link = NatsLink(settings, run, clock=SystemClock(), rng=random.Random(1))
            serving = asyncio.create_task(link.serve())
            await asyncio.wait_for(done.wait(), 30)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    finally:
        server.close()
    assert bool(compressed[0])
    assert not compressed[1]
