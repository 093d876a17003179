"""When the market may move, and the player that moves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from dry_work.clock import HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.exchange import market
from dry_work.exchange.market import Lockstep, MarketPlayer, MarketState, OpenSlice, Pace, mark_last
from dry_work.exchange.order_rules import RefusedError
from dry_work.market.messages import Bar

START_NS = 1_718_112_600_000_000_000  # 2024-06-11T13:30:00Z
DEADLINE_S = 60.0


def make_slices(count: int) -> list[tuple[int, list[Bar]]]:
    return [
        (
            START_NS + (number + 1) * MINUTE_NS,
            [
                Bar(
                    symbol="SPY",
                    ts_event_ns=START_NS + number * MINUTE_NS,
                    open=10.0,
                    high=10.0,
                    low=10.0,
                    close=10.0,
                    volume=1.0,
                )
            ],
        )
        for number in range(count)
    ]


def make_lockstep(*consumers: str, expected: int = 1) -> Lockstep:
    lockstep = Lockstep(expected)
    for consumer in consumers:
        lockstep.register(consumer, key_id=f"key of {consumer}", symbols=["SPY"])
    return lockstep


def report(lockstep: Lockstep, consumer: str, number: int, orders: int = 0) -> None:
    lockstep.report(consumer, key_id=f"key of {consumer}", number=number, orders=orders)


# Who has to do what


def test_the_first_slice_waits_for_all_expected_consumers() -> None:
    lockstep = make_lockstep("a", expected=2)
    assert not lockstep.has_quorum()
    lockstep.register("b", key_id="k", symbols=["IBM"])
    assert lockstep.has_quorum()
    assert lockstep.wanted() == {"SPY", "IBM"}


def test_registering_twice_counts_once() -> None:
    lockstep = make_lockstep("a", "a", expected=2)
    assert lockstep.registered == 1
    assert not lockstep.has_quorum()


def test_a_slice_is_owed_until_every_consumer_reported_it() -> None:
    lockstep = make_lockstep("a", "b", expected=2)
    lockstep.open(1)
    report(lockstep, "a", 1)
    report(lockstep, "a", 1)
    assert lockstep.owing() == ["b"]
    report(lockstep, "b", 1)
    assert lockstep.owing() == []


def test_a_report_of_an_earlier_slice_is_taken_without_effect() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    report(lockstep, "a", 1)
    lockstep.close()
    lockstep.open(2)
    report(lockstep, "a", 1)
    assert lockstep.owing() == ["a"]


def test_a_report_of_a_slice_that_is_not_open_is_refused() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    with pytest.raises(RefusedError) as refused:
        report(lockstep, "a", 2)
    assert refused.value.http_status == 409
    assert lockstep.owing() == ["a"]


def test_a_report_of_a_stranger_is_refused() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    for consumer, key_id in (("b", "key of b"), ("a", "another key")):
        with pytest.raises(RefusedError) as refused:
            lockstep.report(consumer, key_id=key_id, number=1, orders=0)
        assert refused.value.http_status == 404


def test_reported_orders_are_missing_until_they_have_arrived() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    lockstep.count_order("key of a")
    report(lockstep, "a", 1, orders=3)
    assert lockstep.missing_orders() == {"key of a": 2}
    lockstep.count_order("key of a")
    lockstep.count_order("key of a")
    assert lockstep.missing_orders() == {}


def test_orders_of_consumers_that_share_a_key_add_up() -> None:
    lockstep = Lockstep(2)
    for consumer in ("a", "b"):
        lockstep.register(consumer, key_id="k", symbols=["SPY"])
    lockstep.open(1)
    for consumer, orders in (("a", 1), ("b", 2)):
        lockstep.report(consumer, key_id="k", number=1, orders=orders)
    lockstep.count_order("k")
    assert lockstep.missing_orders() == {"k": 2}


def test_orders_are_counted_anew_in_every_slice() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    for _ in range(5):  # requests that were sent again arrive more than once
        lockstep.count_order("key of a")
    report(lockstep, "a", 1, orders=1)
    assert lockstep.missing_orders() == {}
    lockstep.close()
    lockstep.open(2)
    report(lockstep, "a", 2, orders=1)
    assert lockstep.missing_orders() == {"key of a": 1}


def test_orders_made_before_the_first_slice_count_for_it() -> None:
    lockstep = make_lockstep("a")
    lockstep.count_order("key of a")
    lockstep.open(1)
    report(lockstep, "a", 1, orders=1)
    assert lockstep.missing_orders() == {}


def test_a_consumer_that_leaves_holds_nothing() -> None:
    lockstep = make_lockstep("a", "b", expected=2)
    lockstep.open(1)
    report(lockstep, "a", 1)
    assert lockstep.leave("b")
    assert not lockstep.leave("b")
    assert lockstep.owing() == []
    assert lockstep.has_quorum()


def test_without_any_consumer_the_next_slice_waits() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    lockstep.leave("a")
    lockstep.close()
    assert not lockstep.has_quorum()


def test_a_late_consumer_owes_from_the_next_slice_on() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    lockstep.register("b", key_id="key of b", symbols=["SPY"])
    assert lockstep.owing() == ["a"]
    lockstep.open(2)
    assert lockstep.owing() == ["a", "b"]


def test_a_registration_that_was_sent_twice_changes_nothing() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    assert lockstep.register("a", key_id="key of a", symbols=["SPY"])
    assert lockstep.owing() == ["a"]


def test_a_consumer_that_was_started_again_does_not_owe_what_it_never_saw() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    report(lockstep, "a", 1)
    lockstep.close()
    lockstep.open(2)
    assert not lockstep.register("a", key_id="key of a", symbols=["SPY"])
    assert lockstep.owing() == []
    lockstep.open(3)
    assert lockstep.owing() == ["a"]


def test_a_consumer_that_resumes_owes_what_it_owed() -> None:
    lockstep = make_lockstep("a")
    lockstep.open(1)
    report(lockstep, "a", 1)
    assert not lockstep.register("a", key_id="key of a", symbols=["SPY"], resume=True)
    lockstep.close()
    lockstep.open(2)
    assert lockstep.register("a", key_id="key of a", symbols=["SPY"], resume=True)
    assert lockstep.owing() == ["a"]


def test_what_a_consumer_owes_is_told_to_its_key_alone() -> None:
    lockstep = make_lockstep("a")
    assert not lockstep.owes("a", key_id="key of a")
    lockstep.open(1)
    assert lockstep.owes("a", key_id="key of a")
    report(lockstep, "a", 1)
    assert not lockstep.owes("a", key_id="key of a")
    for consumer, key_id in (("a", "another key"), ("b", "key of a")):
        with pytest.raises(RefusedError) as caught:
            lockstep.owes(consumer, key_id=key_id)
        assert caught.value.http_status == 404


# When slices are due, and which is the last


def test_slices_are_due_at_data_time_divided_by_the_speed() -> None:
    pace = Pace(speed=60.0, start_s=100.0, start_ns=START_NS)
    assert pace.due_s(START_NS) == 100.0
    assert pace.due_s(START_NS + 90 * SECOND_NS) == 101.5


def test_data_time_goes_on_between_two_slices() -> None:
    pace = Pace(60.0, 100.0, START_NS)
    assert pace.time_ns(100.5) == START_NS + MINUTE_NS // 2
    assert pace.time_ns(pace.due_s(START_NS + 7 * MINUTE_NS)) == START_NS + 7 * MINUTE_NS


def test_only_the_last_slice_is_marked() -> None:
    slices = make_slices(3)
    assert [(number, end_ns, last) for number, end_ns, _, last in mark_last(slices)] == [
        (1, slices[0][0], False),
        (2, slices[1][0], False),
        (3, slices[2][0], True),
    ]
    assert list(mark_last([])) == []


# The player


@dataclass
class Floor:
    """What a player moves and its surroundings: what was advanced and published, who is subscribed and heard of."""

    lockstep: Lockstep
    published: list[OpenSlice] = field(default_factory=list)
    advanced: list[int] = field(default_factory=list)
    subscribed: set[str] = field(default_factory=lambda: {"SPY"})
    silent_s: dict[str, float] = field(default_factory=dict)  # by key
    slices: list[tuple[int, list[Bar]]] = field(default_factory=list)
    current: OpenSlice | None = None

    def upcoming_ns(self) -> int | None:
        return self.slices[len(self.advanced)][0] if len(self.advanced) < len(self.slices) else None

    def advance(self) -> OpenSlice:
        end_ns, bars = self.slices[len(self.advanced)]
        self.advanced.append(end_ns)
        number = len(self.advanced)
        self.lockstep.open(number)
        last = number == len(self.slices)
        self.current = OpenSlice(number=number, end_ns=end_ns, bars=tuple(bars), event_id=f"event {number}", last=last)
        return self.current

    def close_slice(self) -> None:
        self.lockstep.close()

    def leave(self, consumer: str) -> None:
        self.lockstep.leave(consumer)

    def publish(self, current: OpenSlice) -> None:
        assert self.advanced[-1] == current.end_ns  # the venue has moved before the bars are seen
        self.published.append(current)


def make_player(
    floor: Floor, count: int, *, speed: float | None = None, order_timeout_s: float = 10.0, **options: Any
) -> MarketPlayer:
    floor.slices = floor.slices or make_slices(count)
    return MarketPlayer(
        floor,
        speed=speed,
        publish=floor.publish,
        is_subscribed=lambda symbols: symbols <= floor.subscribed,
        silent_s=lambda key_id: floor.silent_s.get(key_id, 0.0),
        order_timeout_s=order_timeout_s,
        **options,
    )


@asynccontextmanager
async def playing(player: MarketPlayer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(player.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything run that is ready to."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_in_lock_step_every_slice_waits_for_its_report() -> None:
    floor = Floor(make_lockstep("a"))
    player = make_player(floor, 3)
    async with playing(player) as task:
        for number in (1, 2, 3):
            await settle()
            assert [current.number for current in floor.published] == list(range(1, number + 1))
            assert player.open_slice is floor.published[-1]
            assert player.state is MarketState.RUNNING
            report(floor.lockstep, "a", number)
            player.notify()
        async with asyncio.timeout(DEADLINE_S):
            await task
    assert player.state is MarketState.ENDED
    assert player.open_slice is None
    assert [(current.event_id, current.last) for current in floor.published] == [
        ("event 1", False),
        ("event 2", False),
        ("event 3", True),
    ]


async def test_the_market_does_not_move_before_reported_orders_have_arrived() -> None:
    floor = Floor(make_lockstep("a"))
    player = make_player(floor, 2)
    async with playing(player):
        await settle()
        report(floor.lockstep, "a", 1, orders=1)
        player.notify()
        await settle()
        assert len(floor.published) == 1
        floor.lockstep.count_order("key of a")
        player.notify()
        await settle()
        assert len(floor.published) == 2


async def test_orders_that_never_arrive_do_not_hold_the_market_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "CHECK_S", 0.01)
    floor = Floor(make_lockstep("a"))
    player = make_player(floor, 2, order_timeout_s=0.05)
    async with playing(player):
        await settle()
        report(floor.lockstep, "a", 1, orders=1)
        player.notify()
        await wait_until(lambda: len(floor.published) == 2)
    assert [each.number for each in floor.published] == [1, 2]


async def test_the_market_waits_until_wanted_symbols_are_subscribed() -> None:
    floor = Floor(make_lockstep("a"), subscribed=set())
    player = make_player(floor, 2)
    async with playing(player):
        await settle()
        assert (player.state, floor.published) == (MarketState.WAITING, [])
        floor.subscribed.add("SPY")
        player.notify()
        await settle()
        assert len(floor.published) == 1


async def test_the_market_is_held_while_a_subscriber_is_lost() -> None:
    floor = Floor(make_lockstep("a"))
    player = make_player(floor, 2)
    async with playing(player):
        await settle()
        floor.subscribed.clear()
        report(floor.lockstep, "a", 1)
        player.notify()
        await settle()
        assert (player.state, len(floor.published)) == (MarketState.WAITING, 1)
        floor.subscribed.add("SPY")
        player.notify()
        await settle()
        assert len(floor.published) == 2


async def test_a_consumer_that_leaves_lets_the_others_go_on() -> None:
    floor = Floor(make_lockstep("a", "b", expected=2))
    player = make_player(floor, 2)
    async with playing(player):
        await settle()
        report(floor.lockstep, "a", 1)
        floor.lockstep.leave("b")
        player.notify()
        await settle()
        assert len(floor.published) == 2


async def test_a_consumer_that_died_stops_holding_the_market(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "CHECK_S", 0.01)
    floor = Floor(make_lockstep("a", "b", expected=2))
    player = make_player(floor, 2)
    async with playing(player):
        await settle()
        report(floor.lockstep, "a", 1)
        player.notify()
        await settle()
        assert len(floor.published) == 1
        floor.silent_s["key of b"] = 60.0
        await wait_until(lambda: len(floor.published) == 2)
    assert floor.lockstep.registered == 1


class Looked(dict[str, float]):
    """Counts how often somebody has looked."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)


