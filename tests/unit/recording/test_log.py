"""Logs on disk: rotation, bounds, what survives, and what is told about damage."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dry_work.clock import SECOND_NS, ManualClock
from dry_work.recording import log as log_module
from dry_work.recording.frames import FIRST_KIND, NOTE, Frame
from dry_work.recording.log import LogWriter, SegmentReader, SessionReader, find_segments, find_sessions, name_session

NOW_NS = 1_718_112_600 * SECOND_NS


def frame(number: int, size: int = 20) -> Frame:
    return Frame(FIRST_KIND, number, number + 1, f"{number}".encode().ljust(size, b"."))


def write(root: Path, frames: list[Frame], **options: Any) -> Path:
    writer = LogWriter(root, writer="test", clock=ManualClock(NOW_NS), **options)
    for each in frames:
        writer.append(each)
    writer.close()
    return writer.folder


def read(folder: Path, *, salvage: bool = False) -> tuple[list[Frame], SessionReader]:
    reader = SessionReader(folder, salvage=salvage)
    return [each for each in reader if each.kind >= FIRST_KIND], reader


def test_what_was_written_is_read_over_all_segments(tmp_path: Path) -> None:
    frames = [frame(number) for number in range(50)]
    folder = write(tmp_path, frames, session="one", segment_bytes=700, facts={"symbols": ["SPY"]})
    assert len(find_segments(folder)) > 5
    assert all(path.stat().st_size <= 700 + 100 for path in find_segments(folder))
    found, reader = read(folder)
    assert found == frames
    assert reader.damage is None
    assert reader.is_closed
    assert reader.first_segment == 1
    assert reader.head is not None
    assert (reader.head.session, reader.head.writer, reader.head.facts) == ("one", "test", {"symbols": ["SPY"]})
    assert find_sessions(tmp_path) == [folder]


def test_a_frame_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    frames = [frame(1), frame(2, 5000), frame(3)]
    found, reader = read(write(tmp_path, frames, segment_bytes=700))
    assert found == frames
    assert reader.damage is None


def test_frames_are_with_the_system_after_flush_and_not_before(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, writer="test")
    writer.append(frame(1))
    assert read(writer.folder)[0] == []
    writer.flush()
    found, reader = read(writer.folder)
    assert found == [frame(1)]
    assert reader.damage is None
    assert not reader.is_closed
    assert (writer.frames, writer.bytes) == (1, find_segments(writer.folder)[0].stat().st_size)
    writer.close()


def test_many_bytes_are_flushed_without_being_asked(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, writer="test", flush_bytes=1000)
    for number in range(20):
        writer.append(frame(number))
    assert 0 < writer.frames < 20
    writer.close()
    assert writer.frames == 20


def test_syncs_follow_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    clock = ManualClock(NOW_NS)
    writer = LogWriter(tmp_path, writer="test", clock=clock, sync_s=5.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
    writer.sync()
    assert writer.sync_wait_s() is None
    synced.clear()
    writer.append(frame(1))
    writer.flush()
    assert writer.sync_wait_s() == 5.0
    clock.advance(4.9)
    writer.sync_when_due()
    assert synced == []
    clock.advance(0.2)
    writer.sync_when_due()
    assert len(synced) == 1
    clock.advance(60.0)
    writer.sync_when_due()
    assert len(synced) == 1, "nothing was written since"
    writer.close()
    assert len(synced) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from dry_work.recording.frames import Frame
from dry_work.recording.log import LogWriter
writer = LogWriter(Path(sys.argv[1]), writer="test", segment_bytes=2000)
for number in range(100):
    writer.append(Frame(16, number, 0, b"flushed"))
writer.flush()
for number in range(5):
    writer.append(Frame(16, 1000, 0, b"waiting"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    found, reader = read(find_sessions(tmp_path)[0])
    assert [each.venue_ns for each in found] == list(range(100))
    assert reader.damage is None
    assert not reader.is_closed


def cut(folder: Path, place: int) -> None:
    path = find_segments(folder)[-1]
    path.write_bytes(path.read_bytes()[:place])


def test_a_last_frame_that_was_not_finished_is_told_as_such(tmp_path: Path) -> None:
    folder = write(tmp_path, [frame(1), frame(2)])
    cut(folder, -100)
    found, reader = read(folder)
    assert found == [frame(1)]
    assert reader.is_cut
    assert reader.damage is not None
    assert reader.damage.kind == "truncated"
    assert str(reader.damage).startswith(f"{find_segments(folder)[0]}, byte ")
    assert "the file ends within a frame" in reader.damage.reason


def remove_middle(paths: list[Path]) -> None:
    paths[2].unlink()


def cut_middle(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:-5])


def cut_middle_between_frames(paths: list[Path]) -> None:
    reader = SegmentReader(paths[2])
    size = sum(len(each.payload) + 48 for each in reader if each.kind >= FIRST_KIND)
    head = paths[2].stat().st_size - size - 48
    paths[2].write_bytes(paths[2].read_bytes()[: head + size])


def flip_middle(paths: list[Path]) -> None:
    data = bytearray(paths[2].read_bytes())
    data[-70] ^= 4  # in the payload of the last frame before the end
    paths[2].write_bytes(bytes(data))


def overwrite_middle(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[1].read_bytes())


def swap_in_other_session(paths: list[Path]) -> None:
    other = write(paths[0].parents[1], [frame(number) for number in range(20)], session="other", segment_bytes=400)
    paths[2].write_bytes(find_segments(other)[2].read_bytes())


def swap_in_other_content(paths: list[Path]) -> None:
    place = paths[0].parents[1] / "elsewhere"
    other = write(place, [frame(number + 7) for number in range(20)], session="s", segment_bytes=400)
    paths[2].write_bytes(find_segments(other)[2].read_bytes())


def replace_by_text(paths: list[Path]) -> None:
    paths[2].write_text("notes")


@pytest.mark.parametrize(
    ("spoil", "kind", "reason"),
    [
        (remove_middle, "missing", "segment 3 is missing before it"),
        (cut_middle, "truncated", "the file ends within a frame"),
        (cut_middle_between_frames, "truncated", "and another one follows"),
        (flip_middle, "checksum", "checksum differs"),
        (overwrite_middle, "missing", "segment 3 is missing"),
        (swap_in_other_session, "chain", "it belongs to session other, not to s"),
        (swap_in_other_content, "chain", "the segment before it is another one"),
        (replace_by_text, "foreign", "no log of Dry Work"),
    ],
)
def test_damage_in_the_middle_ends_reading_and_is_no_cut(
    tmp_path: Path, spoil: Callable[[list[Path]], None], kind: str, reason: str
) -> None:
    frames = [frame(number) for number in range(20)]
    folder = write(tmp_path, frames, session="s", segment_bytes=400)
    counts = [sum(each.kind >= FIRST_KIND for each in SegmentReader(path)) for path in find_segments(folder)]
    assert len(counts) > 5
    spoil(find_segments(folder))
    found, reader = read(folder)
    assert found == frames[: len(found)]
    assert sum(counts[:2]) <= len(found) <= sum(counts[:3])
    assert reader.damage is not None
    assert (reader.damage.kind, reader.is_cut, reader.is_closed) == (kind, False, False)
    assert reason in reader.damage.reason
    salvaged, reader = read(folder, salvage=True)
    assert salvaged[-sum(counts[3:]) :] == frames[-sum(counts[3:]) :], "what is behind the damage"
    assert reader.is_closed


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_random_damage_never_gives_a_wrong_frame(tmp_path: Path, data: st.DataObject) -> None:
    frames = [frame(number, 5) for number in range(12)]
    folder = write(tmp_path, frames, session=name_session(0), segment_bytes=300)
    path = data.draw(st.sampled_from(find_segments(folder)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    found, _ = read(folder)
    assert found == frames[: len(found)]
    salvaged, _ = read(folder, salvage=True)
    assert [each for each in frames if each in salvaged] == salvaged


def test_a_file_that_cannot_be_opened_is_damage(tmp_path: Path) -> None:
    (tmp_path / "000001.dwlog").mkdir()
    found, reader = read(tmp_path)
    assert found == []
    assert reader.damage is not None
    assert reader.damage.kind == "unreadable"
    assert read(tmp_path / "nowhere")[1].damage is not None


def test_the_oldest_segments_go_when_the_bound_is_reached_and_the_log_says_so(tmp_path: Path) -> None:
    old = write(tmp_path, [frame(number) for number in range(20)], session="2023", segment_bytes=400)
    size = sum(path.stat().st_size for path in find_segments(old))
    frames = [frame(number) for number in range(60)]
    folder = write(tmp_path, frames, session="2024", segment_bytes=400, keep_bytes=size)
    assert not old.exists()
    kept = sum(path.stat().st_size for path in find_segments(folder))
    assert size / 2 < kept <= size
    reader = SessionReader(folder)
    found = list(reader)
    assert reader.damage is None
    assert reader.first_segment > 1
    assert [each for each in found if each.kind >= FIRST_KIND] == frames[-len([e for e in found if e.kind != NOTE]) :]
    notes = [json.loads(each.payload) for each in found if each.kind == NOTE]
    assert {note["event"] for note in notes} == {"removed"}
    assert all(name.startswith("2024/") for note in notes[-1:] for name in note["segments"])


def test_a_bound_below_one_segment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold one segment"):
        LogWriter(tmp_path, writer="test", segment_bytes=1000, keep_bytes=999)


def test_a_session_is_never_written_twice(tmp_path: Path) -> None:
    write(tmp_path, [], session="one")
    with pytest.raises(FileExistsError):
        write(tmp_path, [], session="one")


def test_closing_twice_is_no_error_and_nothing_is_taken_after_it(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, writer="test")
    writer.close()
    writer.close()
    assert not writer.is_open
    with pytest.raises(ValueError, match="has ended"):
        writer.append(frame(1))


def test_a_session_that_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    LogWriter(tmp_path, writer="test").discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_writer_and_leaves_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path, writer="test")
    writer.append(frame(1))
    writer.flush()
    real, room = os.write, 100

    def write_until_full(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, data[:room])
        room -= done
        return done

    monkeypatch.setattr(log_module.os, "write", write_until_full)
    for number in (2, 3, 4):
        writer.append(frame(number))
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    assert not writer.is_open
    assert writer.frames == 2, "100 bytes hold one frame more, and a part of the next"
    writer.close()
    found, reader = read(writer.folder)
    assert found == [frame(1), frame(2)]
    assert reader.is_cut


def test_sessions_are_named_by_time(tmp_path: Path) -> None:
    assert name_session(NOW_NS, "ab") == "20240611T133000Z-ab"
    assert name_session(NOW_NS) != name_session(NOW_NS)
    for name in ("b", "a"):
        write(tmp_path / "deep", [], session=name)
    assert [folder.name for folder in find_sessions(tmp_path)] == ["a", "b"]
