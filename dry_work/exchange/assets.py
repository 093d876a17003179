"""What may be done with the assets of the exchange: defaults, and a list that says otherwise. Pure.

The list is JSON as `GET /v2/assets` answers it, so that Alpaca's own answer is one; of each asset only what is to be
other than the default has to be there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dry_work.errors import CodecError
from dry_work.market.symbols import is_crypto, is_option, is_symbol

OVERNIGHT = "overnight_tradable"  # attribute of stocks with a session from 20:00 to 04:00 in New York
HAS_OPTIONS = "has_options"

_EXCHANGES = frozenset(
    ("AMEX", "ARCA", "ASCX", "BATS", "NYSE", "NASDAQ", "NYSEARCA", "FTXU", "CBSE", "GNSS", "ERSX", "OTC", "CRYPTO", "")
)


class AssetTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be done with an asset."""

    name: str = ""
    exchange: str = ""
    status: str = "active"
    tradable: bool = True
    marginable: bool = True
    shortable: bool = True
    easy_to_borrow: bool = True
    fractionable: bool = True
    attributes: tuple[str, ...] = ()


STOCK = AssetTraits(exchange="NASDAQ")
COIN = AssetTraits(exchange="CRYPTO", marginable=False, shortable=False, easy_to_borrow=False)
CONTRACT = AssetTraits(marginable=False, shortable=False, easy_to_borrow=False, fractionable=False)


class AssetBook:
    """The traits of all assets; those that are not listed have the defaults of their class."""

    def __init__(self, listed: Mapping[str, AssetTraits] | None = None) -> None:
        self._listed = dict(listed or {})

    def traits(self, symbol: str) -> AssetTraits:
        """Return what may be done with an asset."""
        found = self._listed.get(symbol)
        if found is not None:
            return found
        return COIN if is_crypto(symbol) else CONTRACT if is_option(symbol) else STOCK

    def is_overnight(self, symbol: str) -> bool:
        """Tell whether a stock trades from 20:00 to 04:00."""
        found = self._listed.get(symbol)
        return found is not None and OVERNIGHT in found.attributes

    @property
    def fingerprint(self) -> str:
        """A text that is other for another list, empty for none."""
        if not self._listed:
            return ""
        return hashlib.sha256(msgspec.json.encode(sorted(self._listed.items()))).hexdigest()


def parse_assets(body: object) -> AssetBook:
    """Read a list of assets.

    Raises:
        CodecError: with a sentence about the row that cannot be used.
    """
    if not isinstance(body, list):
        raise CodecError("assets are a JSON list of objects, as GET /v2/assets answers it")
    listed: dict[str, AssetTraits] = {}
    for number, row in enumerate(body, start=1):
        if not isinstance(row, dict) or not isinstance(symbol := row.get("symbol"), str) or not is_symbol(symbol):
            raise CodecError(f'row {number} has no usable symbol: expected {{"symbol": "AAPL", ...}}')
        if symbol in listed:
            raise CodecError(f"row {number}: {symbol} stands in the list twice")
        listed[symbol] = _parse_traits(number, symbol, row)
    return AssetBook(listed)


def _parse_traits(number: int, symbol: str, row: Mapping[str, Any]) -> AssetTraits:
    default = AssetBook().traits(symbol)
    values = {name: row[name] for name in _fields() if row.get(name) is not None}
    try:
        asked = msgspec.convert(values, AssetTraits, strict=True)
    except msgspec.ValidationError as error:
        raise CodecError(f"row {number}, {symbol}: {error}") from None
    if asked.status not in ("active", "inactive"):
        raise CodecError(f"row {number}, {symbol}: status is {asked.status[:20]!r}, expected active or inactive")
    if asked.exchange not in _EXCHANGES:
        known = ", ".join(sorted(filter(None, _EXCHANGES)))
        raise CodecError(f"row {number}, {symbol}: exchange is {asked.exchange[:20]!r}, expected one of {known}")
    return msgspec.structs.replace(default, **{name: getattr(asked, name) for name in values})


def _fields() -> Iterable[str]:
    return (field.name for field in msgspec.structs.fields(AssetTraits))
