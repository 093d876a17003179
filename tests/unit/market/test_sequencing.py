from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.market.messages import Bar, Envelope, News
from dry_work.market.sequencing import BarPolicy, Sequencer, Verdict, merge_counts


def numbered(seq: int, *, epoch: str = "e1", topic: str = "t") -> Envelope:
    return Envelope(topic=topic, message=News(symbols=(), headline=f"{epoch} {seq}"), epoch=epoch, seq=seq)


def seqs(envelopes: list[Envelope]) -> list[int]:
    return [envelope.seq for envelope in envelopes]


def test_messages_in_order_pass_at_once() -> None:
    sequencer = Sequencer()
    assert [seqs(sequencer.push(numbered(seq), 0)) for seq in (1, 2, 3)] == [[1], [2], [3]]
    assert sequencer.next_deadline_ns() is None
    assert sequencer.counts == {"epochs": 1}


def test_a_number_that_comes_early_waits_for_the_one_before_it() -> None:
    sequencer = Sequencer()
    sequencer.push(numbered(1), 0)
    assert sequencer.push(numbered(3), 0) == []
    assert sequencer.push(numbered(4), 0) == []
    assert seqs(sequencer.push(numbered(2), 0)) == [2, 3, 4]
    assert sequencer.counts["reordered_messages"] == 2


def test_a_gap_is_given_up_when_its_time_has_passed() -> None:
    sequencer = Sequencer(wait_ns=SECOND_NS)
    sequencer.push(numbered(1), 0)
    sequencer.push(numbered(4), 100)
    assert sequencer.next_deadline_ns() == 100 + SECOND_NS
    assert sequencer.expire(99 + SECOND_NS) == []
    assert seqs(sequencer.expire(100 + SECOND_NS)) == [4]
    assert sequencer.counts["gaps"] == 1
    assert sequencer.counts["missing_messages"] == 2
    assert sequencer.next_deadline_ns() is None


def test_each_gap_waits_from_the_first_message_behind_it() -> None:
    sequencer = Sequencer(wait_ns=1000)
    sequencer.push(numbered(1), 0)
    sequencer.push(numbered(3), 0)
    sequencer.push(numbered(5), 600)
    assert seqs(sequencer.expire(1000)) == [3]
    assert sequencer.next_deadline_ns() == 1600
    assert seqs(sequencer.expire(1600)) == [5]


def test_a_message_behind_its_gap_still_passes_and_only_once() -> None:
    sequencer = Sequencer(wait_ns=1000)
    for seq in (1, 3):
        sequencer.push(numbered(seq), 0)
    sequencer.expire(1000)
    assert seqs(sequencer.push(numbered(2), 1001)) == [2]
    assert sequencer.push(numbered(2), 1002) == []
    assert sequencer.counts["late_messages"] == 1
    assert sequencer.counts["duplicate_messages"] == 1


def test_a_gap_is_given_up_when_the_window_is_full() -> None:
    sequencer = Sequencer(window=3)
    sequencer.push(numbered(1), 0)
    for seq in (3, 4, 5):
        assert sequencer.push(numbered(seq), 0) == []
    assert seqs(sequencer.push(numbered(6), 0)) == [3, 4, 5, 6]
    assert sequencer.counts["gaps"] == 1


def test_duplicates_are_dropped_wherever_they_are() -> None:
    sequencer = Sequencer()
    for seq in (1, 3, 1, 3):
        sequencer.push(numbered(seq), 0)
    assert seqs(sequencer.push(numbered(2), 0)) == [2, 3]
    assert sequencer.push(numbered(3), 0) == []
    assert sequencer.counts["duplicate_messages"] == 3


def test_an_epoch_seen_from_its_middle_begins_with_its_lowest_number_after_a_while() -> None:
    sequencer = Sequencer(settle_ns=250)
    assert sequencer.push(numbered(6), 0) == []
    assert sequencer.push(numbered(5), 10) == []
    assert sequencer.next_deadline_ns() == 250
    assert seqs(sequencer.expire(250)) == [5, 6]
    assert seqs(sequencer.push(numbered(7), 251)) == [7]
    assert sequencer.counts["gaps"] == 0


