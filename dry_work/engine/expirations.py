"""Contracts that have come to their end. Engine thread only."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import structlog

from dry_work.clock import SECOND_NS
from dry_work.market.symbols import is_option

_DATE = slice(-15, -9)  # of an OCC symbol
_DATE_FORMAT = "%y%m%d"

_log = structlog.get_logger(__name__)


class Expirations:
    """Tells of each contract once that it has ended: at the close of its last session.

    The calendar is loaded on the day of the first expiration, not before.

    Args:
        symbols: all of a run; those that are no options are left out.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        # Midnight in UTC comes before any session of the day.
        self._left = {symbol: found for symbol in symbols if is_option(symbol) and (found := _midnight_ns(symbol))}
        self._next_ns = min(self._left.values(), default=0)

    def take(self, now_ns: int) -> list[str]:
        """Return the contracts that have ended by a time and were not told of."""
        if not self._next_ns or now_ns < self._next_ns:
            return []
        from dry_work.market.calendar import shared_calendar

        calendar = shared_calendar()
        ended = []
        for symbol, midnight_ns in self._left.items():
            if midnight_ns <= now_ns and calendar.session_close_ns(midnight_ns) <= now_ns:
                ended.append(symbol)
                _log.warning("a contract has ended", symbol=symbol)
        for symbol in ended:
            del self._left[symbol]
        self._next_ns = min(self._left.values(), default=0)
        return ended


def _midnight_ns(symbol: str) -> int:
    """Return the beginning of the day of a contract's expiration, 0 when its symbol names no day."""
    try:
        day = datetime.strptime(symbol[_DATE], _DATE_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(day.timestamp()) * SECOND_NS
