from __future__ import annotations

import math
import threading
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.alpaca.limits import (
    CLAIM_S,
    REFUSED_WAIT_S,
    UNSHARED,
    Priority,
    RateLimit,
    RateLimiter,
    parse_reset,
    parse_retry_after,
    shared_limiter,
)
from dry_work.clock import ManualClock

EPOCH_S = 1_700_000_000.0
DEADLINE_S = 60.0


def headers(*, limit: int = 200, remaining: int, reset_in: float = 60.0) -> dict[str, str]:
    return {
        "X-RateLimit-Limit": str(limit),
        "X-RateLimit-Remaining": str(remaining),
        "X-RateLimit-Reset": str(int(EPOCH_S + reset_in)),
    }


def take_all(limit: RateLimit, now_s: float, priority: Priority = Priority.ORDERS) -> int:
    count = 0
    while not limit.wait_s(now_s, priority):
        limit.take(now_s)
        count += 1
    return count


def test_a_full_bucket_gives_a_minutes_requests_and_then_one_at_a_time() -> None:
    limit = RateLimit(60, shares=UNSHARED)
    assert take_all(limit, 0.0) == 60
    assert limit.wait_s(0.0) == pytest.approx(1.0)
    assert limit.wait_s(0.75) == pytest.approx(0.25)
    assert take_all(limit, 10.0) == 10


def test_a_bucket_holds_no_more_than_a_minutes_requests() -> None:
    limit = RateLimit(60, shares=UNSHARED)
    assert take_all(limit, 0.0) == 60
    assert take_all(limit, 10_000.0) == 60


def test_less_urgent_requests_leave_a_share_to_the_others() -> None:
    limit = RateLimit(100)
    assert take_all(limit, 0.0, Priority.POLLING) == 75
    assert limit.wait_s(0.0, Priority.POLLING) > 0
    assert take_all(limit, 0.0, Priority.LOOK_UPS) == 15
    assert take_all(limit, 0.0, Priority.ORDERS) == 5
    assert take_all(limit, 0.0, Priority.BRAKE) == 5


def test_every_priority_gets_something_of_the_smallest_limit() -> None:
    for priority in Priority:
        assert take_all(RateLimit(1), 0.0, priority) == 1


def test_the_limit_is_learned_from_an_answer() -> None:
    limit = RateLimit(200, shares=UNSHARED)
    limit.take(0.0)
    limit.observe(200, headers(limit=10_000, remaining=9_999), now_s=0.0, time_s=EPOCH_S)
    assert limit.limit == 10_000
    assert take_all(limit, 0.0) == 9_999


def test_what_another_program_used_is_learned_from_an_answer() -> None:
    limit = RateLimit(200, shares=UNSHARED)
    limit.take(0.0)
    limit.observe(200, headers(remaining=3), now_s=0.0, time_s=EPOCH_S)
    assert take_all(limit, 0.0) == 3


def test_requests_on_their_way_are_not_counted_as_remaining() -> None:
    limit = RateLimit(200, shares=UNSHARED)
    for _ in range(3):
        limit.take(0.0)
    limit.observe(200, headers(remaining=5), now_s=0.0, time_s=EPOCH_S)
    assert limit.in_flight == 2
    assert take_all(limit, 0.0) == 3


def test_nothing_goes_out_between_the_last_remaining_request_and_the_reset() -> None:
    limit = RateLimit(200, shares=UNSHARED)
    limit.take(100.0)
    limit.observe(200, headers(remaining=0, reset_in=40), now_s=100.0, time_s=EPOCH_S)
    assert limit.wait_s(100.0) == pytest.approx(40.0)
    assert limit.wait_s(139.0) == pytest.approx(1.0)
    assert take_all(limit, 140.0) == 200


