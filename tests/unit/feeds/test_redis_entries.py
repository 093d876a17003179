"""The order of entries of several Redis streams."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("redis", reason="redis is not installed")

from dry_work.feeds.redis import Entries, merge_entries


def entry(entry_id: str, offset: int, epoch: str = "e1") -> tuple[bytes, dict[bytes, bytes]]:
    return entry_id.encode(), {b"epoch": epoch.encode(), b"offset": b"%d" % offset}


def offsets(merged: list[tuple[bytes, bytes, dict[bytes, bytes]]]) -> list[int]:
    return [int(fields[b"offset"]) for _, _, fields in merged]


def test_offsets_make_the_order_whatever_the_ids_of_other_streams_are() -> None:
    found: dict[bytes, Entries] = {
        b"b": [entry("5-1", 2), entry("6-0", 5)],
        b"a": [entry("5-0", 3), entry("5-1", 4)],
        b"w": [entry("5-0", 1)],
    }
    merged = merge_entries(found, limit=10)
    assert offsets(merged) == [1, 2, 3, 4, 5]
    assert [key for key, _, _ in merged] == [b"w", b"b", b"a", b"a", b"b"]


def test_a_new_epoch_follows_the_older_one_although_it_counts_anew() -> None:
    found: dict[bytes, Entries] = {
        b"a": [entry("5-0", 8), entry("9-0", 1, "e2")],
        b"b": [entry("6-0", 9), entry("9-1", 2, "e2")],
    }
    assert offsets(merge_entries(found, limit=10)) == [8, 9, 1, 2]


def test_nothing_goes_beyond_a_stream_that_was_not_read_to_its_end() -> None:
    found: dict[bytes, Entries] = {b"a": [entry("1-0", 1), entry("2-0", 4)], b"b": [entry("1-1", 2), entry("9-0", 7)]}
    assert offsets(merge_entries(found, limit=2)) == [1, 2, 4]
    assert offsets(merge_entries(found, limit=3)) == [1, 2, 4, 7]


def test_reads_of_any_size_give_every_entry_once_and_in_order() -> None:
    rng = random.Random(3)
    streams: dict[bytes, Entries] = {b"a": [], b"b": [], b"c": []}
    for offset in range(1, 200):
        streams[rng.choice(list(streams))].append(entry(f"{offset // 7}-{offset}", offset))
    for limit in (1, 2, 7, 300):
        at = dict.fromkeys(streams, 0)
        seen: list[int] = []
        while True:
            found = {key: rows[at[key] : at[key] + limit] for key, rows in streams.items() if rows[at[key] :]}
            if not found:
                break
            merged = merge_entries(found, limit=limit)
            assert merged
            for key, _, _ in merged:
                at[key] += 1
            seen += offsets(merged)
        assert seen == list(range(1, 200))


def test_entries_that_are_not_the_hubs_are_taken_too() -> None:
    merged = merge_entries({b"a": [(b"1-0", {b"x": b"y"})]}, limit=5)
    assert merged == [(b"a", b"1-0", {b"x": b"y"})]
