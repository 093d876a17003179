"""What the hub tells of itself. Pure."""

from __future__ import annotations

import msgspec

from dry_work.hub.ports import SinkStatus, TopicStatus
from dry_work.hub.upstreams.connection import FeedStatus


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The hub at one moment, and its counts since the start."""

    epoch: str
    clients: int
    symbols: int
    feeds: tuple[FeedStatus, ...]
    topics: tuple[TopicStatus, ...]
    sinks: tuple[SinkStatus, ...] = ()
    option_bars: dict[str, int] = {}  # what became of the trades of options, and their bars: see `OptionBars`

    @property
    def received(self) -> int:
        """Bars and watermarks taken from upstream."""
        return sum(feed.bars + feed.watermarks for feed in self.feeds)

    @property
    def published(self) -> int:
        """Messages that the sinks have taken."""
        return sum(topic.published for topic in self.topics)

    @property
    def dropped(self) -> int:
        """What came from upstream and was lost: items that could not be read, messages given up at stop."""
        unread = sum(sum(feed.malformed.values()) for feed in self.feeds)
        return unread + sum(topic.dropped for topic in self.topics)

    @property
    def reconnects(self) -> int:
        """Upstream connections opened after the first of their feed."""
        return sum(feed.reconnects for feed in self.feeds)