def test_a_refusal_waits_as_long_as_retry_after_says() -> None:
    limit = RateLimit(200, shares=UNSHARED)
    limit.take(0.0)
    limit.observe(429, {"retry-after": "7", **headers(remaining=0, reset_in=3)}, now_s=0.0, time_s=EPOCH_S)
    assert limit.wait_s(0.0) == pytest.approx(7.0)
    assert limit.wait_s(7.0) == 0.0


def test_a_refusal_without_retry_after_waits_for_the_reset() -> None:
    limit = RateLimit(200, shares=UNSHARED)
    limit.take(0.0)
    limit.observe(429, headers(remaining=0, reset_in=25), now_s=0.0, time_s=EPOCH_S)
    assert limit.wait_s(0.0) == pytest.approx(25.0)


def test_a_refusal_without_any_header_waits_a_second_and_then_tries_one() -> None:
    limit = RateLimit(1, shares=UNSHARED)
    limit.take(0.0)
    limit.observe(429, {}, now_s=0.0, time_s=EPOCH_S)
    assert limit.wait_s(0.0) == pytest.approx(1.0)
    assert take_all(limit, 1.0) == 1


def test_a_reset_far_away_is_a_wrong_clock() -> None:
    assert parse_reset({"x-ratelimit-reset": str(EPOCH_S + 86_400)}, time_s=EPOCH_S) == 120.0
    assert parse_reset({"x-ratelimit-reset": str(EPOCH_S - 86_400)}, time_s=EPOCH_S) == 0.0


def test_the_servers_own_clock_goes_before_ours() -> None:
    known = {"x-ratelimit-reset": str(EPOCH_S + 30), "date": formatdate(EPOCH_S, usegmt=True)}
    assert parse_reset(known, time_s=EPOCH_S + 3600) == pytest.approx(30.0)
    known = {"retry-after": formatdate(EPOCH_S + 9, usegmt=True), "date": formatdate(EPOCH_S, usegmt=True)}
    assert parse_retry_after(known, time_s=0.0) == pytest.approx(9.0)


def test_a_small_reset_is_meant_as_seconds() -> None:
    assert parse_reset({"x-ratelimit-reset": "12"}, time_s=EPOCH_S) == 12.0


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-inf"])
def test_headers_that_say_nothing_are_left_out(text: str) -> None:
    assert parse_reset({"x-ratelimit-reset": text}, time_s=EPOCH_S) is None
    assert parse_retry_after({"retry-after": text}, time_s=EPOCH_S) is None


@given(
    st.dictionaries(
        st.sampled_from(["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After", "Date"]),
        st.one_of(st.text(max_size=12), st.integers(-5, 2**40).map(str)),
    ),
    st.sampled_from([200, 429, 500]),
)
def test_no_headers_break_it(found: dict[str, str], status: int) -> None:
    limit = RateLimit(200)
    limit.take(0.0)
    limit.observe(status, found, now_s=0.0, time_s=EPOCH_S)
    assert limit.in_flight == 0
    assert limit.wait_s(0.0) >= 0


@given(st.integers(1, 50), st.lists(st.floats(0.0, 30.0), min_size=1, max_size=200))
def test_a_venue_that_counts_by_windows_never_refuses(budget: int, steps: list[float]) -> None:
    limit, now_s = RateLimit(200, shares=UNSHARED), 0.0
    window_s, used = 0.0, 0
    for number, step in enumerate(steps):
        now_s += step + limit.wait_s(now_s + step)
        if limit.wait_s(now_s):
            now_s += limit.wait_s(now_s) + 1e-6
        limit.take(now_s)
        if now_s - window_s >= 60.0 - 1e-6:  # times since 1970 are not exact to more
            window_s, used = now_s, 0
        used += 1
        assert used <= budget, f"request {number} at {now_s} s"
        found = {
            "X-RateLimit-Limit": str(budget),
            "X-RateLimit-Remaining": str(budget - used),
            "X-RateLimit-Reset": str(math.ceil(EPOCH_S + window_s + 60.0)),
        }
        limit.observe(200, found, now_s=now_s, time_s=EPOCH_S + now_s)


