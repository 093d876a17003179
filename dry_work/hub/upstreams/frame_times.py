"""How long the frames of an upstream take until their events wait for each of their clients. Event-loop only."""

from __future__ import annotations

from dry_work.clock import SECOND_NS, Clock
from dry_work.observability.metrics import Histogram, HistogramCounts
from dry_work.observability.tracing import is_tracing, record_span

SPAN_EVERY_S = 1.0  # of the frames of a feed, one in so many seconds is traced


class FrameTimes:
    """The times of one feed's frames."""

    def __init__(self, feed: str, clock: Clock) -> None:
        self._feed = feed
        self._clock = clock
        self._histogram = Histogram()
        self._frames = 0  # since the last span
        self._bytes = 0
        self._next_span_s = 0.0

    def note(self, begun_s: float, size: int) -> None:
        """Count a frame that has just been dealt with.

        Args:
            begun_s: when that began, by the clock's monotonic time.
            size: of the frame in bytes.
        """
        now_s = self._clock.monotonic()
        self._histogram.observe(now_s - begun_s)
        if is_tracing():
            self._trace(begun_s, now_s, size)

    def read(self) -> HistogramCounts:
        """Return the times so far."""
        return self._histogram.read()

    def _trace(self, begun_s: float, now_s: float, size: int) -> None:
        self._frames += 1
        self._bytes += size
        if now_s < self._next_span_s:
            return
        end_ns = self._clock.time_ns()
        begin_ns = end_ns - round((now_s - begun_s) * SECOND_NS)
        record_span(
            "upstream.frame", begin_ns, end_ns, feed=self._feed, batch_frames=self._frames, batch_bytes=self._bytes
        )
        self._frames = self._bytes = 0
        self._next_span_s = now_s + SPAN_EVERY_S
