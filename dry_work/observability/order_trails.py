"""What an order went through, from its bar to its last fill: for one wide line in the log, stages and spans.

The order worker's thread tells what it sent, the engine's thread all else; each writes fields of its own. All times are
of this machine, in nanoseconds since 1970, but those of bars; 0 is one that is not known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

import msgspec

from dry_work.clock import SECOND_NS
from dry_work.observability.tracing import SpanLink, record_span

KEPT_SLICES = 1_000  # in which an order may have been decided that is told of only now
KEPT_ORDERS = 10_000  # that have not ended
# Stages of an order behind its slice, with the times between which they lie.
ORDER_STAGES = {
    "queue": ("placed_ns", "sent_ns"),
    "request": ("sent_ns", "answered_ns"),
    "acknowledgement": ("answered_ns", "accepted_ns"),
    "fill": ("answered_ns", "first_fill_ns"),
}


class SliceTimes(msgspec.Struct, frozen=True, kw_only=True):
    """When a slice went through what is before an order."""

    end_ns: int  # of its bars
    number: int | None = None
    hub_ns: int = 0  # the hub had its last bar
    received_ns: int = 0  # it was here
    began_ns: int = 0  # the engine took it
    done_ns: int = 0  # the strategies had returned
    link: SpanLink | None = None


class OrderTrail(msgspec.Struct):
    """One order so far."""

    slice: SliceTimes | None = None
    placed_ns: int = 0
    sent_ns: int = 0  # the request left
    answered_ns: int = 0  # the venue had answered
    accepted_ns: int = 0  # the strategy heard that the venue has it
    first_fill_ns: int = 0  # and these
    last_fill_ns: int = 0
    ended_ns: int = 0
    fills: int = 0
    is_passed: bool = False  # a request was made: no limit was in its way

    def measure(self, stage: str) -> float | None:
        """Return the seconds that a stage took, None when it was not gone through."""
        begin, end = (getattr(self, name) for name in ORDER_STAGES[stage])
        return max(0, end - begin) / SECOND_NS if begin and end else None


class OrderTrails:
    """The orders of a run that have not ended."""

    def __init__(self) -> None:
        self._slices: deque[SliceTimes] = deque(maxlen=KEPT_SLICES)
        self._trails: dict[str, OrderTrail] = {}

    def note_slice(self, times: SliceTimes) -> None:
        """Take note of a slice that was delivered."""
        self._slices.append(times)

    def note_sent(self, name: str, *, placed_ns: int, sent_ns: int, answered_ns: int, is_passed: bool) -> OrderTrail:
        """Take note of a request and its answer; on the order worker's thread."""
        trail = self._find(name)
        trail.placed_ns, trail.sent_ns, trail.is_passed = placed_ns, sent_ns, is_passed
        trail.answered_ns = answered_ns  # the last: with it the trail is whole
        return trail

    def note_told(self, name: str, *, now_ns: int, is_accepted: bool, is_filled: bool, is_over: bool) -> list[str]:
        """Take note of what the strategy is told; return the stages that ended with it."""
        trail = self._find(name)
        before = [trail.accepted_ns, trail.first_fill_ns]
        if is_accepted and not trail.accepted_ns:
            trail.accepted_ns = now_ns
        if is_filled:
            trail.first_fill_ns = trail.first_fill_ns or now_ns
            trail.last_fill_ns = now_ns
            trail.fills += 1
        if is_over:
            trail.ended_ns = now_ns
        after = [trail.accepted_ns, trail.first_fill_ns]
        stages = ("acknowledgement", "fill")
        return [
            stage for stage, old, new in zip(stages, before, after, strict=True) if old != new and trail.answered_ns
        ]

    def find(self, name: str) -> OrderTrail:
        """Return the trail of an order, with the slice in which it was decided as far as that is known."""
        trail = self._find(name)
        if trail.slice is None and trail.placed_ns:
            place = bisect_right(self._slices, trail.placed_ns, key=lambda times: times.began_ns)
            trail.slice = self._slices[place - 1] if place else None
        return trail

    def drop(self, name: str) -> None:
        """Let go of an order that has ended."""
        self._trails.pop(name, None)

    def _find(self, name: str) -> OrderTrail:
        trail = self._trails.get(name)
        if trail is None:
            if len(self._trails) >= KEPT_ORDERS:
                self._trails.pop(next(iter(self._trails)), None)
            trail = self._trails.setdefault(name, OrderTrail())
        return trail


