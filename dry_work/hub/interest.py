"""Who wants which symbols: reference counts that decide what is subscribed upstream. Pure.

A client counts once per symbol, however often it asks. The first client that wants a symbol makes it wanted, the last
one that lets it go makes it unwanted.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView


class Interest:
    """Symbols by the clients that hold them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # in the order in which the symbols became wanted
        self._held: dict[str, dict[str, None]] = {}  # client -> its symbols in their order

    @property
    def wanted(self) -> KeysView[str]:
        """The symbols held by at least one client, in the order in which they became wanted."""
        return self._counts.keys()

    @property
    def clients(self) -> KeysView[str]:
        """The clients that hold at least one symbol."""
        return self._held.keys()

    def count(self, symbol: str) -> int:
        """Return how many clients hold `symbol`."""
        return self._counts.get(symbol, 0)

    def held(self, client: str) -> tuple[str, ...]:
        """Return the symbols of `client` in the order in which it asked."""
        return tuple(self._held.get(client, ()))

    def acquire(self, client: str, symbols: Iterable[str]) -> tuple[str, ...]:
        """Note that `client` wants `symbols` too; return those that nobody wanted before."""
        added = []
        for symbol in symbols:
            held = self._held.setdefault(client, {})
            if symbol in held:
                continue
            held[symbol] = None
            count = self._counts.get(symbol, 0)
            self._counts[symbol] = count + 1
            if count == 0:
                added.append(symbol)
        return tuple(added)

    def release(self, client: str, symbols: Iterable[str] | None = None) -> tuple[str, ...]:
        """Let go of `symbols` (None: all) of `client`; return those that nobody wants any more.

        A client that is not known, and a symbol that it does not hold, are left out.
        """
        held = self._held.get(client)
        if held is None:
            return ()
        removed = []
        for symbol in tuple(held) if symbols is None else tuple(symbols):
            if symbol not in held:
                continue
            del held[symbol]
            self._counts[symbol] -= 1
            if self._counts[symbol] == 0:
                del self._counts[symbol]
                removed.append(symbol)
        if not held:
            del self._held[client]
        return tuple(removed)
