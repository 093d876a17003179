"""Logs become the catalog, as often as one likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.market.messages import Bar, News, Watermark
from dry_work.recording import compaction
from dry_work.recording.catalog import CatalogWriter
from dry_work.recording.compaction import CompactionReport, compact_sessions
from dry_work.recording.frames import Frame
from dry_work.recording.log import LogWriter, find_segments, find_sessions
from dry_work.recording.recorder import MESSAGE, RecordedMessage, Recorder
from dry_work.storage import FolderStorage
from dry_work.wire.pubsub import encode_bar, encode_batch, encode_news, encode_watermark

START_NS = 1_718_112_600_000_000_000
RECEIVED_NS = START_NS + DAY_NS // 2


def bar(minute: int, symbol: str = "SPY", close: float = 10.0, **fields: Any) -> Bar:
    prices = {"open": close, "high": close, "low": close, "close": close}
    return Bar(symbol=symbol, ts_event_ns=START_NS + minute * MINUTE_NS, volume=5.0, **prices, **fields)


Message = tuple[bytes, dict[str, str]]


def record(root: Path, *messages: Message, facts: dict[str, Any] | None = None, **options: Any) -> Path:
    recorder = Recorder(root, writer="test", facts=facts, **options)
    recorder.start()
    for number, (data, attributes) in enumerate(messages):
        message = RecordedMessage("market-data", data, attributes)
        recorder.record(message, venue_ns=0, recv_ns=RECEIVED_NS + number)
    recorder.stop()
    assert recorder.folder is not None
    return recorder.folder


def compact(root: Path, out: Path, **options: Any) -> CompactionReport:
    return compact_sessions(find_sessions(root), CatalogWriter(FolderStorage(out)), **options)


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / name, partitioning=None).to_pylist()
    return found


def test_each_bar_is_in_the_catalog_once_with_its_time_of_receipt(tmp_path: Path) -> None:
    news = News(symbols=("SPY",), headline="h")
    folder = record(
        tmp_path / "logs",
        encode_bar(bar(1, vwap=10.5, extra={"sentiment": 0.5}), epoch="e", seq=1),
        encode_bar(bar(1, vwap=10.5, extra={"sentiment": 0.5}), epoch="e", seq=1),
        encode_watermark(Watermark(slice=1, end_ns=START_NS, bars=1)),
        encode_news(news),
        encode_batch([bar(2), bar(2, "BTC/USD", 67_000.0)]),
        encode_bar(bar(0)),
    )
    report = compact(tmp_path / "logs", tmp_path / "out")
    assert (report.sessions, report.messages, report.bars) == (1, 6, 5)
    assert report.catalog.rows.added == 4
    assert report.damages == []
    found = rows(tmp_path / "out", "bars/1m/SPY/2024-06-11.parquet")
    assert [row["timestamp"].minute for row in found] == [30, 31, 32]
    assert [row["sentiment"] for row in found] == [None, 0.5, None]
    assert [row["vwap"] for row in found] == [None, 10.5, None]
    received = pq.read_table(tmp_path / "out/bars/1m/SPY/2024-06-11.parquet", partitioning=None).column("received")
    assert received.cast(pa.int64()).to_pylist() == [RECEIVED_NS + 5, RECEIVED_NS, RECEIVED_NS + 4]
    assert (tmp_path / "out/bars/1m/BTC-USD/2024-06-11.parquet").exists()
    assert find_segments(folder), "the log stays"
    recording = read_bars([tmp_path / "out"])
    assert recording.symbols == ("BTC/USD", "SPY")
    assert recording.extra_fields("SPY") == ("sentiment",)


def test_doing_it_again_changes_no_byte(tmp_path: Path) -> None:
    messages = [encode_bar(bar(minute, symbol)) for minute in range(30) for symbol in ("SPY", "IBM")]
    record(tmp_path / "logs", *messages[:40])
    record(tmp_path / "logs", *messages[20:])
    first = compact(tmp_path / "logs", tmp_path / "out")
    assert (first.bars, first.catalog.rows.added, first.catalog.rows.duplicates) == (80, 60, 20)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    again = compact(tmp_path / "logs", tmp_path / "out")
    assert (again.catalog.files_written, again.catalog.files_unchanged, again.catalog.rows.added) == (0, 2, 0)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")} == before


def test_the_pieces_in_which_it_is_done_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [encode_bar(bar(minute, symbol)) for minute in range(30) for symbol in ("SPY", "IBM")]
    record(tmp_path / "logs", *messages)
    compact(tmp_path / "logs", tmp_path / "whole")
    monkeypatch.setattr(compaction, "_BARS_AT_ONCE", 7)
    compact_sessions(find_sessions(tmp_path / "logs"), CatalogWriter(FolderStorage(tmp_path / "cut"), pending_rows=10))
    for path in (tmp_path / "whole").rglob("*.parquet"):
        assert (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_the_highest_revision_of_a_bar_stays(tmp_path: Path) -> None:
    record(tmp_path / "logs", encode_bar(bar(1, close=11.0, revision=1)), encode_bar(bar(1)), encode_bar(bar(2)))
    record(tmp_path / "logs", encode_bar(bar(2, close=12.0, revision=1)))
    compact(tmp_path / "logs", tmp_path / "out")
    found = rows(tmp_path / "out", "bars/1m/SPY/2024-06-11.parquet")
    assert [(row["close"], row["revision"]) for row in found] == [(11.0, 1), (12.0, 1)]


def test_bars_that_differ_are_counted_and_the_first_stays(tmp_path: Path) -> None:
    record(tmp_path / "logs", encode_bar(bar(1)), encode_bar(bar(1, close=99.0)))
    report = compact(tmp_path / "logs", tmp_path / "out")
    assert report.catalog.rows.conflicts == 1
    assert [row["close"] for row in rows(tmp_path / "out", "bars/1m/SPY/2024-06-11.parquet")] == [10.0]
    assert "1 bars differ from the one of the same time that stays" in report.describe()


def test_symbols_are_those_that_the_log_names_unless_others_are_asked_for(tmp_path: Path) -> None:
    messages = [encode_bar(bar(1, symbol)) for symbol in ("SPY", "IBM", "AAPL")]
    record(tmp_path / "logs", *messages, facts={"symbols": ["SPY", "IBM"]})
    report = compact(tmp_path / "logs", tmp_path / "out")
    assert (report.bars, report.other_symbols) == (2, 1)
    assert "1 bars of other symbols stay in the log only" in report.describe()
    report = compact(tmp_path / "logs", tmp_path / "out", symbols={"AAPL"})
    assert (report.bars, report.other_symbols) == (1, 2)
    assert read_bars([tmp_path / "out"]).symbols == ("AAPL", "IBM", "SPY")


def test_the_length_of_the_bars_is_what_the_log_says(tmp_path: Path) -> None:
    record(tmp_path / "logs", encode_bar(bar(0)), facts={"length_ns": 5 * MINUTE_NS})
    compact(tmp_path / "logs", tmp_path / "out")
    assert (tmp_path / "out/bars/5m/SPY/2024-06-11.parquet").exists()


def test_what_cannot_be_used_is_counted_by_reason(tmp_path: Path) -> None:
    future = bar(3 * 24 * 60)
    batch, attributes = encode_batch([bar(1), future])
    record(
        tmp_path / "logs",
        (b"{", {}),
        encode_bar(bar(1, close=-1.0)),
        encode_bar(future),
        (batch.replace(b'"volume":5.0', b'"volume":-5', 1), attributes),
    )
    writer = LogWriter(tmp_path / "logs", session="zz", writer="test")
    writer.append(Frame(MESSAGE, 0, 0, b"no message"))
    writer.append(Frame(77, 0, 0, b"of a later version"))
    writer.close()
    report = compact(tmp_path / "logs", tmp_path / "out")
    assert dict(report.dropped) == {
        "not JSON": 1,
        "negative price": 1,
        "future timestamp": 2,
        "bad volume": 1,
        "no recorded message": 1,
    }
    assert (report.messages, report.bars) == (5, 0)
    assert not (tmp_path / "out").exists()


def test_a_damaged_log_gives_what_is_before_the_damage_and_the_segments_behind_it(tmp_path: Path) -> None:
    messages = [encode_bar(bar(minute)) for minute in range(100)]
    folder = record(tmp_path / "logs", *messages, segment_bytes=5000)
    paths = find_segments(folder)
    assert len(paths) > 4
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 1
    paths[1].write_bytes(bytes(data))
    report = compact(tmp_path / "logs", tmp_path / "out")
    assert len(report.damages) == 1
    assert report.damages[0].path == str(paths[1])
    assert report.describe()[-1].startswith(f"damaged: {paths[1]}, byte ")
    found = [
        row["timestamp"].minute + 60 * row["timestamp"].hour
        for row in rows(tmp_path / "out", "bars/1m/SPY/2024-06-11.parquet")
    ]
    assert found[0] == 13 * 60 + 30
    assert found[-1] == 13 * 60 + 30 + 99
    assert 60 < len(found) < 100


def test_the_cut_end_of_a_killed_recorder_is_no_damage(tmp_path: Path) -> None:
    folder = record(tmp_path / "logs", encode_bar(bar(1)), encode_bar(bar(2)))
    path = find_segments(folder)[0]
    path.write_bytes(path.read_bytes()[:-60])
    report = compact(tmp_path / "logs", tmp_path / "out")
    assert (report.damages, report.unfinished, report.bars) == ([], 1, 1)


def test_a_recording_that_is_received_whole_is_equal_to_its_source(tmp_path: Path, recordings: Path) -> None:
    source: Recording = read_bars([recordings / "bars-SPY-2013-10-08.parquet"])
    record(tmp_path / "logs", *[encode_bar(each) for each in source.bars("SPY")])
    compact(tmp_path / "logs", tmp_path / "out")
    assert read_bars([tmp_path / "out"]).fingerprint == source.fingerprint