async def test_the_market_stands_still_for_consumers_that_died_while_nobody_else_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(market, "CHECK_S", 0.01)
    floor = Floor(make_lockstep("a", "b", expected=2))
    dead = Looked({"key of a": 60.0, "key of b": 60.0})
    player = make_player(floor, 2)
    async with playing(player):
        await settle()
        floor.silent_s = dead
        await wait_until(lambda: dead.looks >= 6)  # some times, at both
        assert (len(floor.published), floor.lockstep.registered) == (1, 2)
        floor.lockstep.register("c", key_id="key of c", symbols=["SPY"])
        await wait_until(lambda: len(floor.published) == 2)
    assert floor.lockstep.owing() == ["c"]
    assert floor.lockstep.registered == 1


async def test_a_paced_market_waits_for_nobody() -> None:
    floor = Floor(Lockstep(0), subscribed=set())
    player = make_player(floor, 5, speed=60_000.0)
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    async with playing(player) as task, asyncio.timeout(DEADLINE_S):
        await task
    assert loop.time() - start_s >= 4 * 0.001  # four minutes of data after the first slice
    assert [current.number for current in floor.published] == [1, 2, 3, 4, 5]
    assert player.state is MarketState.ENDED


async def test_a_paced_market_starts_with_its_expected_consumers() -> None:
    floor = Floor(Lockstep(1))
    player = make_player(floor, 3, speed=60_000.0)
    async with playing(player) as task:
        await settle()
        assert (player.state, floor.published) == (MarketState.WAITING, [])
        floor.lockstep.register("a", key_id="k", symbols=["SPY"])
        player.notify()
        async with asyncio.timeout(DEADLINE_S):
            await task
    assert len(floor.published) == 3


