from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dry_work.backtest.sweep_store import Identity, SweepStore
from dry_work.backtest.sweep_task import Figures, SweepRow
from dry_work.errors import LeaseHeldError, StorageError

IDENTITY = Identity(
    agent="a.py:A", source_digest="s1", fingerprint="f1", settings={"cash": "100000", "tz": "UTC"}, version="1"
)


def row(number: int, error: str = "") -> SweepRow:
    figures = Figures(
        total_return=number / 7,
        sharpe=None,
        sortino=0.1,
        calmar=None,
        max_drawdown=0.25,
        trades=number,
        fills=2 * number,
        final_value=1e5 + number,
    )
    return SweepRow(key=f'{{"n": "{number}"}}', seconds=0.5, whole=figures, inside=figures, error=error)


def fill(folder: Path, count: int, identity: Identity = IDENTITY) -> Path:
    store = SweepStore(folder, identity)
    for number in range(count):
        store.add(row(number))
    store.close()
    store.close()
    return store.path


def reopen(folder: Path, identity: Identity = IDENTITY, *, fresh: bool = False) -> tuple[dict[str, SweepRow], str]:
    store = SweepStore(folder, identity, fresh=fresh)
    store.close()
    return store.rows, store.note


def test_results_are_found_again_to_the_last_digit(tmp_path: Path) -> None:
    fill(tmp_path / "new" / "folder", 3)
    rows, note = reopen(tmp_path / "new" / "folder")
    assert list(rows.values()) == [row(0), row(1), row(2)]
    assert note == "going on: 3 results are there already"


def test_the_first_sweep_in_a_folder_needs_no_explanation(tmp_path: Path) -> None:
    assert reopen(tmp_path) == ({}, "")
    assert reopen(tmp_path) == ({}, "")


def test_a_later_result_of_a_set_stands_for_it(tmp_path: Path) -> None:
    store = SweepStore(tmp_path, IDENTITY)
    store.add(row(1, error="its worker died"))
    store.add(row(1))
    store.close()
    assert reopen(tmp_path)[0] == {row(1).key: row(1)}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_end_is_left_out_and_written_over(tmp_path: Path, cut: int) -> None:
    path = fill(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    store = SweepStore(tmp_path, IDENTITY)
    assert list(store.rows.values()) == [row(0), row(1)]
    assert store.note == "going on: 2 results are there already; 1 damaged line left out"
    store.add(row(9))
    store.close()
    rows, note = reopen(tmp_path)
    assert list(rows.values()) == [row(0), row(1), row(9)]
    assert note == "going on: 3 results are there already"


def test_a_damaged_line_costs_its_own_set_only(tmp_path: Path) -> None:
    path = fill(tmp_path, 3)
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"0.5", b"0.6")
    path.write_bytes(b"\n".join(lines))
    rows, note = reopen(tmp_path)
    assert list(rows.values()) == [row(0), row(2)]
    assert note.endswith("1 damaged line left out")


def test_a_damaged_head_is_put_aside_whole(tmp_path: Path) -> None:
    path = fill(tmp_path, 3)
    damaged = b"x" + path.read_bytes()
    path.write_bytes(damaged)
    rows, note = reopen(tmp_path)
    assert rows == {}
    assert "was damaged and was put aside" in note
    assert path.with_suffix(".damaged-1").read_bytes() == damaged
    assert reopen(tmp_path) == ({}, "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_digest": "s2"}, "the strategy's file"),
        ({"agent": "b.py:B", "source_digest": "s2"}, "the agent (a.py:A → b.py:B)"),
        ({"fingerprint": "f2"}, "the data"),
        ({"settings": {"cash": "5", "engine": "stock"}}, "cash (100000 → 5), engine (none → stock), tz (UTC → none)"),
        ({"version": "2"}, "Dry Work (1 → 2)"),
    ],
)
def test_another_sweep_starts_afresh_says_why_and_takes_nothing_away(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    fill(tmp_path, 2)
    changed = msgspec.structs.replace(IDENTITY, **changes)
    assert reopen(tmp_path, changed) == ({}, f"starting afresh, since this is another than before: {said}")
    assert len(reopen(tmp_path)[0]) == 2


def test_fresh_puts_earlier_results_aside(tmp_path: Path) -> None:
    path = fill(tmp_path, 2)
    content = path.read_bytes()
    assert reopen(tmp_path, fresh=True) == ({}, "2 earlier results were put aside, as asked")
    assert path.with_suffix(".old-1").read_bytes() == content
    assert reopen(tmp_path) == ({}, "")


def test_one_process_at_a_time_writes_the_results(tmp_path: Path) -> None:
    store = SweepStore(tmp_path, IDENTITY)
    try:
        with pytest.raises(LeaseHeldError, match="another sweep is writing it"):
            SweepStore(tmp_path, IDENTITY)
    finally:
        store.close()
    reopen(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written: .*; choose another --out"):
        SweepStore(tmp_path / "file" / "folder", IDENTITY)
