"""Record market messages as they were received, before anything is dropped or put in order. Thread-safe.

The client's threads hand a message over and go on, and so does an engine with the frames of its flight record
(`dry_work.recording.flight_recorder`); one thread writes both into one log. What was handed over is with the system
at most `GATHER_S` and the time of a write later (it then survives `kill -9`), and on the disk `sync_s` later (it then
survives the machine). A full disk, or any other failure to write, ends the recording and nothing else: it is logged
once and told by `failure`, and what comes after is counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from dry_work.clock import Clock, SystemClock
from dry_work.recording.frames import FIRST_KIND, Frame
from dry_work.recording.log import SEGMENT_BYTES, SYNC_S, LogWriter

MESSAGE = FIRST_KIND  # kind of the frames of market messages

# Facts in the head of a log of messages:
SYMBOLS_FACT = "symbols"  # those that its catalog is to hold; missing: all of them
LENGTH_FACT = "length_ns"  # of its bars; missing: a minute

GATHER_S = 0.02  # messages of so long are written together
QUEUE_MESSAGES = 100_000
QUEUE_BYTES = 64 * 1024 * 1024
FRAMES_FACTOR = 4  # frames of a flight may wait while there are so many times more: without one, no replay

_log = structlog.get_logger(__name__)


class RecordedMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message of Pub/Sub as it was received: the payload of a frame of kind `MESSAGE`, in MessagePack."""

    topic: str
    data: bytes
    attributes: Mapping[str, str]
    message_id: str = ""
    publish_ns: int = 0  # when Pub/Sub took it, 0: not known


class PendingFrame(msgspec.Struct, frozen=True):
    """A frame that is encoded when it is written; `content` must not change any more."""

    kind: int
    venue_ns: int
    recv_ns: int
    content: Any


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RecordedMessage)


def decode_message(payload: bytes) -> RecordedMessage:
    """Return the message in a frame's payload.

    Raises:
        ValueError: there is none in it.
    """
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"no recorded message: {error}") from None


