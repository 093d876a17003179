"""What was missed is told in portions, so that readers keep up, and whole when its session ends before."""

from __future__ import annotations

import asyncio

from dry_work.hub.upstreams.order_relay import PORTION, _tell_in_portions


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
