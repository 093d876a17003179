import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, ManualClock, SystemClock


def test_units_are_nanoseconds():
    assert (SECOND_NS, MINUTE_NS, HOUR_NS, DAY_NS) == (10**9, 60 * 10**9, 3600 * 10**9, 86_400 * 10**9)


def test_the_system_clock_is_the_machines():
    clock = SystemClock()
    before, before_s = time.time_ns(), time.monotonic()
    assert before <= clock.time_ns() <= time.time_ns()
    assert before_s <= clock.monotonic() <= time.monotonic()


def test_a_manual_clock_stands_still_until_it_is_moved():
    clock = ManualClock(start_ns=5)
    assert (clock.time_ns(), clock.monotonic()) == (5, 0.0)
    assert (clock.time_ns(), clock.monotonic()) == (5, 0.0)
    clock.advance(1.5)
    assert (clock.time_ns(), clock.monotonic()) == (5 + 1_500_000_000, 1.5)
    clock.advance_ns(7)
    assert clock.time_ns() == 5 + 1_500_000_007


def test_a_manual_clock_does_not_go_back():
    clock = ManualClock(start_ns=100)
    for go_back in (lambda: clock.advance_ns(-1), lambda: clock.advance(-0.5)):
        with pytest.raises(ValueError, match="a clock cannot go back by -"):
            go_back()
    clock.set_ns(99)
    assert (clock.time_ns(), clock.monotonic()) == (100, 0.0)


def test_setting_a_manual_clock_moves_both_times():
    clock = ManualClock(start_ns=SECOND_NS)
    clock.set_ns(3 * SECOND_NS)
    assert (clock.time_ns(), clock.monotonic()) == (3 * SECOND_NS, 2.0)


@given(
    st.lists(
        st.one_of(st.tuples(st.just("by"), st.integers(0, 10**15)), st.tuples(st.just("to"), st.integers(0, 10**15)))
    )
)
def test_both_times_of_a_manual_clock_move_together_and_forward(moves):
    clock = ManualClock(start_ns=10**14)
    for kind, value in moves:
        before, before_s = clock.time_ns(), clock.monotonic()
        clock.advance_ns(value) if kind == "by" else clock.set_ns(value)
        assert clock.time_ns() >= before
        assert clock.monotonic() - before_s == pytest.approx((clock.time_ns() - before) / SECOND_NS, abs=1e-6)


def test_moves_of_several_threads_all_count():
    clock = ManualClock()

    def move():
        for _ in range(2_000):
            clock.advance_ns(1)

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert clock.time_ns() == 8_000
