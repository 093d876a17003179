"""Bounded histories."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.dashboard.trails import CurveTrail, RowTrail


@given(count=st.integers(0, 60), since=st.integers(0, 70), kept=st.integers(1, 20))
def test_a_trail_gives_the_rows_that_are_still_there_under_their_numbers(count: int, since: int, kept: int) -> None:
    trail = RowTrail(2, kept)
    for number in range(count):
        trail.append((float(number), -float(number)))
    first, rows = trail.read(since)
    assert trail.total == count
    assert rows == [[float(number), -float(number)] for number in range(first, count)]
    assert first >= since
    whole_first, whole = trail.read()
    assert len(whole) >= min(count, kept)
    assert len(whole) <= kept + max(kept // 4, 1)
    assert whole_first + len(whole) == count


def test_a_trail_can_be_read_up_to_a_row() -> None:
    trail = RowTrail(1, 10)
    for number in range(12):
        trail.append((float(number),))
    assert trail.read(4, 7) == (4, [[4.0], [5.0], [6.0]])
    assert trail.read(11, 3) == (11, [])


def test_rows_are_found_by_what_they_begin_with() -> None:
    trail = RowTrail(2, 10)
    for number in range(20):
        trail.append((float(10 * number), 0.0))
    first = trail.read()[0]
    assert trail.find(-1.0) == trail.find(10.0 * first) == first
    assert trail.find(150.0) == 15
    assert trail.find(151.0) == 16
    assert trail.find(1000.0) == trail.total


def test_a_trail_is_read_while_it_is_written() -> None:
    trail = RowTrail(3, 40)
    total = 30_000
    bad: list[list[float]] = []

    def read() -> None:
        seen = 0
        while seen < total:
            first, rows = trail.read(seen)
            bad.extend(row for at, row in enumerate(rows, first) if row != [at, at * 2.0, at * 3.0])
            seen = first + len(rows)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(total):
        trail.append((float(number), number * 2.0, number * 3.0))
    reader.join(30)
    assert not reader.is_alive()
    assert bad == []


@given(count=st.integers(1, 400), kept=st.integers(2, 30))
def test_a_curve_keeps_its_ends_its_order_and_its_bound(count: int, kept: int) -> None:
    curve = CurveTrail(kept)
    for number in range(count):
        curve.append(float(number), number * 10.0)
    points = curve.read()
    assert points[0] == [0.0, 0.0]
    assert points[-1] == [count - 1.0, (count - 1) * 10.0]
    assert len(points) <= kept + 2
    assert [point[0] for point in points] == sorted({point[0] for point in points})
    assert all(value == time * 10 for time, value in points)


def test_a_curve_gives_what_is_new_and_leaves_out_what_is_not_later() -> None:
    curve = CurveTrail(100)
    for time in (1.0, 2.0, 2.0, 1.5, 3.0):
        curve.append(time, time)
    assert curve.read() == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    assert curve.read(2.0) == [[3.0, 3.0]]
    assert curve.read(3.0) == []


@pytest.mark.parametrize("kept", [1, 3])
def test_a_tiny_curve_still_has_its_newest_point(kept: int) -> None:
    curve = CurveTrail(kept)
    for number in range(50):
        curve.append(float(number), 1.0)
    assert curve.read()[-1] == [49.0, 1.0]