class Recorder:
    """Writes messages into a new session below `root`, from `start` to `stop`. Without a message nothing is left.

    Args:
        root: folder of the sessions.
        writer: what records, for the log's head.
        facts: about the session, for the log's head.
        session: its name; default: one of now.
        segment_bytes, sync_s, keep_bytes: see `LogWriter`.
        queue_messages, queue_bytes: what may wait to be written; beyond that messages are not recorded, but counted,
            told in the log of the program, and noted in the recording at the place where they are missing.
    """

    def __init__(
        self,
        root: Path,
        *,
        writer: str,
        facts: Mapping[str, Any] | None = None,
        session: str | None = None,
        clock: Clock | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        sync_s: float = SYNC_S,
        keep_bytes: int | None = None,
        queue_messages: int = QUEUE_MESSAGES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._root = root
        self._writer = writer
        self._facts = facts
        self._session = session
        self._clock = clock if clock is not None else SystemClock()
        self._segment_bytes = segment_bytes
        self._sync_s = sync_s
        self._keep_bytes = keep_bytes
        self._queue_messages = queue_messages
        self._queue_bytes = queue_bytes
        self._lock = threading.Lock()
        self._queue: deque[PendingFrame] = deque()
        self._encoders: dict[int, Callable[[Any], bytes]] = {MESSAGE: _encoder.encode}
        self._waiting_bytes = 0
        self._missed = 0  # messages not recorded since the last note
        self._missed_frames = 0  # the same of other frames
        self._not_recorded = 0
        self._frames_not_recorded = 0
        self._frames_recorded = 0
        self._is_taking = False
        self._is_stopping = False
        self._work = threading.Event()
        self._stop = threading.Event()
        self._log: LogWriter | None = None
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def folder(self) -> Path | None:
        """The session's folder; None when it could not be made, and after a session in which nothing came."""
        return None if self._log is None else self._log.folder

    @property
    def failure(self) -> Exception | None:
        """What ended the recording before its time."""
        return self._failure

    @property
    def recorded(self) -> int:
        """Messages that were written to the system."""
        return 0 if self._log is None else max(self._log.frames - self._frames_recorded, 0)

    @property
    def recorded_bytes(self) -> int:
        """Bytes that were written to the system."""
        return 0 if self._log is None else self._log.bytes

    @property
    def not_recorded(self) -> int:
        """Messages that were left out, for want of room in the queue or on the disk."""
        return self._not_recorded

    def start(self) -> None:
        """Make the session's folder and begin. A folder that cannot be made is a `failure`, not an error."""
        if self._thread is not None or self._failure is not None or self._stop.is_set():
            raise RuntimeError("a recorder is started once")
        try:
            self._log = LogWriter(
                self._root,
                session=self._session,
                writer=self._writer,
                facts=self._facts,
                clock=self._clock,
                segment_bytes=self._segment_bytes,
                sync_s=self._sync_s,
                keep_bytes=self._keep_bytes,
            )
        except OSError as error:
            self._fail(error)
            return
        self._is_taking = True
        self._thread = threading.Thread(target=self._run, args=(self._log,), name="dry-work-recorder", daemon=True)
        self._thread.start()

    def record(self, message: RecordedMessage, *, venue_ns: int, recv_ns: int) -> None:
        """Hand over a message; from any thread, never blocks, never raises."""
        with self._lock:
            size = len(message.data)
            if (
                not self._is_taking
                or len(self._queue) >= self._queue_messages
                or self._waiting_bytes + size > self._queue_bytes
            ):
                self._miss()
                return
            self._queue.append(PendingFrame(MESSAGE, venue_ns, recv_ns, message))
            self._waiting_bytes += size
        if not self._work.is_set():
            self._work.set()

    def set_encoder(self, encode: Callable[[Any], bytes], kinds: Sequence[int]) -> None:
        """Before the start: say how the contents of frames of other kinds become bytes, on the writing thread."""
        self._encoders.update(dict.fromkeys(kinds, encode))

    def record_frames(self, frames: Sequence[PendingFrame]) -> None:
        """Hand over frames that belong together; from any thread, never blocks, never raises.

        All of them are recorded, or none.
        """
        with self._lock:
            if not self._is_taking or len(self._queue) >= self._queue_messages * FRAMES_FACTOR:
                if not self._is_stopping or self._failure is not None:
                    self._frames_not_recorded += len(frames)
                    self._missed_frames += len(frames)
                return
            self._queue.extend(frames)
        if not self._work.is_set():
            self._work.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Write what waits and close the log. May be called twice."""
        with self._lock:
            self._is_taking = False
            self._is_stopping = True
        self._stop.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                _log.error("the recording could not be closed in time; its end may be missing", folder=str(self.folder))

    def counters(self) -> dict[str, int]:
        """Return `recorded_messages` and `not_recorded_messages`; those that are zero are left out."""
        counts = {"recorded_messages": self.recorded, "not_recorded_messages": self._not_recorded}
        return {name: count for name, count in counts.items() if count}

    def describe_trouble(self) -> list[str]:
        """Return sentences about what is missing in the recording; empty when nothing is."""
        missing = f"{self._not_recorded:,} messages are not in it"
        if self._frames_not_recorded:
            missing += f", nor {self._frames_not_recorded:,} frames of the flight: it can be replayed up to there"
        if self._failure is not None:
            return [f"the recording ended early ({self._failure}); {missing}"]
        has_gaps = self._not_recorded or self._frames_not_recorded
        return [f"the recording has gaps: {missing}"] if has_gaps else []

    def _miss(self) -> None:
        """Count a message that is not recorded; under the lock."""
        if self._is_stopping and self._failure is None:
            return  # nobody asked for what comes after the end
        self._not_recorded += 1
        self._missed += 1
        if self._missed == 1 and self._failure is None:
            _log.warning("messages are not recorded: more come than can be written; they are counted")

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._failure = error
            self._is_taking = False
            self._count_lost(list(self._queue))
            self._queue.clear()
            self._waiting_bytes = 0
        _log.error(
            "recording has ended, everything else goes on",
            error=(isinstance(error, OSError) and error.strerror) or str(error),
            folder=str(self._root),
        )

    def _count_lost(self, frames: Sequence[PendingFrame]) -> None:
        messages = sum(frame.kind == MESSAGE for frame in frames)
        self._not_recorded += messages
        self._frames_not_recorded += len(frames) - messages

    # Own thread

    def _run(self, log: LogWriter) -> None:
        try:
            while not self._stop.is_set():
                self._work.wait(log.sync_wait_s())
                if self._work.is_set():
                    self._stop.wait(GATHER_S)
                    self._work.clear()
                    self._write(log)
                log.sync_when_due()
            self._write(log)
            if log.frames or self._not_recorded or self._frames_not_recorded:
                log.close()
            else:
                self._log = None
                log.discard()
        except Exception as error:
            self._fail(error)

    def _write(self, log: LogWriter) -> None:
        with self._lock:
            batch = list(self._queue)
            self._queue.clear()
            self._waiting_bytes = 0
            missed, self._missed = self._missed, 0
            missed_frames, self._missed_frames = self._missed_frames, 0
        before = log.frames
        try:
            for frame in batch:
                payload = self._encoders[frame.kind](frame.content)
                log.append(Frame(frame.kind, frame.venue_ns, frame.recv_ns, payload))
                self._frames_recorded += frame.kind != MESSAGE
            if missed or missed_frames:
                lost = {"frames": missed_frames} if missed_frames else {}
                log.note({"event": "missed", "messages": missed, **lost, "why": "more came than could be written"})
            log.flush()
        except Exception:
            with self._lock:
                self._count_lost(batch[log.frames - before :])
            raise
