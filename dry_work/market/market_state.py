"""How the market data of a run stand: symbols that are silent or halted, and how complete their bars are.

`MarketState` belongs to one thread. `DataHealth` is a value of one moment that goes into the heartbeat, where other
processes read it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from dry_work.market.completeness import Completeness, CompletenessTally, add_up
from dry_work.market.messages import Bar, PriceBands, TradingStatus

SYMBOLS_LISTED = 100  # of those whose bars are not complete, the worst first


class SymbolHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The bars of one symbol, from the first slice on."""

    symbol: str
    bars: Completeness


class DataHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the market data stood at one moment."""

    connected: bool = True
    market_ns: int = 0  # end of the newest slice, 0 before the first
    bars: Completeness = Completeness()  # of all symbols together
    symbols: tuple[SymbolHealth, ...] = ()  # those that lack bars, had late, filled or revised ones
    silent: Mapping[str, str] = {}  # why, by symbol
    halted: Mapping[str, str] = {}  # why, by symbol


class MarketState:
    """What the market said last of each symbol.

    Args:
        symbols: those that are followed; the word on others is left out.
    """

    def __init__(self, symbols: Sequence[str] = ()) -> None:
        self._symbols = frozenset(symbols)
        self.silent: dict[str, str] = {}  # why, by symbol
        self.halts: dict[str, TradingStatus] = {}  # by symbol
        self.statuses: dict[str, TradingStatus] = {}  # the last one of each symbol
        self.bands: dict[str, PriceBands] = {}

    def note_silence(self, symbol: str, why: str) -> None:
        """Take note that a symbol has no bars, or with an empty `why` that it has some again."""
        if not why:
            self.silent.pop(symbol, None)
        elif symbol in self._symbols:
            self.silent[symbol] = why

    def note_trading(self, status: TradingStatus) -> bool | None:
        """Take note of a status; return whether the symbol is halted by it, or traded again, None when neither."""
        if status.symbol not in self._symbols:
            return None
        self.statuses[status.symbol] = status
        if status.is_halt:
            self.silent.pop(status.symbol, None)  # now it has a reason
            is_new = status.symbol not in self.halts
            self.halts[status.symbol] = status
            return True if is_new else None
        if status.is_halt is None or self.halts.pop(status.symbol, None) is None:
            return None
        return False

    def note_bands(self, bands: PriceBands) -> None:
        """Take note of the prices between which a symbol may be traded."""
        if bands.symbol in self._symbols:
            self.bands[bands.symbol] = bands

    def note_bars(self, bars: Sequence[Bar]) -> list[Bar]:
        """Return the bars that show that a halt is over though nobody said so; those halts are over then."""
        if not self.halts:
            return []
        back = [bar for bar in bars if is_after_halt(bar.ts_event_ns, self.halts.get(bar.symbol))]
        for bar in back:
            del self.halts[bar.symbol]
        return back

    def describe(self, tally: CompletenessTally, *, connected: bool, market_ns: int) -> DataHealth:
        """Return how the data stand now."""
        parts = [SymbolHealth(symbol=symbol, bars=tally.of(symbol)) for symbol in tally.symbols]
        notable = [part for part in parts if _is_notable(part.bars)]
        notable.sort(key=lambda part: (part.bars.share, part.symbol))
        return DataHealth(
            connected=connected,
            market_ns=market_ns,
            bars=add_up([part.bars for part in parts]),
            symbols=tuple(notable[:SYMBOLS_LISTED]),
            silent=dict(self.silent),
            halted={symbol: status.describe() for symbol, status in self.halts.items()},
        )


class SymbolTrading:
    """What a strategy reads as `data.trading`: how the trading of its symbol stands at the time of reading."""

    def __init__(self, state: MarketState, symbol: str) -> None:
        self._state = state
        self.symbol = symbol

    @property
    def is_halted(self) -> bool:
        """Whether the exchange has said that the symbol is not traded now."""
        return self.symbol in self._state.halts

    @property
    def status(self) -> TradingStatus | None:
        """The exchange's last word on the symbol since the start of the run."""
        return self._state.statuses.get(self.symbol)

    @property
    def bands(self) -> PriceBands | None:
        """The last prices between which the symbol may be traded."""
        return self._state.bands.get(self.symbol)


def is_after_halt(start_ns: int, halt: TradingStatus | None) -> bool:
    """Tell whether a bar that begins at `start_ns` shows that its symbol is traded again."""
    return halt is not None and start_ns >= halt.ts_event_ns


def describe_health(health: DataHealth) -> list[str]:
    """Return how the data stood, in lines for people."""
    bars = health.bars
    told = [
        f"{getattr(bars, name):,} {name}" for name in ("late", "filled", "missing", "revised") if getattr(bars, name)
    ]
    lines = [
        ("" if health.connected else "not connected; ")
        + (f"{bars.share:.2%} of {bars.expected:,} expected bars" if bars.expected else "no bars were expected so far")
        + (f" ({', '.join(told)})" if told else "")
    ]
    lines += [f"{symbol} is halted: {why}" for symbol, why in sorted(health.halted.items())]
    lines += [f"{symbol} is silent: {why}" for symbol, why in sorted(health.silent.items())]
    return lines


def parse_health(found: object) -> DataHealth | None:
    """Return what `msgspec.to_builtins` made of a value, None when it is none."""
    try:
        return msgspec.convert(found, DataHealth)
    except (msgspec.ValidationError, TypeError):
        return None


def _is_notable(bars: Completeness) -> bool:
    return bool(bars.missing or bars.late or bars.filled or bars.revised)
