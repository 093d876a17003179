"""The catalog's files: where they are, that they are whole, and that writing again changes nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import ConfigError, DataFileError, StorageError
from dry_work.feeds.recorded import read_bars
from dry_work.recording import catalog as catalog_module
from dry_work.recording.catalog import LOCK_NAME, CatalogWriter, catalog_name
from dry_work.storage import FolderStorage

START_NS = 1_718_112_600_000_000_000  # 2024-06-11 13:30 UTC


def bars(times_ns: list[int], close: float = 1.0) -> dict[str, Any]:
    names = ("open", "high", "low", "close", "volume")
    return {"ts_event_ns": times_ns, **{name: [close] * len(times_ns) for name in names}}


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def test_rows_are_cut_into_days_of_utc(tmp_path: Path) -> None:
    catalog = CatalogWriter(FolderStorage(tmp_path))
    midnight = START_NS // DAY_NS * DAY_NS + DAY_NS
    assert catalog.add("bars", "BTC/USD", bars([midnight, midnight - 1, midnight + MINUTE_NS])) == 3
    catalog.add("bars", "BRK.B", bars([START_NS]), timeframe="5m")
    catalog.add("trades", "SPY", {"ts_event_ns": [START_NS], "price": [1], "size": [2]})
    columns = {name: [1.0] for name in ("bid_price", "bid_size", "ask_price", "ask_size")}
    catalog.add("quotes", "SPY", {"ts_event_ns": [START_NS], **columns})
    assert files(tmp_path) == {}, "nothing is written before flush"
    report = catalog.flush()
    assert sorted(files(tmp_path)) == [
        "bars/1m/BTC-USD/2024-06-11.parquet",
        "bars/1m/BTC-USD/2024-06-12.parquet",
        "bars/5m/BRK.B/2024-06-11.parquet",
        "quotes/SPY/2024-06-11.parquet",
        "trades/SPY/2024-06-11.parquet",
    ]
    assert (report.files_written, report.rows.added) == (5, 6)
    table = pq.read_table(tmp_path / "bars/1m/BTC-USD/2024-06-12.parquet", partitioning=None)
    assert table.column("symbol").to_pylist() == ["BTC/USD"] * 2
    assert catalog.days("bars", "BTC/USD") == [date(2024, 6, 11), date(2024, 6, 12)]
    assert catalog.days("trades", "IBM") == []


def test_daily_bars_are_kept_by_year(tmp_path: Path) -> None:
    catalog = CatalogWriter(FolderStorage(tmp_path))
    first = datetime(2023, 12, 29, 5, tzinfo=UTC)
    times = [int((first + timedelta(days=number)).timestamp()) * 10**9 for number in range(10)]
    catalog.add("bars", "SPY", bars(times), timeframe="1d")
    catalog.flush()
    assert sorted(files(tmp_path)) == ["bars/1d/SPY/2023.parquet", "bars/1d/SPY/2024.parquet"]
    assert catalog.days("bars", "SPY", timeframe="1d") == [date(2023, 1, 1), date(2024, 1, 1)]
    assert catalog_name("bars", "SPY", date(2024, 5, 6), timeframe="1d") == "bars/1d/SPY/2024.parquet"


def test_the_same_rows_again_change_no_byte_and_no_time_of_a_file(tmp_path: Path) -> None:
    states = []
    for number in range(3):
        catalog = CatalogWriter(FolderStorage(tmp_path))
        catalog.add("bars", "SPY", bars([START_NS, START_NS + MINUTE_NS]))
        catalog.add("trades", "SPY", {"ts_event_ns": [START_NS] * 2, "price": [1, 1], "size": [2, 2]})
        report = catalog.flush()
        assert (report.files_written, report.files_unchanged) == ((2, 0) if number == 0 else (0, 2))
        states.append((files(tmp_path), [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.parquet"))]))
    assert states[1] == states[2] == states[0]


def test_pieces_in_any_order_give_the_bytes_of_one_piece(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    times = [START_NS + number * MINUTE_NS for number in range(60)]
    catalog = CatalogWriter(FolderStorage(whole))
    catalog.add("bars", "SPY", bars(times))
    catalog.flush()
    catalog = CatalogWriter(FolderStorage(pieces), pending_rows=15)
    for low in (30, 0, 50, 40, 10, 20, 30):
        catalog.add("bars", "SPY", bars(times[low : low + 10]))
    assert files(pieces), "what waits is bounded"
    catalog.flush()
    assert files(pieces) == files(whole)


def test_what_read_bars_gives_is_what_was_recorded(tmp_path: Path, recordings: Path) -> None:
    source = read_bars([recordings / "bars-IBM-2013-10-07.parquet", recordings / "bars-BTC-USD-2017-09-03.parquet"])
    catalog = CatalogWriter(FolderStorage(tmp_path))
    for symbol in source.symbols:
        catalog.add("bars", symbol, dict(source.columns(symbol)))
    catalog.flush()
    assert read_bars([tmp_path]).fingerprint == source.fingerprint
    assert read_bars([tmp_path]).describe_repairs() == []


def test_a_file_that_cannot_be_read_is_named_and_all_others_are_written(tmp_path: Path) -> None:
    (tmp_path / "bars/1m/IBM").mkdir(parents=True)
    broken = tmp_path / "bars/1m/IBM/2024-06-11.parquet"
    broken.write_bytes(b"not Parquet")
    catalog = CatalogWriter(FolderStorage(tmp_path))
    for symbol in ("IBM", "SPY"):
        catalog.add("bars", symbol, bars([START_NS]))
    with pytest.raises(DataFileError, match=r"bars/1m/IBM/2024-06-11.parquet: cannot be read, so that nothing"):
        catalog.flush()
    assert broken.read_bytes() == b"not Parquet"
    assert "bars/1m/SPY/2024-06-11.parquet" in files(tmp_path)
    broken.unlink()
    catalog.flush()
    assert pq.read_table(broken, partitioning=None).num_rows == 1, "nothing given is lost"


def test_bad_rows_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    catalog = CatalogWriter(FolderStorage(tmp_path))
    with pytest.raises(ValueError, match="columns missing"):
        catalog.add("bars", "SPY", {"timestamp": [START_NS]})
    with pytest.raises(ValueError, match="before 1970"):
        catalog.add("bars", "SPY", bars([-1]))
    with pytest.raises(ConfigError, match="time frame 'x'"):
        catalog.add("bars", "SPY", bars([START_NS]), timeframe="x")
    with pytest.raises(ConfigError, match="not a symbol"):
        catalog.add("bars", "../SPY", bars([START_NS]))
    assert catalog.add("bars", "SPY", bars([])) == 0
    catalog.flush()
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_writes_the_catalog_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = CatalogWriter(FolderStorage(tmp_path))
    catalog.add("bars", "SPY", bars([START_NS]))
    monkeypatch.setattr(catalog_module, "_LOCK_S", 0.05)
    with (tmp_path / LOCK_NAME).open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process has been writing this catalog"):
            catalog.flush()
    assert catalog.flush().files_written == 1


KILLED = """
import os, signal, sys
from dry_work.recording.catalog import CatalogWriter
from dry_work.storage import FolderStorage

