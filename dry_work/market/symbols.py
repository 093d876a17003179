"""Symbols in canonical form, their spellings elsewhere, and `symbols.txt`. Pure but for `read_symbols`.

The canonical form is upper case, as Alpaca writes it in orders and data: AAPL, BRK.B, BTC/USD, and for options
the OCC symbol AAPL240315C00172500.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dry_work.errors import ConfigError

_STOCK = re.compile(r"[A-Z][A-Z0-9]{0,9}(\.[A-Z]{1,3})?")
_CRYPTO = re.compile(r"[A-Z0-9]{1,10}/[A-Z]{3,6}")
_OPTION = re.compile(r"[A-Z]{1,6}\d{6}[CP]\d{8}")

ALLOWED = "a stock such as AAPL or BRK.B, a crypto pair such as BTC/USD, or an OCC option symbol"


def parse_symbol(text: str) -> str:
    """Return `text` as a canonical symbol.

    Raises:
        ConfigError: when it is no symbol.
    """
    symbol = text.strip().upper()
    if not (_STOCK.fullmatch(symbol) or _CRYPTO.fullmatch(symbol) or _OPTION.fullmatch(symbol)):
        raise ConfigError(f"{text!r} is not a symbol: expected {ALLOWED}")
    return symbol


def is_symbol(text: str) -> bool:
    """Tell whether `text` is a symbol in canonical form."""
    return bool(_STOCK.fullmatch(text) or _CRYPTO.fullmatch(text) or _OPTION.fullmatch(text))


def is_crypto(symbol: str) -> bool:
    """Tell whether a canonical symbol names a crypto pair."""
    return "/" in symbol


def is_option(symbol: str) -> bool:
    """Tell whether a canonical symbol is an OCC option symbol."""
    return _OPTION.fullmatch(symbol) is not None


def encode_attribute(symbol: str) -> str:
    """Return the symbol as Pub/Sub attributes and subscription ids spell it: BTC-USD."""
    return symbol.replace("/", "-")


def parse_attribute(text: str) -> str:
    """Return the canonical symbol of a Pub/Sub attribute (BTC-USD is BTC/USD)."""
    return text.strip().upper().replace("-", "/")


class SymbolSpelling:
    """Finds the canonical symbol of a spelling without a slash, as Alpaca lists crypto positions (BTCUSD)."""

    def __init__(self, symbols: Iterable[str]) -> None:
        self._by_flat = {symbol.replace("/", ""): symbol for symbol in symbols}

    def canonical(self, text: str) -> str:
        """Return the known symbol that `text` spells, otherwise `text` in upper case."""
        symbol = text.strip().upper()
        return self._by_flat.get(symbol.replace("/", ""), symbol)


def parse_symbols(text: str, *, source: str = "symbols") -> list[str]:
    """Return the symbols of a `symbols.txt` text in their order, each once.

    One symbol a line; blank lines and lines that start with # are left out.

    Raises:
        ConfigError: for a malformed symbol (naming its line) or an empty list.
    """
    found: dict[str, None] = {}
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            found[parse_symbol(entry)] = None
        except ConfigError as error:
            raise ConfigError(f"{source}, line {number}: {error}") from None
    if not found:
        raise ConfigError(f"{source}: no symbols in it; write one symbol a line, {ALLOWED}")
    return list(found)


def read_symbols(path: Path) -> list[str]:
    """Return the symbols of the file `path`.

    Raises:
        ConfigError: when the file is missing, unreadable, empty or has a malformed line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such symbols file; make one with one symbol a line, {ALLOWED}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, expected a text file with one symbol a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_symbols(text, source=str(path))


def contract_size(symbol: str) -> int:
    """Return how many times its price a unit of a canonical symbol is worth: 100 for an option, otherwise 1."""
    return 100 if is_option(symbol) else 1