def test_a_lost_answer_keeps_its_request_counted() -> None:
    limit = RateLimit(2, shares=UNSHARED)
    limit.take(0.0)
    limit.drop()
    assert limit.in_flight == 0
    assert take_all(limit, 0.0) == 1


@pytest.mark.parametrize(("limit", "share"), [(0, 0.0), (5, 1.0), (5, -0.1)])
def test_settings_that_make_no_limit_are_refused(limit: int, share: float) -> None:
    with pytest.raises(ValueError):
        RateLimit(limit, shares={Priority.POLLING: share})


def test_a_limiter_tells_how_long_to_wait() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateLimit(60, shares=UNSHARED), clock=clock)
    for _ in range(60):
        assert limiter.try_take() == 0.0
    assert limiter.try_take() == pytest.approx(1.0)
    clock.advance(1.0)
    assert limiter.try_take() == 0.0
    limiter.observe(200, {"X-RateLimit-Limit": "6000"})
    assert limiter.requests_per_minute == 6000


def test_a_limiter_gives_up_in_time() -> None:
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED))
    assert limiter.acquire(timeout_s=DEADLINE_S)
    assert not limiter.acquire(timeout_s=0.01)
    limiter.drop()


def test_an_order_overtakes_the_polling_that_waits() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED), clock=clock)
    assert limiter.acquire(timeout_s=0.0)
    gone: list[Priority] = []
    threads = []
    for number, priority in enumerate((Priority.POLLING, Priority.LOOK_UPS, Priority.ORDERS), 1):

        def wait(mine: Priority = priority) -> None:
            assert limiter.acquire(mine, timeout_s=1e9)
            gone.append(mine)

        threads.append(threading.Thread(target=wait, daemon=True))
        threads[-1].start()
        deadline = time.monotonic() + DEADLINE_S
        while len(limiter._waiting) < number:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    for count in range(1, 4):
        clock.advance(60.0)
        limiter.drop()  # wakes those who wait
        deadline = time.monotonic() + DEADLINE_S
        while len(gone) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert gone == [Priority.ORDERS, Priority.LOOK_UPS, Priority.POLLING]


def test_the_brake_gets_what_orders_leave_to_it() -> None:
    limit = RateLimit(200)
    assert take_all(limit, 0.0, Priority.ORDERS) == 190
    assert limit.wait_s(0.0, Priority.ORDERS) > 0
    assert take_all(limit, 0.0, Priority.BRAKE) == 10


def test_who_was_told_to_wait_is_not_overtaken_when_the_time_has_come() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED), clock=clock)
    assert limiter.try_take(Priority.POLLING) == 0.0
    assert limiter.try_take(Priority.ORDERS) == pytest.approx(60.0)
    clock.advance(60.0)
    assert limiter.try_take(Priority.POLLING) > 0  # although there is a request to take
    assert not limiter.acquire(Priority.LOOK_UPS, timeout_s=0.0)
    assert limiter.try_take(Priority.ORDERS) == 0.0
    clock.advance(60.0)
    assert limiter.try_take(Priority.LOOK_UPS) == 0.0


def test_who_does_not_come_back_is_not_waited_for_long() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED), clock=clock)
    assert limiter.try_take(Priority.ORDERS) == 0.0
    assert limiter.try_take(Priority.ORDERS) > 0
    clock.advance(60.0 + CLAIM_S - 0.1)
    assert limiter.try_take(Priority.POLLING) > 0
    clock.advance(CLAIM_S)
    assert limiter.try_take(Priority.POLLING) == 0.0


