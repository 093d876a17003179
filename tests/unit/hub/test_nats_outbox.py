"""The file that order updates wait in."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.errors import ConfigError
from dry_work.hub.sinks.nats_outbox import Outbox, Record


def make(number: int) -> Record:
    return Record(f"e-{number}", "SPY", number, {"event": "fill", "qty": "1.50"})


def drain(outbox: Outbox) -> list[str]:
    found = []
    while (record := outbox.first()) is not None:
        found.append(record.event_id)
        outbox.remove_first()
    return found


def test_records_come_out_in_their_order_and_the_file_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "outbox"
    outbox = Outbox(path)
    for number in range(3):
        outbox.append(make(number))
    assert outbox.first() == make(0)
    assert outbox.oldest(2) == [make(0), make(1)]
    assert outbox.oldest(9) == [make(0), make(1), make(2)]
    assert outbox.waiting == 3
    assert drain(outbox) == ["e-0", "e-1", "e-2"]
    assert outbox.waiting == 0
    assert path.stat().st_size == 21
    outbox.append(Record("d", "", 1, {"qty": Decimal("1.5")}))
    assert outbox.first() == Record("d", "", 1, {"qty": "1.5"})
    outbox.close()
    outbox.close()


@given(st.lists(st.sampled_from(["append", "remove", "restart"]), max_size=40))
def test_a_restart_takes_nothing_away_and_brings_nothing_back(steps: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox"
        outbox, expected, count = Outbox(path), [], 0
        for step in steps:
            if step == "append":
                outbox.append(make(count))
                expected.append(f"e-{count}")
                count += 1
            elif step == "remove" and expected:
                outbox.remove_first()
                expected.pop(0)
            elif step == "restart":
                outbox.close()
                outbox = Outbox(path)
                assert outbox.waiting == outbox.recovered == len(expected)
        assert drain(outbox) == expected
        outbox.close()


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_record_that_a_crash_has_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "outbox"
    outbox = Outbox(path)
    outbox.append(make(1))
    outbox.append(make(2))
    outbox.close()
    path.write_bytes(path.read_bytes()[:-cut])
    outbox = Outbox(path)
    assert outbox.waiting == 1
    outbox.append(make(3))
    assert drain(outbox) == ["e-1", "e-3"]
    outbox.close()


def test_records_up_to_an_id_are_counted() -> None:
    outbox = Outbox(None)
    for number in range(3):
        outbox.append(make(number))
    assert [outbox.count_through(f"e-{number}") for number in range(4)] == [1, 2, 3, 0]
    outbox.close()


def test_two_hubs_cannot_share_the_file(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    with pytest.raises(ConfigError, match="in use by another hub"):
        Outbox(tmp_path / "outbox")
    outbox.close()
    Outbox(tmp_path / "outbox").close()
