"""Market-data messages: immutable values. Pure.

Every message keeps two times in integer nanoseconds since 1970 UTC: `ts_event_ns`, the venue's stamp, and
`ts_recv_ns`, the time at which this process received it (0 when not received from outside).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from dry_work.clock import MINUTE_NS

NO_EXTRA: Mapping[str, float] = MappingProxyType({})


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of one symbol.

    `ts_event_ns` is the start of the bar, as the venue stamps it; `end_ns` is what Backtrader's `datetime` line holds.
    """

    symbol: str  # canonical form: AAPL, BRK.B, BTC/USD
    ts_event_ns: int  # start of the bar
    open: float
    high: float
    low: float
    close: float
    volume: float
    length_ns: int = MINUTE_NS
    trade_count: float | None = None  # trades in the bar
    vwap: float | None = None  # average price by volume
    revision: int = 0  # above 0: corrects the bar of the same symbol and time
    source: str = ""  # alpaca_stock, alpaca_crypto or empty
    extra: Mapping[str, float] = msgspec.field(default_factory=lambda: NO_EXTRA)  # further numeric fields by name
    ts_recv_ns: int = 0
    ts_hub_ns: int = 0  # at which the hub received it; 0: the way here does not tell

    @property
    def end_ns(self) -> int:
        """End of the bar."""
        return self.ts_event_ns + self.length_ns


class News(msgspec.Struct, frozen=True, kw_only=True):
    """One news item."""

    symbols: tuple[str, ...]
    headline: str
    summary: str = ""
    author: str = ""
    url: str = ""
    source: str = ""
    created_at: str = ""  # RFC 3339
    updated_at: str = ""  # RFC 3339
    ingested_at: str = ""  # RFC 3339
    ts_recv_ns: int = 0


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """The publisher's word that a slice is complete on one topic."""

    slice: int  # counts up by one from 1
    end_ns: int  # end time of the slice's bars
    bars: int  # bars of this slice on this topic
    event_id: str = ""  # the last trade event the venue made up to this slice, empty when none
    last: bool = False  # no slice follows


class BarBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Several bars that came in one message."""

    bars: tuple[Bar, ...]
    dropped: tuple[str, ...] = ()  # reasons of the entries that cannot be used


# Alpaca's codes of both tapes: halted, paused for volatility, opening delayed, no opening today; and traded again.
_HALTED = frozenset({"H", "P", "1", "2", "4"})
_TRADED = frozenset({"T", "3"})


class TradingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The exchange's word on the trading of one symbol: a halt and its end, or something on the way."""

    symbol: str
    ts_event_ns: int
    code: str  # Alpaca's: H or 2 halted, P paused, T or 3 resumed, and others
    message: str = ""
    reason_code: str = ""
    reason: str = ""
    tape: str = ""
    ts_recv_ns: int = 0

    @property
    def is_halt(self) -> bool | None:
        """Whether the symbol is halted from here on; None: that does not change."""
        if self.code in _HALTED:
            return True
        return False if self.code in _TRADED else None

    def describe(self) -> str:
        """Return what happened and why, for people."""
        reason = self.reason or self.reason_code
        if self.reason and self.reason_code:
            reason = f"{self.reason} ({self.reason_code})"
        return f"{self.message or self.code}{f': {reason}' if reason else ''}"


class PriceBands(msgspec.Struct, frozen=True, kw_only=True):
    """Prices between which a symbol may be traded now (limit up, limit down)."""

    symbol: str
    ts_event_ns: int
    upper: float
    lower: float
    indicator: str = ""
    tape: str = ""
    ts_recv_ns: int = 0


class BarNote(msgspec.Struct, frozen=True, kw_only=True):
    """A bar that came and is not delivered, by the declared policy."""

    bar: Bar
    is_revision: bool = False  # it corrects a bar that was delivered; False: it came too late
    is_told: bool = False  # the strategy is to hear of it


MarketMessage = Bar | BarBatch | News | Watermark | TradingStatus | PriceBands


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it came from a topic.

    Without `epoch` the publisher does not number its messages.
    """

    topic: str
    message: MarketMessage
    epoch: str = ""
    seq: int = 0  # counts up by one per topic within an epoch
    ignored_fields: tuple[str, ...] = ()  # names in the payload of a bar that cannot be extra fields


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """All bars that reach the strategy in one `next`: at most one bar per symbol.

    A bar that came too late for its own slice keeps its own time here, which is then before `end_ns`.
    """

    end_ns: int
    bars: tuple[Bar, ...]
    number: int | None = None  # the publisher's slice number, None when a grace period released the slice
    event_id: str = ""  # trade events up to this one belong before the slice's `next`
    last: bool = False  # no slice follows
    filled: bool = False  # from history: it moves feeds and indicators, and no strategy is called
