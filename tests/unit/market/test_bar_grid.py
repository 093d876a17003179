"""Which longer bar a moment belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.market.bar_grid import BarGrid

TIMES = st.integers(1, 400 * DAY_NS) | st.integers(1, 400 * 1440).map(lambda minute: minute * MINUTE_NS)
LENGTHS = st.sampled_from([SECOND_NS, 30 * SECOND_NS, MINUTE_NS, 5 * MINUTE_NS, HOUR_NS, 4 * HOUR_NS, DAY_NS])


@given(time_ns=TIMES, length_ns=LENGTHS)
def test_a_bar_ends_at_the_next_multiple_of_its_length(time_ns: int, length_ns: int) -> None:
    end = -(-time_ns // length_ns) * length_ns
    assert BarGrid(length_ns).find_span(time_ns) == (end - length_ns, end)


@given(times=st.lists(TIMES, min_size=1, max_size=20), length_ns=LENGTHS | st.just(7 * MINUTE_NS))
def test_what_was_asked_before_changes_no_answer(times: list[int], length_ns: int) -> None:
    grid = BarGrid(length_ns)
    assert [grid.find_end(time_ns) for time_ns in times] == [BarGrid(length_ns).find_end(time_ns) for time_ns in times]


@given(time_ns=TIMES, minutes=st.integers(1, 1440), offset=st.integers(0, 10), closing=st.integers(0, 1439))
def test_bars_cover_all_times_once(time_ns: int, minutes: int, offset: int, closing: int) -> None:
    closing_ns = closing * MINUTE_NS

    def find_closing(at_ns: int) -> int:
        return -(-(at_ns - closing_ns) // DAY_NS) * DAY_NS + closing_ns

    grid = BarGrid(minutes * MINUTE_NS, offset_ns=offset * MINUTE_NS, session_end_ns=find_closing)
    begin, end = grid.find_span(time_ns)
    assert begin < time_ns <= end
    assert end - begin <= minutes * MINUTE_NS
    for inside in (begin + 1, end):
        assert grid.find_span(inside) == (begin, end)
    assert grid.find_span(end + 1)[0] == end
    assert grid.find_span(begin)[1] == begin
    assert find_closing(begin + 1) >= end  # no session ends within


def test_what_ends_on_an_edge_belongs_to_the_bar_that_ends_there() -> None:
    grid = BarGrid(5 * MINUTE_NS)
    edge = DAY_NS + 10 * MINUTE_NS
    assert [grid.find_end(edge + shift) for shift in (-1, 0, 1)] == [edge, edge, edge + 5 * MINUTE_NS]


def test_midnight_cuts_bars_whose_length_does_not_divide_a_day() -> None:
    grid = BarGrid(7 * MINUTE_NS)
    assert grid.find_span(DAY_NS) == (DAY_NS - 5 * MINUTE_NS, DAY_NS)
    assert grid.find_span(DAY_NS + 1) == (DAY_NS, DAY_NS + 7 * MINUTE_NS)


def test_an_offset_moves_the_edges_to_earlier_times() -> None:
    grid = BarGrid(5 * MINUTE_NS, offset_ns=MINUTE_NS)
    assert grid.find_span(DAY_NS + 5 * MINUTE_NS) == (DAY_NS + 4 * MINUTE_NS, DAY_NS + 9 * MINUTE_NS)


def test_a_session_that_ends_before_it_is_asked_for_is_refused() -> None:
    grid = BarGrid(HOUR_NS, session_end_ns=lambda time_ns: time_ns - 1)
    with pytest.raises(ValueError, match="the end of a session after 0 ns is not 0 ns"):
        grid.find_end(MINUTE_NS)


def test_a_length_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="bars of 0 ns: expected a length above 0"):
        BarGrid(0)