class Killing(FolderStorage):
    left = int(sys.argv[2])
    def write(self, name, data):
        if not Killing.left:
            os.kill(os.getpid(), signal.SIGKILL)
        Killing.left -= 1
        super().write(name, data)

catalog = CatalogWriter(Killing(__import__("pathlib").Path(sys.argv[1])))
names = ("open", "high", "low", "close", "volume")
for day in range(6):
    catalog.add("bars", "SPY", {"ts_event_ns": [day * 86_400 * 10**9], **{name: [1.0] for name in names}})
catalog.flush()
"""


def test_a_flush_that_was_killed_is_completed_by_the_same_call(tmp_path: Path) -> None:
    def run(root: Path, writes: int) -> int:
        args = [sys.executable, "-c", KILLED, str(root), str(writes)]
        return subprocess.run(args, timeout=60, check=False).returncode

    assert run(tmp_path / "whole", 99) == 0
    assert run(tmp_path / "killed", 3) == -signal.SIGKILL
    assert len(files(tmp_path / "killed")) == 3
    assert run(tmp_path / "killed", 99) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert len(files(tmp_path / "whole")) == 6


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = FolderStorage(tmp_path / "file" / "below")
    catalog = CatalogWriter(storage)
    catalog.add("bars", "SPY", bars([START_NS]))
    with pytest.raises(StorageError, match="cannot be written"):
        catalog.flush()
    assert os.listdir(tmp_path) == ["file"]
