"""Hub and server go and come back in the middle of a lock-step session; its orders and fills are the same."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dry_work.embedded.links import DirectLink
from dry_work.embedded.stack import CREDENTIALS, LocalStack
from dry_work.hub.service import HubService
from dry_work.settings import FeedSettings

from .test_feeds_parity import AGENT, NEEDS, SYMBOLS
from .test_local_parity import run_local

DEADLINE_S = 60.0


def wait_for_bars(stack: LocalStack, more: int) -> None:
    """Wait until the hub has taken so many bars more."""

    def taken() -> int:
        assert stack._hub is not None
        return sum(feed.bars for feed in stack._hub.status().feeds)

    wanted, end_s = taken() + more, time.monotonic() + DEADLINE_S
    while taken() < wanted:
        assert time.monotonic() < end_s, f"no {more} bars more"
        time.sleep(0.005)


def restart_hub(stack: LocalStack) -> None:
    assert stack._hub is not None
    stack._hub.stop(0.5)
    stack._hub = HubService(
        stack.exchange.stream_url, key=CREDENTIALS.key, secret=CREDENTIALS.secret, sinks=stack.link.sinks()
    )
    stack._hub.start()


@pytest.mark.slow
@pytest.mark.skipif("DRY_WORK_OUTAGES" not in os.environ, reason="takes a minute: set DRY_WORK_OUTAGES=1")
@pytest.mark.parametrize("feed", ["ws", "grpc", "nats", "redis"])
def test_a_session_with_outages_gives_the_orders_and_fills_of_one_without(
    feed: str, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS[feed]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    expected = run_local(AGENT, SYMBOLS, feed=FeedSettings(name=feed))
    failures: list[BaseException] = []
    begin = LocalStack.start

    def disturb(stack: LocalStack) -> None:
        try:
            wait_for_bars(stack, 100)
            restart_hub(stack)
            wait_for_bars(stack, 100)
            if not isinstance(stack.link, DirectLink):
                server: Any = stack.link._server  # type: ignore[attr-defined]
                server.kill()
                server.start()
                wait_for_bars(stack, 100)
            restart_hub(stack)
        except BaseException as error:
            failures.append(error)

    threads: list[threading.Thread] = []

    def start(stack: LocalStack) -> None:
        begin(stack)
        threads.append(threading.Thread(target=disturb, args=(stack,)))
        threads[0].start()

    monkeypatch.setattr(LocalStack, "start", start)
    result = run_local(AGENT, SYMBOLS, feed=FeedSettings(name=feed))
    threads[0].join(DEADLINE_S)
    assert not failures
    assert result.bars == expected.bars
    assert result.orders == expected.orders
    assert result.fills == expected.fills
    assert result.fills
    assert "4 publisher restarts" in result.notes  # two hubs more, on two topics
