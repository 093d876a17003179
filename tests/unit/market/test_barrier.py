from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.market.barrier import BarBarrier, OtherEvent, SliceAssembler
from dry_work.market.messages import Bar, BarNote, Envelope, News, Slice, Watermark
from dry_work.market.sequencing import Sequencer

GRACE_NS = 5 * SECOND_NS
LINGER_NS = SECOND_NS // 4


def bar(symbol: str, end_minute: int, *, revision: int = 0) -> Bar:
    start = (end_minute - 1) * MINUTE_NS
    return Bar(symbol=symbol, ts_event_ns=start, open=1, high=1, low=1, close=1, volume=1, revision=revision)


def mark(number: int, end_minute: int, bars: int, *, last: bool = False, event_id: str = "") -> Watermark:
    return Watermark(slice=number, end_ns=end_minute * MINUTE_NS, bars=bars, last=last, event_id=event_id)


def build(symbols: Sequence[str] = ("A", "B"), topics: Iterable[str] = ("t",), **settings: object) -> BarBarrier:
    settings.setdefault("watermarks", False)
    return BarBarrier(symbols=symbols, topics=tuple(topics), **settings)  # type: ignore[arg-type]


def take_all(barrier: BarBarrier | SliceAssembler) -> list[Slice | OtherEvent]:
    taken: list[Slice | OtherEvent] = []
    while (event := barrier.take()) is not None:
        taken.append(event)
    return taken