def test_a_number_before_the_first_one_passes_once() -> None:
    sequencer = Sequencer(settle_ns=250)
    sequencer.push(numbered(6), 0)
    sequencer.expire(250)
    assert seqs(sequencer.push(numbered(5), 300)) == [5]
    assert sequencer.push(numbered(5), 300) == []
    assert sequencer.counts["duplicate_messages"] == 1


@pytest.mark.parametrize("first", [0, 1])
def test_an_epoch_may_begin_with_zero_or_one(first: int) -> None:
    sequencer = Sequencer()
    assert seqs(sequencer.push(numbered(first), 0)) == [first]


def test_messages_without_epoch_pass_as_they_come() -> None:
    sequencer = Sequencer()
    plain = Envelope(topic="t", message=News(symbols=(), headline="h"))
    assert sequencer.push(plain, 0) == [plain]
    assert sequencer.push(plain, 0) == [plain]
    assert sequencer.counts == {}


def test_topics_are_numbered_on_their_own() -> None:
    sequencer = Sequencer()
    sequencer.push(numbered(1, topic="a"), 0)
    assert sequencer.push(numbered(3, topic="a"), 0) == []
    assert seqs(sequencer.push(numbered(1, topic="b"), 0)) == [1]


def test_a_new_epoch_follows_when_the_older_one_is_done() -> None:
    sequencer = Sequencer(wait_ns=1000)
    sequencer.push(numbered(1), 0)
    sequencer.push(numbered(3), 0)
    assert sequencer.push(numbered(1, epoch="e2"), 10) == []
    assert [(e.epoch, e.seq) for e in sequencer.push(numbered(2), 20)] == [("e1", 2), ("e1", 3), ("e2", 1)]
    sequencer.push(numbered(5), 30)
    assert sequencer.push(numbered(2, epoch="e2"), 40) == []
    assert [(e.epoch, e.seq) for e in sequencer.expire(1030)] == [("e1", 5), ("e2", 2)]
    assert sequencer.counts["epochs"] == 2


def test_the_oldest_of_many_epochs_is_finished_rather_than_forgotten() -> None:
    sequencer = Sequencer(wait_ns=1_000_000)
    sequencer.push(numbered(1), 0)
    sequencer.push(numbered(3), 0)
    passed: list[Envelope] = []
    for number in range(2, 12):
        passed += sequencer.push(numbered(1, epoch=f"e{number}"), 1)
    assert [(e.epoch, e.seq) for e in passed[:2]] == [("e1", 3), ("e2", 1)]
    assert len(passed) == 11


def test_the_number_of_an_unusable_message_makes_no_gap() -> None:
    sequencer = Sequencer()
    sequencer.push(numbered(1), 0)
    sequencer.push(numbered(3), 0)
    assert seqs(sequencer.skip("t", "e1", 2, 0)) == [3]
    assert sequencer.skip("t", "", 0, 0) == []
    assert sequencer.counts["gaps"] == 0


def test_a_jump_over_any_number_of_messages_costs_no_memory() -> None:
    sequencer = Sequencer(wait_ns=0, missing_kept=10)
    sequencer.push(numbered(1), 0)
    assert seqs(sequencer.push(numbered(10**17), 0)) == [10**17]
    assert sequencer.counts["missing_messages"] == 10**17 - 2
    assert seqs(sequencer.push(numbered(10**17 - 3), 0)) == [10**17 - 3]


