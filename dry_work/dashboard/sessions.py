"""Recorded sessions as the page scrubs through them: turn by turn, each as it was known then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from dry_work.dashboard.snapshot import Delta


class DecisionView(msgspec.Struct, frozen=True, kw_only=True):
    """Something the strategy wanted in a turn, and what became of it."""

    what: str  # for people: buy 12 SPY at market
    symbol: str
    verdict: str  # taken, refused, or what the risk gate did with it
    reason: str = ""
    order: str = ""
    legs: tuple[str, ...] = ()
    latency: str = ""


class TurnView(msgspec.Struct, frozen=True, kw_only=True):
    """A turn of the engine: why it did, or did not, trade."""

    turn: int
    time_ms: int  # the market's
    board: Delta  # all that was known after it
    decisions: tuple[DecisionView, ...] = ()
    happened: tuple[str, ...] = ()  # what came from outside: fills, changes of state, statuses
    answer: str = ""  # why nothing was traded, in a sentence


class SessionOutline(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded session, to scrub through."""

    name: str
    symbols: tuple[str, ...]
    times_ms: Sequence[int]  # the market's time of each turn with bars
    turns: Sequence[int]  # their numbers
    marked: Sequence[int] = ()  # positions in `turns` at which something was decided


class SessionSource(Protocol):
    """A recorded session. Each method may be called from any thread, one at a time."""

    def outline(self) -> SessionOutline:
        """Return what there is to scrub through."""

    def at(self, turn: int, symbol: str) -> TurnView:
        """Return a turn, with the bars of one symbol.

        Raises:
            DryWorkError: there is no such turn, or it cannot be read.
        """