# Nights, and restarts


def test_a_night_passes_like_a_minute_when_gaps_are_skipped() -> None:
    pace = Pace(60.0, 100.0, START_NS)
    evening, morning = START_NS + 7 * MINUTE_NS, START_NS + 7 * MINUTE_NS + 17 * HOUR_NS
    skipped = pace.skip(evening, morning)
    assert skipped.due_s(morning) == pace.due_s(evening) + 1.0
    assert skipped.time_ns(skipped.due_s(morning)) == morning
    assert pace.skip(evening, evening + HOUR_NS) == pace


async def test_a_paced_market_skips_its_nights_on_request() -> None:
    day = make_slices(2)
    floor = Floor(Lockstep(0), slices=[*day, *((end_ns + 72 * HOUR_NS, bars) for end_ns, bars in make_slices(2))])
    async with playing(make_player(floor, 4, speed=6000.0, skip_gaps=True)) as task, asyncio.timeout(DEADLINE_S):
        await task
    assert len(floor.published) == 4  # 72 hours would take 43 s


def make_resumed(*, speed: float | None = None, reported: bool, **options: Any) -> tuple[Floor, MarketPlayer]:
    """Return a floor whose first slice was opened before a restart, and a player that was made after it."""
    floor = Floor(make_lockstep("a"), slices=make_slices(3), subscribed=set())
    floor.advance()
    if reported:
        report(floor.lockstep, "a", 1)
    return floor, make_player(floor, 3, speed=speed, **options)


