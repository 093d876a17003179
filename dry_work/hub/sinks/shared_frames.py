"""Frames that are built once for all clients to whom the same events go out together. Pure; not thread-safe.

Programs of one owner often ask for the same symbols. What waits for them is then the same too, and so are its bytes:
most of the work for a client is to put them together.
"""

from __future__ import annotations

from collections.abc import Iterable

from dry_work.hub.events import HubEvent
from dry_work.hub.message_types import Kind
from dry_work.hub.sinks.dialects import Dialect

MOST_BATCHES = 256  # frames that are held at a time
MOST_EVENTS = 256  # a client that has more of them waiting is behind, and alone with them


class _Batch:
    """What goes to some clients."""

    __slots__ = ("clients", "frames")

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames
        self.clients = 0


class SharedFrames:
    """The frames of one round of writing, and the events in all frames so far."""

    def __init__(self) -> None:
        self._batches: dict[tuple[object, tuple[HubEvent, ...]], _Batch] = {}
        self._sent: dict[str, dict[str, int]] = {}  # events by feed and channel

    def encode(self, dialect: Dialect, events: tuple[HubEvent, ...]) -> list[bytes]:
        """Return the frames that bring `events`, all of one feed, to a client of `dialect`, and count them."""
        form = dialect.form
        if form is None or len(events) > MOST_EVENTS:
            self.count(events)
            return dialect.encode(events)
        key = (form, events)
        batch = self._batches.get(key)
        if batch is None:
            if len(self._batches) >= MOST_BATCHES:
                self.end_round()
            batch = self._batches[key] = _Batch(dialect.encode(events))
        batch.clients += 1
        return batch.frames

    def count(self, events: Iterable[HubEvent], clients: int = 1) -> None:
        """Count events that go to `clients`."""
        # A loop, for most times there are few events: a `Counter` takes longer to begin than this to end.
        sent: dict[str, int] | None = None
        for event in events:
            if sent is None:
                sent = self._sent.setdefault(event.feed, {})
            channel = event.channel
            sent[channel] = sent.get(channel, 0) + clients

    def end_round(self) -> None:
        """Let go of the frames."""
        for (_, events), batch in self._batches.items():
            self.count(events, batch.clients)
        self._batches.clear()

    def read_counts(self) -> dict[Kind, int]:
        """End the round; return the events in frames so far, by feed and channel, counted for each client."""
        self.end_round()
        return {(feed, channel): count for feed, sent in self._sent.items() for channel, count in sent.items()}
