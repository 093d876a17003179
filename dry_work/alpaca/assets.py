"""Check symbols against the venue's assets. One thread at a time."""

from __future__ import annotations

from collections.abc import Sequence

from dry_work.alpaca.venue_api import VenueApi
from dry_work.errors import ConfigError

# From so many symbols on, one list of all assets costs fewer requests of the venue's 200 a minute.
MOST_LOOK_UPS = 40


def check_symbols(symbols: Sequence[str], api: VenueApi, *, most_look_ups: int = MOST_LOOK_UPS) -> None:
    """Make sure that the venue knows and trades every symbol.

    Raises:
        ConfigError: naming the symbols that it does not know or does not trade.
        BrokerError: as `VenueApi.call` raises it.
    """
    known: dict[str, bool | None]
    if len(symbols) <= most_look_ups:
        known = {symbol: api.is_tradable(symbol) for symbol in symbols}
    else:
        known = dict(api.tradable_assets())
    unknown = [symbol for symbol in symbols if known.get(symbol) is None]
    if unknown:
        raise ConfigError(f"{api.url} has no asset {', '.join(unknown)}: check the symbols file")
    halted = [symbol for symbol in symbols if not known[symbol]]
    if halted:
        raise ConfigError(f"{api.url} does not trade {', '.join(halted)} at present: take it out of the symbols file")
