"""What was missed is told in portions, so that readers keep up, and whole when its session ends before."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from dry_work.clock import SystemClock
from dry_work.errors import BrokerUnavailableError
from dry_work.hub.bus import Bus
from dry_work.hub.upstreams.order_relay import PORTION, OrderRelay, _tell_in_portions


async def test_readers_have_their_turn_before_more_than_a_portion_waits_for_them() -> None:
    waiting: list[int] = []
    most = 0

    async def read() -> None:
        nonlocal most
        while True:
            most = max(most, len(waiting))
            waiting.clear()
            await asyncio.sleep(0)

    reader = asyncio.create_task(read())
    await _tell_in_portions(range(5 * PORTION + 1), waiting.append)
    reader.cancel()
    assert most == PORTION
    assert waiting == [5 * PORTION]


async def test_a_session_that_ends_meanwhile_leaves_nothing_untold() -> None:
    told: list[int] = []
    telling = asyncio.create_task(_tell_in_portions(range(3 * PORTION), told.append))
    await asyncio.sleep(0)
    assert len(told) == PORTION
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    assert told == list(range(3 * PORTION))


class Account:
    """An account whose venue does not answer."""

    feed = "orders.paper"
    account_id = "id"

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)

    async def call(self, *_: Any, **__: Any) -> Any:
        self.asked.release()
        raise BrokerUnavailableError("down")


def make_relay(account: Any) -> OrderRelay:
    return OrderRelay(
        account, Bus("e"), clock=SystemClock(), rng=random.Random(1), memory=None, has_history=True,
        count_event=lambda _: None, count_malformed=lambda _: None,
    )  # fmt: skip


async def test_a_venue_that_does_not_answer_is_asked_again_and_its_stream_is_not_called_behind() -> None:
    account = Account()
    watching = asyncio.create_task(make_relay(account).watch(interval_s=0.001, grace_s=0.0))
    async with asyncio.timeout(30):
        for _ in range(3):
            await account.asked.acquire()
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_without_an_interval_the_venue_is_not_asked() -> None:
    account = Account()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await make_relay(account).watch(interval_s=0.0, grace_s=0.0)
    assert account.asked.locked(), "nobody has asked"
