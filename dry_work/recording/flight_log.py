"""Read the flight of a session from its log: what it was, then its turns, up to the end or the first damage."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from dry_work.errors import ConfigError, DataFileError
from dry_work.market.messages import Slice
from dry_work.recording.flight_frames import (
    ANSWER_KIND,
    EVENT_KIND,
    FINISH_KIND,
    FORMAT,
    ITEM_KIND,
    SESSION_KIND,
    TURN_KIND,
    WARMUP_KIND,
    FinishRecord,
    SessionFacts,
    TurnRecord,
    decode_answer,
    decode_item,
    decode_struct,
)
from dry_work.recording.frames import NOTE, Frame
from dry_work.recording.log import SUFFIX, SessionReader, find_segments, find_sessions
from dry_work.recording.recorder import MESSAGE

_LOCAL_HEADER = struct.Struct("<4s2xHH8xI4xHH")  # of an entry in a ZIP file
_STREAMED = 8  # a flag: the sizes come behind the data
_CHUNK_BYTES = 64 * 1024

_log = structlog.get_logger(__name__)

NO_FLIGHT = "there is no flight in this recording, only what was received"
EXPORT_SUFFIX = ".dwsession"


class Item(msgspec.Struct, frozen=True):
    """A word of the venue that the books took."""

    value: Any
    venue_ns: int
    recv_ns: int


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn with all its frames."""

    record: TurnRecord
    event: Any = None
    event_ns: int = 0  # when the engine took it
    items: tuple[Item, ...] = ()
    answers: tuple[tuple[str, Any], ...] = ()
    warmup: tuple[Slice, ...] = ()