@given(st.integers(1, 60), st.integers(0, 12), st.randoms(use_true_random=False))
def test_any_order_and_repetition_within_the_window_gives_the_original_order(
    count: int, spread: int, rng: random.Random
) -> None:
    sent = [seq for seq in range(1, count + 1) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    arrival = sorted(sent, key=lambda seq: seq + rng.uniform(0, spread))
    sequencer = Sequencer(window=200, settle_ns=1000)
    passed: list[int] = []
    for now_ns, seq in enumerate(arrival):
        passed += seqs(sequencer.push(numbered(seq), now_ns))
    passed += seqs(sequencer.expire(10_000_000_000))
    assert passed == list(range(1, count + 1))
    assert sequencer.counts["duplicate_messages"] == len(sent) - count
    assert sequencer.counts["gaps"] == 0


@given(st.lists(st.integers(0, 30), max_size=80), st.integers(0, 5), st.integers(0, 20))
def test_every_number_passes_exactly_once_whatever_is_lost(arrival: list[int], window: int, wait_ns: int) -> None:
    sequencer = Sequencer(window=window, wait_ns=wait_ns, settle_ns=wait_ns)
    passed: list[int] = []
    for now_ns, seq in enumerate(arrival):
        passed += seqs(sequencer.push(numbered(seq), now_ns))
        passed += seqs(sequencer.expire(now_ns))
    passed += seqs(sequencer.expire(10**9))
    assert sorted(passed) == sorted(set(arrival))
    assert sequencer.next_deadline_ns() is None


def bar(minute: int, *, revision: int = 0, symbol: str = "A", close: float = 1.0) -> Bar:
    return Bar(
        symbol=symbol, ts_event_ns=minute * MINUTE_NS, open=1, high=1, low=1, close=close, volume=1, revision=revision
    )


def test_bars_that_rise_in_time_are_delivered() -> None:
    policy = BarPolicy()
    assert [policy.judge(bar(minute)) for minute in (1, 2, 5)] == [Verdict.DELIVER] * 3
    assert policy.counts == {"time_gaps": 1}


def test_the_same_symbol_time_and_revision_is_a_duplicate() -> None:
    policy = BarPolicy()
    policy.judge(bar(1))
    policy.judge(bar(2))
    assert policy.judge(bar(2, close=9.0)) is Verdict.DUPLICATE
    assert policy.judge(bar(1)) is Verdict.DUPLICATE
    assert policy.judge(bar(2, symbol="B")) is Verdict.DELIVER
    assert policy.counts == {"duplicate_bars": 2}


def test_a_bar_older_than_its_symbols_last_is_dropped() -> None:
    policy = BarPolicy()
    policy.judge(bar(5))
    assert policy.judge(bar(4)) is Verdict.OLDER
    assert policy.counts == {"older_bars": 1}


def test_a_higher_revision_is_recorded_and_not_delivered() -> None:
    policy = BarPolicy()
    policy.judge(bar(1))
    policy.judge(bar(2))
    corrected = bar(2, revision=1, close=2.0)
    assert policy.judge(corrected) is Verdict.REVISION
    assert policy.judge(bar(1, revision=3)) is Verdict.REVISION
    assert policy.judge(bar(2, revision=1)) is Verdict.DUPLICATE
    assert policy.judge(bar(2)) is Verdict.DUPLICATE
    assert policy.revisions[0] is corrected
    assert policy.counts == {"revised_bars": 2, "duplicate_bars": 2}


def test_the_first_bar_of_a_time_is_delivered_whatever_its_revision() -> None:
    policy = BarPolicy()
    assert policy.judge(bar(1, revision=2)) is Verdict.DELIVER
    assert policy.judge(bar(1)) is Verdict.DUPLICATE


def test_a_time_long_past_is_older_even_when_it_was_taken() -> None:
    policy = BarPolicy()
    for minute in range(200):
        policy.judge(bar(minute))
    assert policy.judge(bar(0)) is Verdict.OLDER


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3), st.sampled_from("AB"))))
def test_delivered_bars_of_a_symbol_rise_in_time(arrivals: list[tuple[int, int, str]]) -> None:
    policy = BarPolicy()
    delivered: dict[str, list[int]] = {"A": [], "B": []}
    for minute, revision, symbol in arrivals:
        if policy.judge(bar(minute, revision=revision, symbol=symbol)) is Verdict.DELIVER:
            delivered[symbol].append(minute)
    for minutes in delivered.values():
        assert minutes == sorted(set(minutes))
    dropped = sum(policy.counts[name] for name in ("duplicate_bars", "older_bars", "revised_bars"))
    assert dropped + sum(map(len, delivered.values())) == len(arrivals)


def test_counts_are_merged_by_name() -> None:
    assert merge_counts({"a": 1}, {"a": 2, "b": 3}) == {"a": 3, "b": 3}
