"""Slices of two connections as one: what ends a slice passes once all have ended it. Pure.

The bars of options are made of what their own connection brings, and go out beside those of stocks. A watermark of
stocks therefore waits for that of options, and the other way round; what comes behind it waits too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from dry_work.hub.core import UpstreamMessage
from dry_work.wire.alpaca_stream import StreamWatermark

Item = Mapping[str, Any]


class Part(msgspec.Struct, frozen=True):
    """A piece of what came: a watermark with its item, or what lies between two of them."""

    items: Sequence[Item]
    messages: Sequence[UpstreamMessage]
    recv_ns: int
    mark: StreamWatermark | None = None


def cut_parts(items: Sequence[Item], messages: Sequence[UpstreamMessage], recv_ns: int) -> list[Part]:
    """Return what a frame brought, cut at its watermarks."""
    marks = [message for message in messages if isinstance(message, StreamWatermark)]
    if not marks:
        return [Part(items, messages, recv_ns)] if items or messages else []
    parts: list[Part] = []
    rest_items, rest_messages = list(items), list(messages)
    for mark in marks:
        at = next((index for index, item in enumerate(rest_items) if item.get("T") == "w"), len(rest_items))
        behind = rest_messages.index(mark)
        if at or behind:
            parts.append(Part(rest_items[:at], rest_messages[:behind], recv_ns))
        parts.append(Part(rest_items[at : at + 1], [mark], recv_ns, mark))
        rest_items, rest_messages = rest_items[at + 1 :], rest_messages[behind + 1 :]
    if rest_items or rest_messages:
        parts.append(Part(rest_items, rest_messages, recv_ns))
    return parts


class SliceJoin:
    """What comes from the sources, in an order in which every slice is whole.

    Args:
        sources: their names; of two watermarks of one time the first source's goes on.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self._queues: dict[str, deque[Part]] = {source: deque() for source in sources}
        self._ends: dict[str, int] = {}  # of the sources that send watermarks: the end of the last that went on
        self._passed_ns = 0

    @property
    def is_waiting(self) -> bool:
        """Whether a watermark waits."""
        return any(self._queues.values())

    @property
    def lagging(self) -> list[str]:
        """The sources whose watermark is waited for."""
        return [source for source in self._ends if not self._queues[source]] if self.is_waiting else []

    def begin(self, source: str) -> None:
        """A source sends watermarks from now on, it may be some of them again; alone, it may begin at any time."""
        self._ends[source] = 0
        if len(self._ends) == 1:
            self._passed_ns = 0

    def leave(self, source: str) -> list[Part]:
        """Wait for a source no longer; return what can go on."""
        self._ends.pop(source, None)
        return self._pass_on()

    def push(self, source: str, parts: Iterable[Part]) -> list[Part]:
        """Take what has come from a source; return what can go on."""
        for part in parts:
            self._queues[source].append(part)
            if part.mark is not None:
                self._ends.setdefault(source, 0)
        return self._pass_on()

    def _pass_on(self) -> list[Part]:
        ready: list[Part] = []
        while True:
            for queue in self._queues.values():
                while queue and queue[0].mark is None:
                    ready.append(queue.popleft())
            fronts = {source: queue[0].mark.end_ns for source, queue in self._queues.items() if queue and queue[0].mark}
            if not fronts:
                return ready
            end_ns = min(fronts.values())
            if any(source not in fronts and last_ns < end_ns for source, last_ns in self._ends.items()):
                return ready
            ended = [source for source, front_ns in fronts.items() if front_ns == end_ns]
            parts = [self._queues[source].popleft() for source in ended]
            for source in ended:
                self._ends[source] = max(self._ends.get(source, 0), end_ns)
            if end_ns > self._passed_ns or ended[0] == next(iter(self._queues)):
                ready.append(parts[0])
            self._passed_ns = max(self._passed_ns, end_ns)