class FlightReader:
    """Reads one session.

    `facts` are there from the start. `turns` is used up once; behind it `finish`, `problem` and `is_complete` are
    known.

    Args:
        folder: of the session.

    Raises:
        DataFileError: there is no flight in it, or its beginning is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finish: FinishRecord | None = None
        self.problem = ""  # why reading stopped before the end
        self.on_message: Callable[[Frame], object] | None = None  # is given each message of market data
        self.messages = 0  # of market data, as they were received
        self._is_gapped = False  # something is missing in the middle
        self.lost_messages = 0
        self.bytes = sum(path.stat().st_size for path in find_segments(folder))
        self._reader = SessionReader(folder)
        self._frames = iter(self._reader)
        self._is_early = True
        self._early: list[Frame] = []  # messages that came before the session's facts were written
        self.facts = self._read_facts()

    @property
    def is_cut(self) -> bool:
        """Tell whether the record ends only because its writer was killed; known behind `turns`."""
        return self.finish is None and (self._reader.damage is None or self._reader.is_cut) and not self._is_gapped

    @property
    def is_complete(self) -> bool:
        """Tell whether the session was closed in order and is whole."""
        return self.finish is not None and not self.problem

    def _read_facts(self) -> SessionFacts:
        for frame in self._frames:
            if frame.kind == SESSION_KIND:
                return self._decode_facts(frame)
            if frame.kind > MESSAGE:
                break
            self._count(frame)
        damage = self._reader.damage
        if damage is not None:
            raise DataFileError(self.folder, f"the flight cannot be read from its beginning: {damage}")
        if self._reader.first_segment > 1:
            raise DataFileError(
                self.folder,
                f"its first {self._reader.first_segment - 1} segments are gone, removed when the recordings had "
                "reached their bound; what a session began with is needed to replay it",
            )
        raise DataFileError(self.folder, NO_FLIGHT)

    def _decode_facts(self, frame: Frame) -> SessionFacts:
        try:
            form = msgspec.msgpack.decode(frame.payload, type=dict[str, Any]).get("format")
            if form != FORMAT:
                reason = f"the flight has format {form}; this Dry Work reads format {FORMAT}: use the one that wrote it"
                raise DataFileError(self.folder, reason)
            facts: SessionFacts = decode_struct(SessionFacts, frame.payload)
        except (ValueError, msgspec.MsgspecError) as error:
            raise DataFileError(self.folder, f"what the session was cannot be read: {error}") from None
        return facts

    def _count(self, frame: Frame) -> bool:
        """Take note of a frame that is none of a turn; tell whether the flight goes on behind it."""
        if frame.kind == MESSAGE:
            self.messages += 1
            if self._is_early:
                self._early.append(frame)
            elif self.on_message is not None:
                self.on_message(frame)
        elif frame.kind == NOTE:
            with contextlib.suppress(ValueError):
                note = json.loads(frame.payload)
                if note.get("event") == "missed":
                    self.lost_messages += int(note.get("messages", 0))
                    if note.get("frames"):
                        return self._stop(f"{note['frames']:,} frames are missing: more came than could be written")
        return True

    def turns(self) -> Iterator[Turn]:
        """Yield the turns in their order."""
        self._is_early = False
        early, self._early = self._early, []
        if self.on_message is not None:
            for frame in early:
                self.on_message(frame)
        parts: dict[str, list[Any]] = {"items": [], "answers": [], "warmup": []}
        event: Any = None
        event_ns = 0
        expected = 0
        for frame in self._frames:
            kind = frame.kind
            if kind <= MESSAGE:
                if not self._count(frame):
                    return
                continue
            try:
                if kind == EVENT_KIND:
                    event, event_ns = decode_item(frame.payload), frame.recv_ns
                elif kind == ITEM_KIND:
                    parts["items"].append(Item(decode_item(frame.payload), frame.venue_ns, frame.recv_ns))
                elif kind == ANSWER_KIND:
                    parts["answers"].append(decode_answer(frame.payload))
                elif kind == WARMUP_KIND:
                    parts["warmup"].append(decode_item(frame.payload))
                elif kind == FINISH_KIND:
                    self.finish = decode_struct(FinishRecord, frame.payload)
                elif kind == TURN_KIND:
                    record: TurnRecord = decode_struct(TurnRecord, frame.payload)
                    if record.number != expected:
                        self._stop(f"turn {expected} is missing before turn {record.number}")
                        return
                    expected += 1
                    yield Turn(
                        record=record,
                        event=event,
                        event_ns=event_ns,
                        **{name: tuple(found) for name, found in parts.items()},
                    )
                    event, event_ns = None, 0
                    parts = {"items": [], "answers": [], "warmup": []}
                else:
                    self._stop(f"a frame of kind {kind} is not known: it was written by a newer Dry Work")
                    return
            except ValueError as error:
                self._stop(f"a frame of kind {kind} {error}: it was written by another version of Dry Work")
                return
        self._look_at_end()

    def _stop(self, problem: str) -> bool:
        self.problem, self._is_gapped = problem, True
        return False

    def _look_at_end(self) -> None:
        damage = self._reader.damage
        if damage is not None and not self._reader.is_cut:
            self.problem = f"damaged: {damage}"
        elif self.finish is None:
            self.problem = "it ends without its end: the process was killed"


@contextlib.contextmanager
def open_flight(place: Path) -> Iterator[FlightReader]:
    """Open the flight at `place`: a session's folder, one above it that holds a single flight, or an exported file.

    Raises:
        ConfigError: there is none, or there are several, naming them.
        DataFileError: it cannot be used.
    """
    with contextlib.ExitStack() as stack:
        if place.is_file():
            place = stack.enter_context(_unpacked(place))
        elif not place.is_dir():
            raise ConfigError(f"{place}: no such session: expected a session's folder or an exported file")
        yield FlightReader(choose_session(place))


def choose_session(place: Path) -> Path:
    """Return the folder of the one session at or below `place`.

    Raises:
        ConfigError: there is none, or there are several, naming them.
    """
    sessions = find_sessions(place)
    if not sessions:
        raise ConfigError(f"{place}: no recorded session (*{SUFFIX}) at or below this folder")
    if len(sessions) > 1:
        names = ", ".join(str(session) for session in sessions[-5:])
        more = "; the last ones: " if len(sessions) > 5 else ": "
        raise ConfigError(f"{place}: holds {len(sessions)} sessions, name one{more}{names}")
    return sessions[0]


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dry-work-session-") as folder:
        try:
            with zipfile.ZipFile(file) as packed:
                for entry in packed.infolist():
                    parts = Path(entry.filename).parts
                    if len(parts) != 2 or parts[0] in ("..", "/") or not parts[1].endswith(SUFFIX):
                        raise DataFileError(file, f"holds {entry.filename!r}, which is no part of a session")
                    target = Path(folder) / parts[0] / parts[1]
                    target.parent.mkdir(exist_ok=True)
                    with packed.open(entry) as source, target.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            # A file that was cut off has lost its directory, at its end. What is before the cut can be read.
            shutil.rmtree(folder)
            Path(folder).mkdir()
            if not _unpack_start(file, Path(folder)):
                raise DataFileError(file, f"no exported session, or a damaged one: {error}") from None
            _log.warning("an exported session is damaged: what is before the damage is used", file=str(file))
        except (OSError, zipfile.LargeZipFile) as error:
            raise DataFileError(file, f"cannot be unpacked: {error}") from None
        yield Path(folder)


def _unpack_start(file: Path, folder: Path) -> bool:
    """Unpack entries one behind the other, up to the first that is damaged, and that as far as it goes.

    Format: local file headers of APPNOTE.TXT 4.3.7, of a file that `zipfile` wrote: sizes are in the headers.
    """
    found = False
    with file.open("rb") as packed:
        while len(head := packed.read(_LOCAL_HEADER.size)) == _LOCAL_HEADER.size:
            signature, flags, method, size, name_length, extra_length = _LOCAL_HEADER.unpack(head)
            name = packed.read(name_length).decode("utf-8", "replace")
            parts = Path(name).parts
            is_part = len(parts) == 2 and ".." not in parts and parts[1].endswith(SUFFIX)
            if signature != b"PK\x03\x04" or flags & _STREAMED or method != zipfile.ZIP_DEFLATED or not is_part:
                break
            packed.read(extra_length)
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            target = folder / parts[0] / parts[1]
            target.parent.mkdir(exist_ok=True)
            found = True
            with target.open("wb") as copy:
                left = size
                while left and (data := packed.read(min(left, _CHUNK_BYTES))):
                    left -= len(data)
                    try:
                        copy.write(inflate.decompress(data))
                    except zlib.error:
                        return found
            if left:
                break
    return found


def export_session(folder: Path, file: Path) -> int:
    """Write a session into one file that `open_flight` opens anywhere; return its bytes.

    Raises:
        DataFileError: it cannot be read or written, or `file` exists.
    """
    if file.exists():
        raise DataFileError(file, "exists already; name another file")
    fresh = file.with_name(f"{file.name}.part")
    try:
        with zipfile.ZipFile(fresh, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
            for path in find_segments(folder):
                packed.write(path, f"{folder.name}/{path.name}")
        fresh.replace(file)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise DataFileError(file, f"cannot be written: {error.strerror or error}") from None
    return file.stat().st_size
