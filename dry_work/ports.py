"""Narrow interfaces between the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from dry_work.market.messages import BarNote, News, PriceBands, Slice, TradingStatus
from dry_work.wakeup import Wakeup


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A market-data source was lost or came back; with `symbol` the bars of that one stopped or came back."""

    connected: bool
    detail: str = ""
    symbol: str = ""


class SourceFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A market-data source is gone for good; the run stops with 1."""

    error: BaseException


SourceEvent = Slice | News | TradingStatus | PriceBands | BarNote | SourceStatus | SourceFailed


class MarketSource(Protocol):
    """Where the live engine gets its slices from. `take` and `wait_s` are for the engine's thread only."""

    def start(self, wakeup: Wakeup) -> None:
        """Begin to receive; raise `wakeup` whenever `take` may have something."""

    def stop(self, timeout_s: float = 5.0) -> None:
        """End, and leave no thread behind. May be called twice."""

    def take(self) -> SourceEvent | None:
        """Return the next event in order, or None when there is nothing now."""

    def wait_s(self) -> float | None:
        """Seconds after which `take` may have something without a wake-up; None: only after a wake-up."""

    def counters(self) -> Mapping[str, int]:
        """Counts of what was received and of what was dropped, by reason."""
