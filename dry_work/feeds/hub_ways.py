"""What the ways to the hub have in common: those that lead to the hub itself, and those over a server between. Pure.

They hold tokens and passwords, and so have no `repr` of their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from dry_work.feeds.hub_link import CRYPTO, SILENCE_S
from dry_work.market.symbols import is_crypto
from dry_work.settings import FeedSettings


@dataclass(eq=False, repr=False)
class DirectWay:
    """A way to the hub itself, with a connection for each of its feeds.

    Args:
        url: with host and port.
        token: the hub's; empty for one that asks for none.
        symbols: wanted symbols.
        silence_s: without any word of the other side: the connection is dead.
        statuses: bring trading statuses and price bands of stocks too.
    """

    url: str
    _: KW_ONLY
    token: str = ""
    symbols: Sequence[str]
    silence_s: float = SILENCE_S
    statuses: bool = False

    def symbols_of(self, feed: str) -> list[str]:
        """Return the wanted symbols of a feed."""
        return [symbol for symbol in self.symbols if is_crypto(symbol) == (feed == CRYPTO)]

    def lanes(self, feeds: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Return each feed by itself."""
        return [(feed,) for feed in feeds]


@dataclass(eq=False, repr=False)
class WayOverServer:
    """A way over a server that the hub publishes on, with one connection for all feeds.

    Args:
        settings: server, user, password and what else it needs.
        symbols: wanted symbols.
        client: names this reader to the hub; no other one has it.
        silence_s: without any word of the other side: the connection is dead.
        statuses: bring trading statuses and price bands of stocks too.
    """

    settings: FeedSettings
    _: KW_ONLY
    symbols: Sequence[str]
    client: str
    silence_s: float = SILENCE_S
    statuses: bool = False

    def lanes(self, feeds: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Return all feeds together."""
        return [tuple(feeds)]
