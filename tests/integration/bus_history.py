"""What a hub's bus keeps, read from the thread of a test."""

from __future__ import annotations

from collections.abc import Sequence

from dry_work.hub.bus import Bus
from dry_work.hub.events import HubEvent, Topic


def read_history(bus: Bus, feed: str, topics: Sequence[Topic], *, offset: int = 0) -> tuple[HubEvent, ...]:
    """Return the events after an offset. The bus belongs to the hub's thread, which may add one meanwhile."""
    while True:
        try:
            return bus.replay(feed, topics, epoch=bus.epoch, offset=offset).events
        except RuntimeError as error:
            if "mutated" not in str(error):
                raise
