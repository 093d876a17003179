from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dry_work.backtest.sweep_data import CachedRecording, SharedRecording, cache_folder, map_recording, write_whole
from dry_work.clock import MINUTE_NS
from dry_work.errors import StorageError
from dry_work.feeds.recorded import Recording


def make_recording() -> Recording:
    chance = np.random.default_rng(3)
    columns = {}
    for symbol, rows in (("SPY", 101), ("BTC/USD", 57)):
        prices = 100 + chance.standard_normal((4, rows)).cumsum(axis=1)
        columns[symbol] = {
            "ts_event_ns": np.arange(rows) * MINUTE_NS,
            **dict(zip(("open", "high", "low", "close"), prices, strict=True)),
            "volume": np.ones(rows),
        }
    columns["SPY"]["mood"] = np.where(np.arange(101) % 3 == 0, np.nan, 0.5)
    return Recording(columns, length_ns=5 * MINUTE_NS)


def assert_equal(first: Recording, second: Recording) -> None:
    assert first.symbols == second.symbols
    assert first.length_ns == second.length_ns
    for symbol in first.symbols:
        assert list(first.columns(symbol)) == list(second.columns(symbol))
        for name, values in first.columns(symbol).items():
            np.testing.assert_array_equal(values, second.columns(symbol)[name])
    assert first.fingerprint == second._compute_fingerprint()


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_shared_columns_are_those_of_the_recording_and_are_not_copied() -> None:
    recording = make_recording()
    shared = SharedRecording(recording)
    mapped = shared.load()
    shared.close()
    shared.close()
    assert_equal(recording, mapped)
    assert mapped.fingerprint == recording.fingerprint
    values = mapped.columns("SPY")["close"]
    assert not values.flags.writeable
    assert not values.flags.owndata
    first, second = (mapped.columns("SPY")[name].__array_interface__["data"][0] for name in ("close", "volume"))
    assert second - first == 832  # one mapping, at steps of 64 bytes


def test_a_part_of_a_recording_keeps_the_name_of_the_whole() -> None:
    shared = SharedRecording(make_recording(), fingerprint="of the whole")
    assert shared.load().fingerprint == "of the whole"
    shared.close()


def test_another_process_maps_the_descriptor_it_inherits() -> None:
    recording = make_recording()
    shared = SharedRecording(recording)
    code = """
import sys
from dry_work.backtest.sweep_data import map_recording
print(map_recording(int(sys.argv[1]))._compute_fingerprint())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(shared.fileno())],
        pass_fds=[shared.fileno()], capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    shared.close()
    assert done.stdout.strip() == recording.fingerprint


@pytest.mark.parametrize("protocol", [4, 5])
def test_pickled_it_brings_the_data_along_once_and_can_be_passed_on(protocol: int) -> None:
    recording = make_recording()
    shared = SharedRecording(recording)
    content = pickle.dumps(shared, protocol=protocol)
    shared.close()
    received = pickle.loads(content)
    assert isinstance(received, CachedRecording)
    assert_equal(recording, received.load())
    assert list(cache_folder().iterdir()) == [received.path]
    written = received.path.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(received, protocol=protocol))
    assert again.path == received.path
    assert received.path.stat().st_mtime_ns == written
    assert_equal(recording, again.load())


def test_no_room_for_the_shared_columns_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("r+b"))  # noqa: SIM115
    with pytest.raises(StorageError, match=r"no room for the data that the workers share: .*; set TMPDIR"):
        SharedRecording(make_recording())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_whole(tmp_path / "folder", b"content")
    with pytest.raises(StorageError, match="cannot be written"):
        write_whole(tmp_path / "nowhere" / "file", b"content")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["file", "folder"]


def test_an_empty_mapping_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    with path.open("rb") as file, pytest.raises(ValueError):
        map_recording(file.fileno())
