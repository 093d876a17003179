"""Who wants what: reference counts that decide what is subscribed upstream. Pure.

A client counts once per topic, however often it asks. The first client that wants a topic makes it wanted, the last one
that lets it go makes it unwanted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, KeysView
from typing import Generic, TypeVar

_Topic = TypeVar("_Topic", bound=Hashable)


class Interest(Generic[_Topic]):
    """Topics by the clients that hold them."""

    def __init__(self) -> None:
        self._counts: dict[_Topic, int] = {}  # in the order in which they became wanted
        self._held: dict[str, dict[_Topic, None]] = {}  # client -> its topics in their order

    @property
    def wanted(self) -> KeysView[_Topic]:
        """The topics held by at least one client, in the order in which they became wanted."""
        return self._counts.keys()

    @property
    def clients(self) -> KeysView[str]:
        """The clients that hold at least one topic."""
        return self._held.keys()

    def count(self, topic: _Topic) -> int:
        """Return how many clients hold `topic`."""
        return self._counts.get(topic, 0)

    def held(self, client: str) -> tuple[_Topic, ...]:
        """Return the topics of `client` in the order in which it asked."""
        return tuple(self._held.get(client, ()))

    def acquire(self, client: str, topics: Iterable[_Topic]) -> tuple[_Topic, ...]:
        """Note that `client` wants `topics` too; return those that nobody wanted before."""
        added = []
        for topic in topics:
            held = self._held.setdefault(client, {})
            if topic in held:
                continue
            held[topic] = None
            count = self._counts.get(topic, 0)
            self._counts[topic] = count + 1
            if count == 0:
                added.append(topic)
        return tuple(added)

    def release(self, client: str, topics: Iterable[_Topic] | None = None) -> tuple[_Topic, ...]:
        """Let go of `topics` (None: all) of `client`; return those that nobody wants any more.

        A client that is not known, and a topic that it does not hold, are left out.
        """
        held = self._held.get(client)
        if held is None:
            return ()
        removed = []
        for topic in tuple(held) if topics is None else tuple(topics):
            if topic not in held:
                continue
            del held[topic]
            self._counts[topic] -= 1
            if self._counts[topic] == 0:
                del self._counts[topic]
                removed.append(topic)
        if not held:
            del self._held[client]
        return tuple(removed)