def test_who_has_waited_for_a_window_needs_no_more_than_an_order() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateLimit(100), clock=clock)
    done = threading.Event()
    while not limiter.try_take(Priority.ORDERS):  # down to what they leave to the brake
        pass

    def poll() -> None:
        assert limiter.acquire(Priority.POLLING, timeout_s=1e9)
        done.set()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    for _ in range(30):  # the orders take what comes in, and more than the polling needs never stays
        clock.advance(2.0)
        limiter.wake()
        while not limiter.try_take(Priority.ORDERS):
            pass
        assert not done.is_set()
    clock.advance(2.0)
    limiter.wake()
    assert done.wait(DEADLINE_S)
    thread.join(DEADLINE_S)


def test_a_wait_that_is_abandoned_ends_at_once() -> None:
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED), clock=ManualClock())
    assert limiter.try_take() == 0.0
    abandoned, found = threading.Event(), []
    thread = threading.Thread(
        target=lambda: found.append(limiter.acquire(timeout_s=1e9, is_abandoned=abandoned.is_set)), daemon=True
    )
    thread.start()
    abandoned.set()
    deadline = time.monotonic() + DEADLINE_S
    while thread.is_alive():
        assert time.monotonic() < deadline
        limiter.wake()
        time.sleep(0.001)
    assert found == [False]
    assert not limiter._waiting


def test_a_venue_that_need_not_limit_does_so_by_its_answers_alone() -> None:
    limit = RateLimit(None)
    for _ in range(1000):
        assert limit.wait_s(0.0, Priority.POLLING) == 0.0
        limit.take(0.0)
        limit.observe(200, headers(remaining=199), now_s=0.0, time_s=EPOCH_S)  # as one that counts nothing
    limit.take(1.0)
    limit.observe(200, headers(limit=20, remaining=4, reset_in=40.0), now_s=1.0, time_s=EPOCH_S)
    assert limit.wait_s(1.0, Priority.POLLING) == pytest.approx(40.0)
    assert take_all(limit, 1.0, Priority.ORDERS) == 3
    assert limit.wait_s(41.0, Priority.POLLING) == 0.0


def test_a_refusal_with_something_left_says_nothing_of_the_window() -> None:
    for limit, wait_s in ((RateLimit(200), REFUSED_WAIT_S), (RateLimit(None), 0.0)):
        limit.take(0.0)
        limit.observe(429, headers(remaining=150), now_s=0.0, time_s=EPOCH_S)
        assert limit.wait_s(0.0, Priority.POLLING) == wait_s
        limit.take(5.0)
        limit.observe(429, {**headers(remaining=150), "Retry-After": "7"}, now_s=5.0, time_s=EPOCH_S)
        assert limit.wait_s(5.0) == pytest.approx(7.0)


def test_all_clients_of_a_key_in_a_process_have_one_limiter() -> None:
    mine = shared_limiter("https://paper-api.alpaca.markets/", "K")
    assert shared_limiter("https://paper-api.alpaca.markets", "K") is mine
    others = [
        shared_limiter("https://paper-api.alpaca.markets", "L"),
        shared_limiter("https://paper-api.alpaca.markets", "K", api="data"),
        shared_limiter("http://127.0.0.1:1", "K"),
    ]
    assert mine not in others
    while not mine.try_take(Priority.BRAKE):
        pass
    assert mine.try_take(Priority.BRAKE) > 0
    for _ in range(1000):
        assert others[2].try_take(Priority.POLLING) == 0.0  # nobody has said that there is a limit
    del mine
    assert shared_limiter("https://paper-api.alpaca.markets", "K").try_take(Priority.BRAKE) == 0.0


def test_who_only_looks_does_not_overtake_who_waits() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED), clock=clock)
    assert limiter.try_take() == 0.0
    thread = threading.Thread(target=limiter.acquire, kwargs={"timeout_s": 1e9}, daemon=True)
    thread.start()
    deadline = time.monotonic() + DEADLINE_S
    while not limiter._waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert 0 < limiter.try_take(Priority.POLLING) < 1
    clock.advance(60.0)
    limiter.drop()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
