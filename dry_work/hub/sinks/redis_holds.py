"""Who holds which symbols over Redis, and for how long. Pure.

A symbol's holds are counted: one for each client id, and one for each registration without. They end together when for
the length of the lease nobody was heard to listen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dry_work.errors import CodecError
from dry_work.hub.core import bar_feed, feed_of
from dry_work.hub.events import ALL, IMPLIED, NEWS, STOCKS, WATERMARKS, Topic
from dry_work.market.symbols import is_symbol
from dry_work.wire.redis import BARS, TRADES, Registration, channels_of

MOST_HOLDERS = 10_000  # client ids of one symbol
MOST_SYMBOLS = 100_000


class _Stored(msgspec.Struct, frozen=True):
    """The holds of a symbol as they are kept in Redis."""

    anonymous: dict[str, int] = {}
    clients: dict[str, list[str]] = {}


class SymbolHolds:
    """The holds of one symbol."""

    def __init__(self, now_s: float) -> None:
        self.anonymous: dict[str, int] = {}  # by channel: registrations without a client id
        self.clients: dict[str, dict[str, None]] = {}  # by client id: its channels
        self.alive_s = now_s  # when somebody was there last
        # Whether the last message that was published on a channel had receivers, patterns included.
        self.was_heard: dict[str, bool] = {}

    @property
    def channels(self) -> dict[str, None]:
        """The channels that are held by anybody."""
        found = dict.fromkeys(self.anonymous)
        for channels in self.clients.values():
            found.update(channels)
        return found

    @property
    def may_be_heard(self) -> bool:
        """Tell whether a subscription to a pattern may be for this symbol."""
        channels = self.channels
        return any(self.was_heard.get(channel, True) for channel in (TRADES, BARS) if channel in channels)

    def encode(self) -> bytes:
        """Return the holds as they are kept in Redis."""
        stored = _Stored(self.anonymous, {client: list(channels) for client, channels in self.clients.items()})
        return msgspec.json.encode(stored)


class Holds:
    """The holds of all symbols.

    Args:
        lease_s: how long a symbol is held that nobody listens to.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._symbols: dict[str, SymbolHolds] = {}

    def __len__(self) -> int:
        return len(self._symbols)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that are held."""
        return tuple(self._symbols)

    @property
    def clients(self) -> int:
        """How many programs there are: client ids, and at least so many without."""
        named = {client for holds in self._symbols.values() for client in holds.clients}
        unnamed = max((max(holds.anonymous.values(), default=0) for holds in self._symbols.values()), default=0)
        return len(named) + unnamed

    def topics_of(self, symbol: str) -> set[Topic]:
        """Return what is wanted of a symbol."""
        holds = self._symbols.get(symbol)
        return set() if holds is None else {topic for channel in holds.channels for topic in _topics(symbol, channel)}

    def add(self, registration: Registration, now_s: float) -> None:
        """Take a registration; each of its symbols is known to be wanted at `now_s`.

        Raises:
            CodecError: there are too many symbols, or holders of one. Nothing is taken then.
        """
        channels = registration.channels or (TRADES,)
        client = registration.client_id
        if len(self._symbols.keys() | set(registration.symbols)) > MOST_SYMBOLS:
            raise CodecError(f"there are {len(self._symbols)} symbols already: expected at most {MOST_SYMBOLS}")
        for symbol in registration.symbols:
            holds = self._symbols.get(symbol)
            if holds is not None and client not in holds.clients and len(holds.clients) >= MOST_HOLDERS:
                raise CodecError(f"{symbol} is held by {MOST_HOLDERS} clients already")
        for symbol in registration.symbols:
            holds = self._symbols.setdefault(symbol, SymbolHolds(now_s))
            if client:
                holds.clients.setdefault(client, {}).update(dict.fromkeys(channels))
            else:
                for channel in channels:
                    holds.anonymous[channel] = holds.anonymous.get(channel, 0) + 1
            holds.alive_s = max(holds.alive_s, now_s)
            holds.was_heard.clear()

    def remove(self, registration: Registration) -> list[str]:
        """Take an unregistration; return the symbols of which a hold has ended."""
        client = registration.client_id
        symbols: Iterable[str] = registration.symbols
        if client and not registration.symbols:
            symbols = self.symbols
        return [symbol for symbol in symbols if self._remove(symbol, client, registration.channels)]

    def _remove(self, symbol: str, client: str, channels: tuple[str, ...]) -> bool:
        holds = self._symbols.get(symbol)
        if holds is None:
            return False
        if client:
            held = holds.clients.get(client, {})
            ended = [channel for channel in channels or tuple(held) if channel in held]
            for channel in ended:
                del held[channel]
            if not held:
                holds.clients.pop(client, None)
        else:
            ended = [channel for channel in channels or (TRADES,) if channel in holds.anonymous]
            for channel in ended:
                holds.anonymous[channel] -= 1
                if not holds.anonymous[channel]:
                    del holds.anonymous[channel]
        if not holds.anonymous and not holds.clients:
            del self._symbols[symbol]
        return bool(ended)

    # --- the lease

    def note_receivers(self, symbol: str, channel: str, count: int) -> None:
        """Note how many have received the message of an event of the symbol's trades or bars."""
        holds = self._symbols.get(symbol)
        if holds is not None:
            holds.was_heard[channel] = count > 0

    def note_restart(self, now_s: float) -> None:
        """Let every lease begin anew: listeners, too, have lost their connection."""
        for holds in self._symbols.values():
            holds.alive_s = now_s
            holds.was_heard.clear()

    def check(self, subscribed: Iterable[str], *, has_patterns: bool, now_s: float) -> list[str]:
        """End the holds of symbols that nobody listens to; return those symbols.

        Args:
            subscribed: symbols with subscribers of their own.
            has_patterns: there are subscriptions to patterns at the server. It does not tell which, but a message
                that is published tells whether anybody has received it.
        """
        named = set(subscribed)
        ended = []
        for symbol, holds in self._symbols.items():
            if symbol in named:
                holds.was_heard.clear()  # as long as there are such, messages say nothing of patterns
                holds.alive_s = now_s
            elif has_patterns and holds.may_be_heard:
                holds.alive_s = now_s
            elif now_s - holds.alive_s >= self._lease_s:
                ended.append(symbol)
        for symbol in ended:
            del self._symbols[symbol]
        return ended

    # --- what outlasts the hub

    def encode(self, symbol: str) -> bytes | None:
        """Return the holds of a symbol as they are kept in Redis, None when there are none."""
        holds = self._symbols.get(symbol)
        return None if holds is None else holds.encode()

    def restore(self, stored: Mapping[str, bytes], now_s: float) -> list[str]:
        """Add holds that were kept in Redis; return the symbols of those that cannot be read."""
        unread = []
        for symbol, data in stored.items():
            try:
                found = msgspec.json.decode(data, type=_Stored)
            except msgspec.DecodeError:
                found = None
            if found is None or not is_symbol(symbol):
                unread.append(symbol)
                continue
            allowed = channels_of(symbol)
            for client, channels in found.clients.items():
                known = tuple(channel for channel in channels if channel in allowed)
                if known:
                    self.add(Registration(adds=True, symbols=(symbol,), channels=known, client_id=client), now_s)
            holds = self._symbols.get(symbol)
            for channel, count in found.anonymous.items():
                if channel in allowed and count > 0:
                    holds = self._symbols.setdefault(symbol, SymbolHolds(now_s))
                    holds.anonymous[channel] = holds.anonymous.get(channel, 0) + count
        return unread


def _topics(symbol: str, channel: str) -> list[Topic]:
    if channel == NEWS:
        return [(NEWS, NEWS, symbol)]
    feed = bar_feed(symbol) if channel in (BARS, WATERMARKS) else feed_of(symbol)
    if channel == WATERMARKS:
        return [(feed, WATERMARKS, ALL)]
    implied: Any = IMPLIED if feed == STOCKS and channel == TRADES else ()
    return [(feed, name, symbol) for name in (channel, *implied)]