async def test_a_slice_that_was_open_at_the_restart_is_offered_until_it_is_reported() -> None:
    floor, player = make_resumed(reported=False)
    assert player.open_slice is floor.current
    async with playing(player):
        await settle()
        assert (player.state, floor.published) == (MarketState.RUNNING, [])
        report(floor.lockstep, "a", 1)
        player.notify()
        await settle()
        assert player.open_slice is None
        floor.subscribed.add("SPY")
        player.notify()
        await settle()
        assert [current.number for current in floor.published] == [2]


async def test_a_slice_that_was_reported_before_the_restart_is_not_waited_for() -> None:
    floor, player = make_resumed(reported=True)
    floor.subscribed.add("SPY")
    async with playing(player):
        await settle()
        assert [current.number for current in floor.published] == [2]


async def test_a_paced_market_lets_its_readers_come_back_after_a_restart() -> None:
    floor, player = make_resumed(speed=60_000.0, reported=False)
    async with playing(player) as task:
        await settle()
        assert player.open_slice is floor.current
        assert floor.published == []
        floor.subscribed.add("SPY")
        player.notify()
        async with asyncio.timeout(DEADLINE_S):
            await task
    assert [current.number for current in floor.published] == [2, 3]
    assert player.open_slice is None


async def test_a_paced_market_does_not_wait_for_ever_for_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "CHECK_S", 0.01)
    floor, player = make_resumed(speed=60_000.0, reported=False, consumer_timeout_s=0.05)
    async with playing(player) as task, asyncio.timeout(DEADLINE_S):
        await task
    assert [current.number for current in floor.published] == [2, 3]
