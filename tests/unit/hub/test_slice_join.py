"""Slices of two connections as one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dry_work.hub.slice_join import Part, SliceJoin, cut_parts
from dry_work.wire.alpaca_stream import StreamWatermark


def mark(number: int) -> StreamWatermark:
    return StreamWatermark(slice=number, end_ns=number * 60)


def end(number: int) -> Part:
    return Part([{"T": "w", "slice": number}], [mark(number)], 7, mark(number))


def bar(name: str) -> Part:
    return Part([{"T": "b", "S": name}], [], 7)


def tell(parts: list[Part]) -> list[Any]:
    return [part.mark.slice if part.mark is not None else part.items[0]["S"] for part in parts]


def join(*sources: str) -> SliceJoin:
    made = SliceJoin(("stocks", "options"))
    for source in sources:
        made.begin(source)
    return made


def test_one_source_alone_waits_for_nobody() -> None:
    made = join("stocks")
    assert tell(made.push("stocks", [bar("SPY"), end(1), bar("SPY"), end(2)])) == ["SPY", 1, "SPY", 2]
    assert not made.is_waiting


def test_a_watermark_waits_for_the_other_and_what_is_behind_it_waits_too() -> None:
    made = join("stocks", "options")
    assert tell(made.push("stocks", [bar("SPY"), end(1), bar("IBM")])) == ["SPY"]
    assert (made.is_waiting, made.lagging) == (True, ["options"])
    assert tell(made.push("options", [bar("C1"), end(1), bar("C2")])) == ["C1", 1, "IBM", "C2"]
    assert tell(made.push("options", [end(2)])) == []
    assert made.lagging == ["stocks"]
    assert tell(made.push("stocks", [end(2)])) == [2]


def test_a_slice_sent_again_by_the_other_ends_nothing_twice() -> None:
    made = join("stocks", "options")
    made.push("stocks", [end(1)])
    assert tell(made.push("options", [end(1)])) == [1]
    assert tell(made.push("options", [bar("C1"), end(1)])) == ["C1"]
    assert tell(made.push("stocks", [end(1)])) == [1], "stocks' own is passed on, as it is without options"


def test_a_source_that_left_is_not_waited_for_until_it_sends_watermarks_again() -> None:
    made = join("stocks", "options")
    made.push("stocks", [end(1)])
    assert tell(made.leave("options")) == [1]
    assert tell(made.push("stocks", [end(2)])) == [2]
    assert tell(made.push("options", [end(2)])) == []
    assert tell(made.push("stocks", [end(3)])) == []
    assert tell(made.push("options", [end(3)])) == [3]


def test_a_source_that_begins_anew_may_begin_earlier() -> None:
    made = join("options")
    assert tell(made.push("options", [end(5)])) == [5]
    made.begin("options")
    assert tell(made.push("options", [end(1), end(2)])) == [1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_order_of_arrival_every_slice_is_whole(seed: int) -> None:
    rng, made, count = random.Random(seed), join("stocks", "options"), 12
    left = {
        "stocks": [part for n in range(1, count + 1) for part in (bar(f"s{n}"), end(n))],
        "options": [part for n in range(1, count + 1) for part in (bar(f"o{n}"), end(n))],
    }
    told: list[Any] = []
    while any(left.values()):
        source = rng.choice([name for name, parts in left.items() if parts])
        taken, left[source] = left[source][:3], left[source][3:]
        told += tell(made.push(source, taken))
    assert [entry for entry in told if isinstance(entry, int)] == list(range(1, count + 1))
    for number in range(1, count + 1):
        at = told.index(number)
        assert {f"s{number}", f"o{number}"} <= set(told[:at])
        assert f"s{number + 1}" not in told[:at], "of the next slice nothing of stocks comes before"


def test_a_frame_is_cut_at_its_watermarks() -> None:
    first, second = {"T": "w", "slice": 1}, {"T": "w", "slice": 2}
    items = [{"T": "b"}, {"T": "x"}, first, {"T": "b"}, second, {"T": "q"}]
    parts = cut_parts(items, ["b1", mark(1), "b2", mark(2)], 7)  # type: ignore[list-item]
    assert [(list(part.items), list(part.messages)) for part in parts] == [
        ([{"T": "b"}, {"T": "x"}], ["b1"]),
        ([first], [mark(1)]),
        ([{"T": "b"}], ["b2"]),
        ([second], [mark(2)]),
        ([{"T": "q"}], []),
    ]
    assert cut_parts([], [], 7) == []
    assert [part.mark for part in cut_parts([{"T": "q"}], [], 7)] == [None]