def summary(events: Iterable[Slice | OtherEvent]) -> list[tuple[int | None, int, list[str]]]:
    """Number, end minute, and symbol@end minute of each bar."""
    found = []
    for event in events:
        assert isinstance(event, Slice)
        names = [f"{each.symbol}@{each.end_ns // MINUTE_NS}" for each in event.bars]
        found.append((event.number, event.end_ns // MINUTE_NS, names))
    return found


def test_a_slice_goes_when_every_symbol_has_arrived() -> None:
    barrier = build()
    barrier.push_bar("t", bar("B", 1), 0)
    assert barrier.take() is None
    barrier.push_bar("t", bar("A", 1), 1)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1", "B@1"])]
    assert barrier.next_deadline_ns() is None


def test_a_missing_symbol_is_waited_for_until_the_grace_has_passed() -> None:
    barrier = build()
    barrier.push_bar("t", bar("A", 1), 100)
    assert barrier.next_deadline_ns() == 100 + GRACE_NS
    barrier.expire(99 + GRACE_NS)
    assert barrier.take() is None
    barrier.expire(100 + GRACE_NS)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1"])]
    assert barrier.counts["grace_releases"] == 1


def test_a_later_time_waits_for_the_earlier_slice() -> None:
    barrier = build(("A", "B", "C"))
    barrier.push_bar("t", bar("A", 1), 0)
    for symbol in "ABC":
        barrier.push_bar("t", bar(symbol, 2), 10)
    # B and C have gone past minute 1, so nothing can come for it any more.
    assert summary(take_all(barrier)) == [(None, 1, ["A@1"]), (None, 2, ["A@2", "B@2", "C@2"])]


def test_a_later_time_does_not_go_before_an_incomplete_earlier_one() -> None:
    barrier = build(("A", "B", "C"))
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.push_bar("t", bar("A", 2), 10)
    barrier.push_bar("t", bar("B", 2), 10)
    assert barrier.take() is None
    barrier.expire(GRACE_NS)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1"])]
    barrier.push_bar("t", bar("C", 2), GRACE_NS + 1)
    assert summary(take_all(barrier)) == [(None, 2, ["A@2", "B@2", "C@2"])]


def test_a_late_bar_goes_with_the_next_slice_under_its_own_time() -> None:
    barrier = build()
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.expire(GRACE_NS)
    take_all(barrier)
    barrier.push_bar("t", bar("B", 1), GRACE_NS + 1)
    assert barrier.take() is None
    barrier.push_bar("t", bar("A", 2), MINUTE_NS)
    barrier.expire(MINUTE_NS + GRACE_NS)
    assert summary(take_all(barrier)) == [(None, 2, ["A@2", "B@1"])]
    assert barrier.counts["late_bars"] == 1


def test_a_symbol_with_two_bars_gets_the_late_ones_in_slices_before() -> None:
    barrier = build(("A", "B", "C"))
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.expire(GRACE_NS)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1"])]
    barrier.push_bar("t", bar("B", 1), GRACE_NS + 1)
    barrier.push_bar("t", bar("C", 1), GRACE_NS + 1)
    for symbol in "BA":
        barrier.push_bar("t", bar(symbol, 2), MINUTE_NS)
    barrier.expire(MINUTE_NS + GRACE_NS)
    assert summary(take_all(barrier)) == [(None, 1, ["B@1", "C@1"]), (None, 2, ["A@2", "B@2"])]


def test_a_late_bar_goes_by_itself_when_no_slice_follows() -> None:
    barrier = build()
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.expire(GRACE_NS)
    take_all(barrier)
    barrier.push_bar("t", bar("B", 1), GRACE_NS + 1)
    deadline = barrier.next_deadline_ns()
    assert deadline == GRACE_NS + 1 + MINUTE_NS + GRACE_NS
    barrier.expire(deadline)
    assert summary(take_all(barrier)) == [(None, 1, ["B@1"])]
    assert barrier.next_deadline_ns() is None


def test_a_silent_symbol_is_waited_for_only_a_few_times_until_it_comes_back() -> None:
    barrier = build(silent_after=3)
    now = 0
    waits = []
    for minute in range(1, 6):
        now = minute * MINUTE_NS
        barrier.push_bar("t", bar("A", minute), now)
        deadline = barrier.next_deadline_ns()
        assert deadline is not None
        waits.append(deadline - now)
        barrier.expire(deadline)
        assert len(take_all(barrier)) == 1
    assert waits == [GRACE_NS] * 3 + [LINGER_NS] * 2
    barrier.push_bar("t", bar("A", 6), 6 * MINUTE_NS)
    barrier.push_bar("t", bar("B", 6), 6 * MINUTE_NS)
    assert len(take_all(barrier)) == 1
    barrier.push_bar("t", bar("A", 7), 7 * MINUTE_NS)
    assert barrier.next_deadline_ns() == 7 * MINUTE_NS + GRACE_NS  # B has come back, so it is expected again
    assert barrier.counts["grace_releases"] == 3


def test_bars_that_nobody_wants_are_counted_and_left_out() -> None:
    barrier = build()
    for symbol in ("A", "X", "B"):
        barrier.push_bar("t", bar(symbol, 1), 0)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1", "B@1"])]
    assert barrier.counts["unwanted_bars"] == 1


def test_a_slice_goes_with_the_watermarks_of_all_topics() -> None:
    barrier = build(("A", "X/USD"), ("stock", "crypto"), watermarks=True)
    barrier.push_bar("stock", bar("A", 1), 0)
    barrier.push_bar("crypto", bar("X/USD", 1), 0)
    barrier.push_watermark("stock", mark(1, 1, 1, event_id="01A"), 0)
    assert barrier.take() is None
    barrier.push_watermark("crypto", mark(1, 1, 1, event_id="01A"), 0)
    (piece,) = take_all(barrier)
    assert isinstance(piece, Slice)
    assert (piece.number, piece.event_id, piece.last) == (1, "01A", False)
    assert summary([piece]) == [(1, 1, ["A@1", "X/USD@1"])]


def test_a_silent_symbol_is_not_waited_for_when_there_are_watermarks() -> None:
    barrier = build(watermarks=True)
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.push_watermark("t", mark(1, 1, 1), 0)
    assert summary(take_all(barrier)) == [(1, 1, ["A@1"])]


def test_complete_bars_wait_for_their_watermark() -> None:
    barrier = build(watermarks=True)
    for symbol in "AB":
        barrier.push_bar("t", bar(symbol, 1), 0)
    assert barrier.take() is None


def test_a_watermark_without_bars_gives_an_empty_slice() -> None:
    barrier = build(watermarks=True)
    barrier.push_bar("t", bar("X", 1), 0)
    barrier.push_watermark("t", mark(1, 1, 1, event_id="01"), 0)
    barrier.push_watermark("t", mark(2, 2, 0, last=True), 0)
    first, second = take_all(barrier)
    assert first == Slice(end_ns=MINUTE_NS, bars=(), number=1, event_id="01")
    assert second == Slice(end_ns=2 * MINUTE_NS, bars=(), number=2, last=True)
    assert barrier.ended


def test_a_watermark_waits_for_the_bars_it_names_when_the_topic_is_not_in_order() -> None:
    barrier = build(watermarks=True)
    barrier.push_watermark("t", mark(1, 1, 3), 0)
    for symbol in ("A", "X"):
        barrier.push_bar("t", bar(symbol, 1), 1)
    assert barrier.take() is None
    barrier.push_bar("t", bar("B", 1), 2)
    assert summary(take_all(barrier)) == [(1, 1, ["A@1", "B@1"])]
    assert barrier.counts["watermark_mismatches"] == 0


def test_a_bar_that_a_watermark_names_is_not_waited_for_for_ever() -> None:
    barrier = build(watermarks=True)
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.push_watermark("t", mark(1, 1, 2), 10)
    assert barrier.next_deadline_ns() == 10 + GRACE_NS
    barrier.expire(10 + GRACE_NS)
    assert summary(take_all(barrier)) == [(1, 1, ["A@1"])]
    assert barrier.counts["watermark_mismatches"] == 1


def test_in_an_ordered_topic_a_lost_bar_is_counted_and_not_waited_for() -> None:
    barrier = build(watermarks=True)
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.push_watermark("t", mark(1, 1, 2), 0, ordered=True)
    assert summary(take_all(barrier)) == [(1, 1, ["A@1"])]
    assert barrier.counts["watermark_mismatches"] == 1


def test_a_topic_without_watermark_is_not_waited_for_for_ever() -> None:
    barrier = build(("A", "X/USD"), ("stock", "crypto"), watermarks=True)
    barrier.push_bar("stock", bar("A", 1), 0)
    barrier.push_watermark("stock", mark(1, 1, 1), 0)
    barrier.expire(GRACE_NS)
    assert summary(take_all(barrier)) == [(1, 1, ["A@1"])]
    assert barrier.counts["missing_watermarks"] == 1


def test_a_bar_without_any_watermark_goes_after_the_grace_and_the_number_follows() -> None:
    barrier = build(watermarks=True)
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.expire(GRACE_NS)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1"])]
    barrier.push_watermark("t", mark(1, 1, 1), GRACE_NS + 1)
    assert summary(take_all(barrier)) == [(1, 1, [])]


def test_late_bars_go_with_the_next_numbered_slice() -> None:
    barrier = build(watermarks=True)
    barrier.push_watermark("t", mark(1, 1, 0), 0)
    barrier.push_bar("t", bar("B", 1), 1)
    barrier.push_bar("t", bar("A", 2), 2)
    barrier.push_watermark("t", mark(2, 2, 1), 2)
    assert summary(take_all(barrier)) == [(1, 1, []), (2, 2, ["A@2", "B@1"])]


def test_a_repeated_watermark_is_counted_and_dropped() -> None:
    barrier = build(watermarks=True)
    for _ in range(2):
        barrier.push_watermark("t", mark(1, 1, 0), 0)
    assert len(take_all(barrier)) == 1
    barrier.push_watermark("t", mark(1, 1, 0), 0)
    barrier.push_watermark("other", mark(2, 2, 0), 0)
    assert take_all(barrier) == []
    assert barrier.counts["stale_watermarks"] == 3


def test_a_publisher_that_starts_again_goes_on_with_number_one() -> None:
    barrier = build(watermarks=True)
    for number in (1, 2, 3):
        barrier.push_watermark("t", mark(number, number, 0), 0)
    take_all(barrier)
    barrier.push_bar("t", bar("A", 4), 1)
    barrier.push_watermark("t", mark(1, 4, 1), 1)
    assert summary(take_all(barrier)) == [(1, 4, ["A@4"])]


def test_the_barrier_finds_out_that_there_are_watermarks() -> None:
    barrier = build(watermarks=None)
    for symbol in "AB":
        barrier.push_bar("t", bar(symbol, 1), 0)
    assert barrier.take() is None
    barrier.push_watermark("t", mark(1, 1, 2), 1)
    assert summary(take_all(barrier)) == [(1, 1, ["A@1", "B@1"])]


def test_the_barrier_finds_out_that_there_are_no_watermarks() -> None:
    barrier = build(watermarks=None)
    for symbol in "AB":
        barrier.push_bar("t", bar(symbol, 1), 0)
    barrier.expire(GRACE_NS)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1", "B@1"])]
    for symbol in "AB":
        barrier.push_bar("t", bar(symbol, 2), MINUTE_NS)
    assert summary(take_all(barrier)) == [(None, 2, ["A@2", "B@2"])]


def test_nothing_is_left_behind_the_last_watermark() -> None:
    barrier = build(watermarks=True)
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.push_bar("t", bar("A", 2), 0)
    barrier.push_bar("t", bar("B", 2), 0)
    barrier.push_watermark("t", mark(1, 1, 1, last=True), 0)
    taken = take_all(barrier)
    assert summary(taken) == [(None, 1, ["A@1"]), (1, 2, ["A@2", "B@2"])]
    last = taken[-1]
    assert isinstance(last, Slice)
    assert last.last
    assert barrier.next_deadline_ns() is None


def test_counts_of_long_runs_stay_small() -> None:
    barrier = build(("A",), watermarks=True)
    for minute in range(1, 500):
        barrier.push_bar("t", bar("A", minute), minute)
        barrier.push_watermark("t", mark(minute, minute, 1), minute)
        assert len(take_all(barrier)) == 1
    assert len(barrier._arrived["t"]) < 200


# All parts together.

SYMBOLS = ("A", "B", "X/USD")
TOPIC = {"A": "stock", "B": "stock", "Z": "stock", "X/USD": "crypto"}


class Publisher:
    """Numbers messages by topic, as the hub does."""

    def __init__(self, epoch: str = "e1") -> None:
        self.epoch = epoch
        self.sent: dict[str, list[Envelope]] = {"stock": [], "crypto": []}

    def publish(self, topic: str, message: Bar | Watermark) -> None:
        log = self.sent[topic]
        log.append(Envelope(topic=topic, message=message, epoch=self.epoch, seq=len(log) + 1))


def assemble(*, watermarks: bool | None = True, **sequencing: int) -> SliceAssembler:
    barrier = BarBarrier(symbols=SYMBOLS, topics=("stock", "crypto"), watermarks=watermarks, grace_ns=GRACE_NS)
    return SliceAssembler(sequencer=Sequencer(**sequencing), barrier=barrier)


def run(assembler: SliceAssembler, arrival: Iterable[Envelope], *, end: bool = True) -> list[Slice]:
    taken: list[Slice | News] = []
    now_ns = 0
    for envelope in arrival:
        now_ns += 1000
        assembler.push(envelope, now_ns)
        taken += take_all(assembler)
    while end and (deadline := assembler.next_deadline_ns()) is not None:
        assembler.expire(deadline)
        taken += take_all(assembler)
    return [event for event in taken if isinstance(event, Slice)]


days = st.lists(st.sets(st.sampled_from(sorted(TOPIC))), min_size=1, max_size=12)


def publish_day(day: Sequence[set[str]]) -> Publisher:
    publisher = Publisher()
    for number, present in enumerate(day, 1):
        for symbol in sorted(present):
            publisher.publish(TOPIC[symbol], bar(symbol, number))
        for topic in ("stock", "crypto"):
            count = sum(TOPIC[symbol] == topic for symbol in present)
            publisher.publish(topic, mark(number, number, count, last=number == len(day)))
    return publisher


def shuffle(publisher: Publisher, rng: random.Random, spread: float) -> list[Envelope]:
    """Reorder and repeat within each topic, and mix the topics."""
    keyed = []
    for log in publisher.sent.values():
        for place, envelope in enumerate(log):
            for _ in range(rng.choice([1, 1, 2])):
                keyed.append((place + rng.uniform(0, spread), len(keyed), envelope))
    return [envelope for _, _, envelope in sorted(keyed, key=lambda each: each[:2])]


@given(days, st.floats(0, 20), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_slices_of_the_publisher(
    day: list[set[str]], spread: float, rng: random.Random
) -> None:
    slices = run(assemble(), shuffle(publish_day(day), rng, spread))
    expected = [
        Slice(
            end_ns=number * MINUTE_NS,
            bars=tuple(bar(symbol, number) for symbol in SYMBOLS if symbol in present),
            number=number,
            last=number == len(day),
        )
        for number, present in enumerate(day, 1)
    ]
    assert slices == expected


@given(days, st.floats(0, 20), st.booleans(), st.randoms(use_true_random=False))
def test_without_watermarks_nothing_is_lost_or_doubled_and_times_rise_per_symbol(
    day: list[set[str]], spread: float, finds_out: bool, rng: random.Random
) -> None:
    publisher = Publisher()
    for number, present in enumerate(day, 1):
        for symbol in sorted(present):
            publisher.publish(TOPIC[symbol], bar(symbol, number))
    slices = run(assemble(watermarks=None if finds_out else False), shuffle(publisher, rng, spread))
    check(slices, [(symbol, number) for number, present in enumerate(day, 1) for symbol in present])


@given(days, st.sets(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_when_messages_are_lost_the_rest_is_delivered_once_and_rising(
    day: list[set[str]], lost: set[int], rng: random.Random
) -> None:
    arrival = [each for place, each in enumerate(shuffle(publish_day(day), rng, 3)) if place not in lost]
    slices = run(assemble(), arrival)
    came = {(m.symbol, m.end_ns // MINUTE_NS) for m in (each.message for each in arrival) if isinstance(m, Bar)}
    check(slices, came)


def check(slices: Sequence[Slice], came: Iterable[tuple[str, int]]) -> None:
    delivered = [(each.symbol, each.end_ns // MINUTE_NS) for piece in slices for each in piece.bars]
    assert sorted(delivered) == sorted((symbol, minute) for symbol, minute in set(came) if symbol in SYMBOLS)
    for piece in slices:
        names = [each.symbol for each in piece.bars]
        assert len(names) == len(set(names))
        assert all(each.end_ns <= piece.end_ns for each in piece.bars)
    for symbol in SYMBOLS:
        minutes = [minute for name, minute in delivered if name == symbol]
        assert minutes == sorted(set(minutes))


def test_duplicates_and_revisions_are_counted_and_complete_their_watermark() -> None:
    publisher = Publisher()
    publisher.publish("stock", bar("A", 1))
    publisher.publish("stock", bar("A", 1))
    publisher.publish("stock", bar("A", 1, revision=1))
    publisher.publish("stock", mark(1, 1, 3))
    publisher.publish("crypto", mark(1, 1, 0))
    assembler = assemble()
    slices = run(assembler, publisher.sent["stock"] + publisher.sent["crypto"], end=False)
    assert summary(slices) == [(1, 1, ["A@1"])]
    counts = assembler.counts()
    assert (counts["duplicate_bars"], counts["revised_bars"]) == (1, 1)
    assert counts.get("watermark_mismatches", 0) == 0


def test_a_bar_behind_a_lost_message_waits_no_longer_than_the_gap() -> None:
    publisher = Publisher()
    for minute in (1, 2, 3):
        publisher.publish("crypto", bar("X/USD", minute))
    assembler = assemble(watermarks=False, wait_ns=1000)
    first, _, third = publisher.sent["crypto"]
    assembler.push(first, 0)
    assembler.push(third, 0)
    assert assembler.next_deadline_ns() == 1000


def test_a_skipped_number_makes_no_gap() -> None:
    assembler = assemble()
    assembler.skip("stock", "e1", 1, 0)
    assembler.push(Envelope(topic="stock", message=mark(1, 1, 0), epoch="e1", seq=2), 0)
    assembler.push(Envelope(topic="crypto", message=mark(1, 1, 0), epoch="e1", seq=1), 0)
    assert summary(take_all(assembler)) == [(1, 1, [])]


@pytest.mark.parametrize("epoch", ["", "e1"])
def test_news_passes_at_once(epoch: str) -> None:
    assembler = assemble()
    news = News(symbols=("A",), headline="h")
    assembler.push(Envelope(topic="news", message=news, epoch=epoch, seq=1), 0)
    assert take_all(assembler) == [news]


def test_a_late_bar_is_left_out_and_told_when_the_policy_says_so() -> None:
    barrier = build(drops_late=True, grace_ns=GRACE_NS)
    barrier.push_bar("t", bar("A", 1), 0)
    barrier.expire(GRACE_NS)
    barrier.push_bar("t", bar("B", 1), GRACE_NS + 1)
    assert barrier.take_dropped() == [bar("B", 1)]
    assert barrier.take_dropped() == []
    barrier.push_bar("t", bar("A", 2), GRACE_NS + 2)
    barrier.push_bar("t", bar("B", 2), GRACE_NS + 3)
    assert summary(take_all(barrier)) == [(None, 1, ["A@1"]), (None, 2, ["A@2", "B@2"])]
    assert barrier.counts["late_bars"] == barrier.counts["dropped_late_bars"] == 1
    assert barrier.next_deadline_ns() is None


@pytest.mark.parametrize("drops_late", [False, True])
@pytest.mark.parametrize("tells_revised", [False, True])
def test_what_is_not_delivered_is_told_by_the_declared_policy(drops_late: bool, tells_revised: bool) -> None:
    assembler = SliceAssembler(
        sequencer=Sequencer(),
        barrier=build(drops_late=drops_late, grace_ns=GRACE_NS),
        tells_revised=tells_revised,
    )

    def push(sent: Bar, now_ns: int) -> None:
        assembler.push(Envelope(topic="t", message=sent), now_ns)

    push(bar("A", 2), 0)
    assembler.expire(GRACE_NS)
    push(bar("B", 2), GRACE_NS + 1)  # late for its slice
    push(bar("A", 1), GRACE_NS + 2)  # older than its symbol's last one
    push(bar("A", 2, revision=1), GRACE_NS + 3)
    push(bar("A", 2), GRACE_NS + 4)  # once more: nothing is told
    push(bar("A", 3), GRACE_NS + 5)
    push(bar("B", 3), GRACE_NS + 6)
    events = take_all(assembler)
    notes = [event for event in events if isinstance(event, BarNote)]
    late = [BarNote(bar=bar("B", 2))] if drops_late else []
    revised = BarNote(bar=bar("A", 2, revision=1), is_revision=True, is_told=tells_revised)
    assert notes == [*late, BarNote(bar=bar("A", 1)), revised]
    slices = summary(event for event in events if isinstance(event, Slice))
    # Two bars of B: the late one goes before the slice.
    held = [] if drops_late else [(None, 2, ["B@2"])]
    assert slices == [(None, 2, ["A@2"]), *held, (None, 3, ["A@3", "B@3"])]
    assert assembler.counts()["older_bars"] == assembler.counts()["revised_bars"] == 1
