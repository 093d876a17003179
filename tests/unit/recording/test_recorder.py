"""The recorder: everything that is handed over is in the log, nothing waits for it, and a failure is told once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dry_work.recording import log as log_module
from dry_work.recording.frames import NOTE, Frame
from dry_work.recording.log import SessionReader
from dry_work.recording.recorder import MESSAGE, RecordedMessage, Recorder, decode_message


def message(number: int, size: int = 10) -> RecordedMessage:
    return RecordedMessage("market-data", b"x" * size, {"symbol": "SPY", "seq": str(number)}, f"id{number}", number)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def read(folder: Path | None) -> list[Frame]:
    assert folder is not None
    reader = SessionReader(folder)
    frames = list(reader)
    assert reader.damage is None
    return frames


def test_messages_of_several_threads_are_all_in_the_log(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writer="test", facts={"symbols": ["SPY"]}, segment_bytes=20_000)
    recorder.start()

    def hand_over(first: int) -> None:
        for number in range(first, first + 500):
            recorder.record(message(number), venue_ns=number, recv_ns=number + 1)

    threads = [threading.Thread(target=hand_over, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.stop()
    recorder.stop()
    frames = read(recorder.folder)
    assert {frame.kind for frame in frames} == {MESSAGE}
    found = [decode_message(frame.payload) for frame in frames]
    for first in (0, 1000, 2000):
        own = [each for each in found if first <= each.publish_ns < first + 1000]
        assert own == [message(number) for number in range(first, first + 500)], "in the order of their thread"
    assert [frame.venue_ns + 1 for frame in frames] == [frame.recv_ns for frame in frames]
    assert recorder.counters() == {"recorded_messages": 1500}
    assert recorder.describe_trouble() == []
    assert "dry-work-recorder" not in [thread.name for thread in threading.enumerate()]


def test_what_was_handed_over_is_soon_with_the_system(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writer="test")
    recorder.start()
    for number in range(3):
        recorder.record(message(number), venue_ns=0, recv_ns=0)
        wait_until(lambda count=number + 1: len(read(recorder.folder)) == count)  # type: ignore[misc]
    assert recorder.recorded == 3
    assert recorder.recorded_bytes > 0
    recorder.stop()


def test_a_session_in_which_nothing_came_leaves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writer="test")
    recorder.start()
    recorder.stop()
    assert list(tmp_path.iterdir()) == []
    assert recorder.folder is None
    assert recorder.failure is None
    recorder.record(message(1), venue_ns=0, recv_ns=0)
    assert recorder.not_recorded == 0, "nobody asked for what comes after the end"


def test_a_full_queue_does_not_block_and_is_counted_told_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, writer="test", queue_messages=3)
    goes_on, is_writing, real = threading.Event(), threading.Event(), os.write

    def write_slowly(descriptor: int, data: memoryview) -> int:
        is_writing.set()
        assert goes_on.wait(30)
        return real(descriptor, data)

    recorder.start()
    monkeypatch.setattr(log_module.os, "write", write_slowly)
    recorder.record(message(0), venue_ns=0, recv_ns=0)
    assert is_writing.wait(30)
    with capture_logs() as logs:
        for number in range(1, 8):
            recorder.record(message(number), venue_ns=0, recv_ns=0)
    assert [entry["event"][:32] for entry in logs] == ["messages are not recorded: more "]
    goes_on.set()
    wait_until(lambda: recorder.recorded == 4)
    recorder.record(message(8), venue_ns=0, recv_ns=0)
    recorder.stop()
    frames = read(recorder.folder)
    assert [decode_message(each.payload).publish_ns for each in frames if each.kind == MESSAGE] == [0, 1, 2, 3, 8]
    assert json.loads(frames[4].payload) == {
        "event": "missed",
        "messages": 4,
        "why": "more came than could be written",
    }
    assert frames[4].kind == NOTE
    assert recorder.counters() == {"recorded_messages": 5, "not_recorded_messages": 4}
    assert recorder.describe_trouble() == ["the recording has gaps: 4 messages are not in it"]


def test_the_queue_is_bounded_by_bytes_too(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writer="test", queue_bytes=1000)
    recorder.start()
    with capture_logs():
        recorder.record(message(1, size=1001), venue_ns=0, recv_ns=0)
    recorder.record(message(2, size=1000), venue_ns=0, recv_ns=0)
    recorder.stop()
    kinds = [each.kind for each in read(recorder.folder)]
    assert sorted(kinds) == [NOTE, MESSAGE]
    assert recorder.not_recorded == 1


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, writer="test")
    recorder.start()
    recorder.record(message(1), venue_ns=0, recv_ns=0)
    wait_until(lambda: recorder.recorded == 1)

    def refuse(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_module.os, "write", refuse)
    with capture_logs() as logs:
        recorder.record(message(2), venue_ns=0, recv_ns=0)
        wait_until(lambda: recorder.failure is not None)
        for number in range(3, 6):
            recorder.record(message(number), venue_ns=0, recv_ns=0)
        recorder.stop()
    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("recording has ended, everything else goes on", "No space left on device")
    ]
    assert recorder.counters() == {"recorded_messages": 1, "not_recorded_messages": 4}
    assert [sentence[:42] for sentence in recorder.describe_trouble()] == ["the recording ended early ([Errno 28] No s"]
    assert len(read(recorder.folder)) == 1


LIMITED = """
import resource, sys, threading
from pathlib import Path
from dry_work.recording.recorder import RecordedMessage, Recorder
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
recorder = Recorder(Path(sys.argv[1]), writer="test")
recorder.start()
for number in range(500):
    recorder.record(RecordedMessage("t", b"x" * 100, {}, "", number), venue_ns=0, recv_ns=0)
recorder.stop()
print(recorder.recorded, recorder.not_recorded, type(recorder.failure).__name__, threading.active_count())
"""


def test_a_limit_of_the_system_leaves_a_log_that_is_whole_up_to_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    recorded, missed, failure, threads = done.stdout.splitlines()[-1].split()
    assert (failure, threads) == ("OSError", "1")
    assert int(recorded) + int(missed) == 500
    assert 50 < int(recorded) < 200
    (folder,) = tmp_path.iterdir()
    reader = SessionReader(folder)
    assert [decode_message(each.payload).publish_ns for each in reader] == list(range(int(recorded)))
    assert reader.is_cut


def test_a_folder_that_cannot_be_made_is_a_failure_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file", writer="test")
    with capture_logs() as logs:
        recorder.start()
    assert len(logs) == 1
    recorder.record(message(1), venue_ns=0, recv_ns=0)
    recorder.stop()
    assert recorder.folder is None
    assert isinstance(recorder.failure, OSError)
    assert recorder.not_recorded == 1


def test_a_recorder_is_started_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writer="test")
    recorder.start()
    with pytest.raises(RuntimeError):
        recorder.start()
    recorder.stop()


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(ValueError, match="no recorded message"):
        decode_message(b"\xc1 not MessagePack")