def measure_slice(times: SliceTimes, *, own_time: bool) -> dict[str, float]:
    """Return the seconds of a slice's stages that were gone through.

    Args:
        own_time: the market's time is that of a simulated exchange, so that it tells nothing about the way here.
    """
    found: dict[str, float] = {}

    def add(stage: str, begin_ns: int, end_ns: int) -> None:
        if begin_ns and end_ns:
            found[stage] = max(0, end_ns - begin_ns) / SECOND_NS

    if not own_time:
        add("arrival", times.end_ns, times.received_ns)
        add("venue", times.end_ns, times.hub_ns)
    add("transport", times.hub_ns, times.received_ns)
    add("barrier", times.received_ns, times.began_ns)
    add("next", times.began_ns, times.done_ns)
    return found


def describe_trail(trail: OrderTrail, *, own_time: bool) -> dict[str, int | float | str]:
    """Return the fields of an order's line: each time that is known, and the milliseconds between."""
    times = trail.slice
    found: dict[str, int | float | str] = {}
    if times is not None:
        found["bar_end_ns"] = times.end_ns
        if times.number is not None:
            found["slice"] = times.number
        for name in ("hub_ns", "received_ns", "began_ns"):
            if getattr(times, name):
                found[name] = getattr(times, name)
    for name in ("placed_ns", "sent_ns", "answered_ns", "accepted_ns", "first_fill_ns", "last_fill_ns", "ended_ns"):
        if getattr(trail, name):
            found[name] = getattr(trail, name)
    if times is not None:
        stages = measure_slice(times, own_time=own_time)
        stages.pop("next", None)  # here it ends with the order
        for stage, seconds in stages.items():
            found[f"{stage}_ms"] = round(seconds * 1e3, 3)
        found["next_ms"] = round(max(0, trail.placed_ns - times.began_ns) / 1e6, 3)
    for stage in ORDER_STAGES:
        if (seconds_or_none := trail.measure(stage)) is not None:
            found[f"{stage}_ms"] = round(seconds_or_none * 1e3, 3)
    if trail.fills > 1:
        found["last_fill_ms"] = round((trail.last_fill_ns - trail.first_fill_ns) / 1e6, 3)
    if trail.ended_ns and times is not None and times.received_ns:
        found["total_ms"] = round((trail.ended_ns - times.received_ns) / 1e6, 3)
    return found


def trace_slice(times: SliceTimes, **facts: str | float | bool) -> SpanLink | None:
    """Record the span of a slice, from its last bar on; return what orders that follow from it belong to."""
    begin_ns = times.received_ns or times.began_ns
    link = record_span("slice", begin_ns, times.done_ns, parent=None, **facts)
    if link is not None:
        record_span("next", times.began_ns, times.done_ns, parent=link)
    return link


def trace_order(trail: OrderTrail, **facts: str | float | bool) -> SpanLink | None:
    """Record the spans of an order that has ended, in the trace of its slice."""
    begin_ns = trail.placed_ns or trail.ended_ns
    parent = trail.slice.link if trail.slice is not None else None
    link = record_span("order", begin_ns, max(begin_ns, trail.ended_ns), parent=parent, **facts)
    if link is not None:
        for stage, (begin, end) in ORDER_STAGES.items():
            if trail.measure(stage) is not None:
                from_ns = getattr(trail, begin)
                record_span(f"order.{stage}", from_ns, max(from_ns, getattr(trail, end)), parent=link)
    return link
