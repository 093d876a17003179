"""Symbols that have gone quiet while their market is open. Pure but for the log; one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import structlog

from dry_work.clock import SECOND_NS
from dry_work.market.market_state import is_after_halt
from dry_work.market.messages import TradingStatus
from dry_work.market.symbols import is_option
from dry_work.ports import SourceStatus

_SYMBOLS_NAMED = 5

_log = structlog.get_logger(__name__)


class StaleWatch:
    """Sees symbols without a bar for too long, while their market is open and nobody has halted them.

    Options are not watched: many a contract has no trade for hours.

    Args:
        limit_ns: how long is too long; after an opening it counts from there.
        is_open: whether a symbol's market is open at a UTC time in nanoseconds; None: always.
    """

    def __init__(self, symbols: Sequence[str], limit_ns: int, is_open: Callable[[str, int], bool] | None) -> None:
        self.changes: deque[SourceStatus] = deque()  # that nobody has taken yet
        self._limit_ns = limit_ns
        self._is_open = is_open
        self._last_ns = {symbol: 0 for symbol in symbols if not is_option(symbol)}
        self._stale: set[str] = set()
        self._halts: dict[str, TradingStatus] = {}
        self.next_look_ns = 0

    def begin(self, now_ns: int) -> None:
        """Count from `now_ns` on."""
        self._last_ns = dict.fromkeys(self._last_ns, now_ns)
        self.next_look_ns = now_ns + self._limit_ns

    def note(self, symbol: str, now_ns: int, start_ns: int = 0) -> None:
        """Note a bar that begins at `start_ns`."""
        if symbol in self._last_ns:
            self._last_ns[symbol] = now_ns
            if self._halts and is_after_halt(start_ns, self._halts.get(symbol)):
                del self._halts[symbol]
            if symbol in self._stale:
                self._stale.discard(symbol)
                _log.info("symbol is back", symbol=symbol)
                self.changes.append(SourceStatus(connected=True, symbol=symbol, detail="bars are back"))

    def note_trading(self, status: TradingStatus, now_ns: int) -> None:
        """Note a halt, during which nobody waits for bars, or its end, from which on the time counts."""
        if status.symbol not in self._last_ns or status.is_halt is None:
            return
        if status.is_halt:
            self._halts[status.symbol] = status
            if status.symbol in self._stale:
                self._stale.discard(status.symbol)  # that it is halted is told by the status itself
                _log.info("symbol is not stale but halted", symbol=status.symbol, reason=status.describe())
        elif self._halts.pop(status.symbol, None) is not None:
            self._last_ns[status.symbol] = now_ns

    def look(self, now_ns: int, time_ns: int) -> int:
        """Report symbols that are newly stale; return how many."""
        if now_ns < self.next_look_ns:
            return 0
        found = 0
        for symbol, last_ns in self._last_ns.items():
            if symbol in self._stale or now_ns - last_ns < self._limit_ns:
                continue
            if symbol in self._halts or (self._is_open is not None and not self._is_open(symbol, time_ns)):
                self._last_ns[symbol] = now_ns  # counted anew from here
                continue
            self._stale.add(symbol)
            found += 1
            detail = f"no bar for {self._limit_s():g} s while its market is open"
            self.changes.append(SourceStatus(connected=False, symbol=symbol, detail=detail))
            _log.warning("symbol is stale: no bar while its market is open", symbol=symbol, seconds=self._limit_s())
        quiet = [last_ns for symbol, last_ns in self._last_ns.items() if symbol not in self._stale]
        self.next_look_ns = min(quiet, default=now_ns) + self._limit_ns
        return found

    @property
    def stale(self) -> frozenset[str]:
        """The symbols that are stale."""
        return frozenset(self._stale)

    def describe_silence(self) -> str:
        """Return why nothing can be expected any more, empty while any symbol has bars or its market is closed.

        Halted symbols are left out.
        """
        if not self._stale or len(self._stale) + len(self._halts) < len(self._last_ns):
            return ""
        listed = ", ".join(list(self._last_ns)[:_SYMBOLS_NAMED])
        more = len(self._last_ns) - _SYMBOLS_NAMED
        listed += f" and {more} more" if more > 0 else ""
        return f"no bar of any symbol ({listed}) for {self._limit_s():g} s while their market is open"

    def _limit_s(self) -> float:
        return self._limit_ns / SECOND_NS
