"""What a way to the hub has to do, and the thread that keeps it up. No library of any transport is known here.

A *lane* is one thread with one session at a time: the hub's transports that have a connection for each feed have a lane
for each, the others one for all. Within a session events come in the hub's order. After it the next one begins where
this one has ended, and says honestly whether anything is missing in between.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from dry_work.backoff import Backoff
from dry_work.clock import Clock
from dry_work.errors import ConfigError, FeedError
from dry_work.pulse import give_pulse

STOCKS, CRYPTO = "stocks", "crypto"  # the hub's feeds that have minute bars
BARS, WATERMARKS = "bars", "watermarks"  # channels
STATUSES, PRICE_BANDS = "statuses", "lulds"  # channels of stocks

TOKEN_REFUSED = "the hub refuses the token: set HUB_TOKEN to that of the hub"  # noqa: S105 - a sentence
RETRY_INITIAL_S, RETRY_CAP_S = 0.2, 5.0
SILENCE_S = 20.0  # a connection on which not even a ping is answered for so long is dead

_log = structlog.get_logger(__name__)


class Position(msgspec.Struct, frozen=True):
    """Where a reader stands in one feed: the last event that it has."""

    epoch: str  # of the hub
    offset: int


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """How a session begins."""

    positions: Mapping[str, Position] = {}  # by feed, where they are known
    recovered: bool = True  # nothing is missing since the positions that the session was asked to go on from


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the hub, or with neither item nor reason a position alone."""

    feed: str
    epoch: str = ""  # of the hub; empty: not known
    offset: int = 0  # after this event the reader stands here; 0: not known yet
    item: Mapping[str, Any] | None = None  # as Alpaca wrote it
    reason: str = ""  # why an event cannot be read
    data: bytes = b""  # of an event that cannot be read
    lost: int = 0  # events that are missing before this one


class Session(Protocol):
    """One connection. All but `interrupt` belong to one thread."""

    def begin(self, timeout_s: float) -> Opening:
        """Connect and subscribe.

        Raises:
            ConfigError: refused for good.
            FeedError: not reached.
        """

    def receive(self) -> Sequence[Arrival]:
        """Wait for what comes next and return it; nothing when that takes longer than the time between two pulses.

        Raises:
            ConfigError: refused for good.
            FeedError: the session is over.
        """

    def tend(self) -> None:
        """Keep the connection alive while nothing is received; returns soon."""

    def interrupt(self) -> None:
        """Let `begin` and `receive` end with a FeedError, from any thread. May be called twice."""

    def close(self, *, for_good: bool) -> None:
        """End it. `for_good`: no other one follows, and what the hub keeps for this reader is let go of."""


class Transport(Protocol):
    """A way to the hub."""

    name: str  # for people

    def lanes(self, feeds: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Return which of `feeds` go together over one session."""

    def build_session(self, feeds: tuple[str, ...], positions: Mapping[str, Position]) -> Session:
        """Return a session, not begun, that goes on from `positions`."""

    def describe(self) -> str:
        """Return where it leads, for people."""


class LaneOwner(Protocol):
    """What a lane tells, from its thread."""

    def accept(self, arrivals: Sequence[Arrival], tend: Callable[[], None]) -> bool:
        """Take what has come; False when it is not wanted any more."""

    def note_begun(self, feeds: tuple[str, ...], opening: Opening) -> None:
        """A session has begun."""

    def note_gap(self, feeds: tuple[str, ...], opening: Opening) -> None:
        """Something between two sessions may be missing."""

    def note_lost(self, lane: Lane, detail: str) -> None:
        """The lane has no session; called once until it is back."""

    def note_back(self, lane: Lane) -> None:
        """The lane has a session again after `note_lost`."""

    def fail(self, error: BaseException) -> None:
        """The lane is over for good."""


class Lane:
    """Keeps one session after another.

    Args:
        transport: makes the sessions.
        feeds: what they bring.
        positions: kept up to date by `owner.accept`; read before each session.
        connect_timeout_s: limit of `begin`.
    """

    def __init__(
        self,
        transport: Transport,
        feeds: tuple[str, ...],
        *,
        owner: LaneOwner,
        positions: Mapping[str, Position],
        clock: Clock,
        rng: random.Random,
        connect_timeout_s: float,
    ) -> None:
        self.feeds = feeds
        self.sessions = 0
        self.resumed = 0  # sessions after the first that found all that was missed
        self.error: BaseException | None = None  # the last one
        self.ready = threading.Event()  # the first session has begun, or was refused
        self._transport = transport
        self._owner = owner
        self._positions = positions
        self._clock = clock
        self._backoff = Backoff(rng, initial_s=RETRY_INITIAL_S, cap_s=RETRY_CAP_S, healthy_after_s=5.0)
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._is_lost = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"dry-work-{transport.name.lower()}-{'-'.join(feeds)}", daemon=True
        )

    def start(self) -> None:
        """Begin the first session, in the background."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Let the session end."""
        self._stopping.set()
        with self._lock:
            session = self._session
        if session is not None:
            session.interrupt()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    # Own thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._run_session()
                except ConfigError:
                    raise
                except FeedError as error:
                    self.error = error
                    if not self._wait_after(error):
                        return
        except BaseException as error:  # also of the transport's library: the run is not to wait for ever
            self.error = error
            if not self._stopping.is_set():
                self._owner.fail(error)
        finally:
            self.ready.set()

    def _run_session(self) -> None:
        give_pulse()
        session = self._transport.build_session(self.feeds, {feed: self._positions[feed] for feed in self._known()})
        with self._lock:
            self._session = session
        try:
            if self._stopping.is_set():
                return
            opening = session.begin(self._connect_timeout_s)
            self._note_begun(opening)

            def tend() -> None:
                give_pulse()
                session.tend()

            while not self._stopping.is_set():
                give_pulse()
                if not self._owner.accept(session.receive(), tend):
                    return
        finally:
            with self._lock:
                self._session = None
            session.close(for_good=self._stopping.is_set())

    def _known(self) -> list[str]:
        return [feed for feed in self.feeds if feed in self._positions]

    def _note_begun(self, opening: Opening) -> None:
        self.sessions += 1
        self._backoff.mark_connected(self._clock.monotonic())
        if self.sessions > 1:
            if opening.recovered:
                self.resumed += 1
            else:
                self._set_lost("something may be missing")
                self._owner.note_gap(self.feeds, opening)
        if self._is_lost:
            self._is_lost = False
            self._owner.note_back(self)
        self._owner.note_begun(self.feeds, opening)
        self.ready.set()

    def _wait_after(self, error: FeedError) -> bool:
        """Wait for the next try; False when there is to be none."""
        if self._stopping.is_set():
            return False
        wait_s = self._backoff.next_wait_s(self._clock.monotonic())
        _log.info("the way to the hub was lost", transport=self._transport.name, feeds=self.feeds, error=str(error))
        if self._backoff.attempts == 1 and self.sessions:
            return True  # a connection may end as a matter of course: the next one shows
        if self.sessions:
            self._set_lost(str(error))
        return not self._stopping.wait(wait_s)

    def _set_lost(self, detail: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._owner.note_lost(self, detail)
