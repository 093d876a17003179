"""What to subscribe and unsubscribe in one session of Alpaca's market data, and what follows from a refusal. Pure.

Alpaca answers each message in its turn: with the whole list of what is subscribed, or with an error that leaves the
list as it was. A refused message is sent again in halves, one after another, until what is refused stands alone; so one
bad symbol, or the limit on symbols, costs the others nothing. What is refused is not asked for again before something
else is given back, or it is wanted anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from dry_work.hub.events import ALL, IMPLIED

BATCH = 500  # symbols in one message
REFUSALS = 64  # of one search for what is refused; then the rest of it counts as refused too
ALREADY_AUTHENTICATED, SYMBOL_LIMIT, ALL_REFUSED = 403, 405, 413

Wish = tuple[str, str]  # channel, symbol


class Change(msgspec.Struct, frozen=True):
    """One message: what to subscribe, or to unsubscribe."""

    action: str  # subscribe or unsubscribe
    wishes: tuple[Wish, ...]
    has_watermarks: bool = False

    @property
    def channels(self) -> dict[str, list[str]]:
        """The symbols by channel."""
        channels: dict[str, list[str]] = {}
        for channel, symbol in self.wishes:
            channels.setdefault(channel, []).append(symbol)
        return channels


class SubscriptionPlan:
    """The subscriptions of one session.

    Args:
        takes_watermarks: the server offers them; they come with the last of the first messages.
    """

    def __init__(self, *, takes_watermarks: bool = False) -> None:
        self._asks_watermarks = takes_watermarks
        self._held: dict[Wish, None] = {}  # asked for, and not refused so far
        self._pending: deque[Change] = deque()  # not answered
        self._refused: dict[Wish, int] = {}  # with the code
        self._without_all: set[str] = set()  # channels whose `*` is refused
        self._left_out = 0  # `*` that are wanted of those
        self._batch = BATCH
        self._refusals = 0
        self._is_full = False  # nothing more is taken, or too much was refused

    @property
    def refused(self) -> int:
        """How much of what is wanted the server has refused."""
        return len(self._refused) + self._left_out

    @property
    def _is_searching(self) -> bool:
        """Whether messages go one at a time, each after the answer to the one before."""
        return self._batch < BATCH

    def next(self, wishes: Iterable[Wish]) -> list[Change]:
        """Return what is to be sent now; ask again after every answer, and when what is wanted has changed."""
        wanted = self._merge(wishes)
        for wish in self._refused.keys() - wanted.keys():
            del self._refused[wish]  # wanted anew, it is asked for anew
        waits = {channel for change in self._pending for channel, symbol in change.wishes if symbol == ALL}
        removed = sorted(wish for wish in self._held if wish not in wanted and wish[0] not in waits)
        if self._is_searching and self._pending:
            return self._send(self._unsubscribe(removed))
        added = [wish for wish in wanted if wish not in self._held and wish not in self._refused]
        if self._is_full:
            self._refused.update(dict.fromkeys(added, SYMBOL_LIMIT))
            added = []
        if not added:
            self._batch, self._refusals = BATCH, 0
            if self._asks_watermarks and self._held and not self._pending:
                self._asks_watermarks = False
                return self._send([*self._unsubscribe(removed), Change("subscribe", (), has_watermarks=True)])
        # Places are given back before others are taken, for there is a limit on them, unless a change from names to
        # all, or back, would so leave a gap; and names stay until all are granted.
        if any(symbol == ALL for _, symbol in added):
            all_of = {channel for channel, symbol in added if symbol == ALL}
            removed = [wish for wish in removed if wish[0] not in all_of]
        changes = self._unsubscribe(removed)
        if any(symbol == ALL for _, symbol in removed):
            return self._send(self._subscribe(added) + changes)
        return self._send(changes + self._subscribe(added))

    def take_list(self) -> None:
        """Take the server's answer to a message that it has carried out."""
        if self._pending and self._pending.popleft().action == "unsubscribe":
            # Places are free: what was refused may be tried again.
            self._refused.clear()
            self._is_full = False
            self._refusals = 0

    def take_error(self, code: int) -> tuple[Wish, ...]:
        """Take the server's refusal of a message; return what of it is refused for good, as far as that is known."""
        if not self._pending or code == ALREADY_AUTHENTICATED:
            return ()
        change = self._pending.popleft()
        if change.action != "subscribe":
            return ()
        self._asks_watermarks = self._asks_watermarks or (change.has_watermarks and bool(change.wishes))
        again = {wish for later in self._pending if later.action == "subscribe" for wish in later.wishes}
        refused = tuple(wish for wish in change.wishes if wish not in again)  # the rest was asked for once more since
        for wish in refused:
            self._held.pop(wish, None)
        every = {channel for channel, symbol in change.wishes if symbol == ALL}
        if code == ALL_REFUSED and len(every) == 1:
            self._without_all |= every
            return tuple((channel, ALL) for channel in every)
        self._refusals += 1
        if len(change.wishes) > 1 and self._refusals < REFUSALS:
            self._batch = max(1, min(self._batch, len(change.wishes)) // 2)
            return ()
        self._refused.update(dict.fromkeys(refused, code))
        self._is_full = self._is_full or code == SYMBOL_LIMIT or self._refusals >= REFUSALS
        return refused

    def _merge(self, wishes: Iterable[Wish]) -> dict[Wish, None]:
        """Return the wishes without those that `*` of the same channel covers."""
        merged = {wish: None for wish in wishes if wish[0] not in IMPLIED}
        refused = [(channel, ALL) for channel in self._without_all if (channel, ALL) in merged]
        self._left_out = len(refused)
        for wish in refused:
            del merged[wish]
        every = {channel for channel, symbol in merged if symbol == ALL and (channel, symbol) not in self._refused}
        return {wish: None for wish in merged if wish[0] not in every or wish[1] == ALL}

    def _subscribe(self, wishes: Sequence[Wish]) -> list[Change]:
        parts = [tuple(wishes[start : start + self._batch]) for start in range(0, len(wishes), self._batch)]
        if self._is_searching:
            parts = parts[:1]
        changes = [Change("subscribe", part) for part in parts]
        if changes and self._asks_watermarks and not self._is_searching:
            # With the last: a slice that the server sends again on subscribing them is then complete.
            changes[-1] = msgspec.structs.replace(changes[-1], has_watermarks=True)
            self._asks_watermarks = False
        self._held.update(dict.fromkeys(wish for change in changes for wish in change.wishes))
        return changes

    def _unsubscribe(self, wishes: Sequence[Wish]) -> list[Change]:
        for wish in wishes:
            self._held.pop(wish, None)
        return [Change("unsubscribe", tuple(wishes[start : start + BATCH])) for start in range(0, len(wishes), BATCH)]

    def _send(self, changes: list[Change]) -> list[Change]:
        self._pending.extend(changes)
        return changes


def count_symbols(channels: Mapping[str, Sequence[str]], *, besides: Iterable[str]) -> int:
    """Return how many symbols a server's list has, once for each channel; `besides` are not counted."""
    left_out = {*IMPLIED, *besides}
    return sum(len(symbols) for channel, symbols in channels.items() if channel not in left_out)
