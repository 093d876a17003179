from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.backoff import Backoff


def waits(backoff: Backoff, count: int, now_s: float = 0.0) -> list[float]:
    return [backoff.next_wait_s(now_s) for _ in range(count)]


def test_without_jitter_the_waits_double_from_half_a_second_to_thirty() -> None:
    backoff = Backoff(random.Random(1), jitter=0.0)
    assert waits(backoff, 9) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert backoff.attempts == 9


@settings(deadline=None)
@given(seed=st.integers(), count=st.integers(1, 40))
def test_each_wait_is_within_ten_percent_and_never_above_the_cap(seed: int, count: int) -> None:
    plain = waits(Backoff(random.Random(0), jitter=0.0), count)
    for wait_s, plain_s in zip(waits(Backoff(random.Random(seed)), count), plain, strict=True):
        assert 0.9 * plain_s <= wait_s <= min(1.1 * plain_s, 30.0)


def test_the_jitter_comes_from_the_given_source_alone() -> None:
    first, second = waits(Backoff(random.Random(3)), 5), waits(Backoff(random.Random(3)), 5)
    assert first == second
    assert first != waits(Backoff(random.Random(4)), 5)


def test_a_healthy_connection_starts_the_waits_over() -> None:
    backoff = Backoff(random.Random(1), jitter=0.0, healthy_after_s=30.0)
    waits(backoff, 4)
    backoff.mark_connected(100.0)
    assert backoff.next_wait_s(130.0) == 0.5
    assert backoff.attempts == 1


def test_a_connection_that_ends_at_once_counts_as_a_failure() -> None:
    backoff = Backoff(random.Random(1), jitter=0.0, healthy_after_s=30.0)
    waits(backoff, 3)
    backoff.mark_connected(100.0)
    assert backoff.next_wait_s(129.9) == 4.0


def test_an_old_connection_does_not_make_a_later_failure_healthy() -> None:
    backoff = Backoff(random.Random(1), jitter=0.0, healthy_after_s=30.0)
    backoff.mark_connected(0.0)
    assert waits(backoff, 3, now_s=1000.0) == [0.5, 1.0, 2.0]


def test_reset_starts_over() -> None:
    backoff = Backoff(random.Random(1), jitter=0.0)
    waits(backoff, 3)
    backoff.reset()
    assert (backoff.attempts, backoff.next_wait_s(0.0)) == (0, 0.5)


@pytest.mark.parametrize(
    "wrong",
    [{"initial_s": 0.0}, {"initial_s": 31.0}, {"multiplier": 0.9}, {"jitter": 1.0}, {"jitter": -0.1}],
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Backoff(random.Random(1), **wrong)
