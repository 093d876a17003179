"""Option contracts: what their symbols say, and the synthetic chains of the stocks that an exchange trades. Pure.

A chain is made up from the recording alone, so that it is the same in every run: strikes at even steps from about 70 %
to 130 % of the stock's first price; expirations on the first day, on the last session of each week until five weeks
after the recording's end, and on those of the weeks with a third Friday until three months after it. Options are
American, of 100 shares, and end with the session of their day.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from dry_work.clock import SECOND_NS
from dry_work.feeds.recorded import Recording
from dry_work.market.calendar import SessionCalendar
from dry_work.market.symbols import is_crypto, is_option
from dry_work.wire.alpaca_fields import asset_id

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_NEW_YORK = ZoneInfo("America/New_York")
_STEPS = ((25.0, "0.5"), (50.0, "1"), (100.0, "2.5"), (250.0, "5"), (500.0, "10"), (1000.0, "25"))
_WIDEST_STEP = "50"
_REACH = Decimal("0.3")  # of the first price, to both sides
_LONGEST_ROOT = 6
_WEEKLY = timedelta(days=35)
_MONTHLY = timedelta(days=95)
_STRIKE_DIGITS = 8
_DATE_DIGITS = 6


class OptionContract(msgspec.Struct, frozen=True):
    """One series of a chain. `underlying` is the stock's symbol, `root` the one in the contract's."""

    symbol: str
    underlying: str
    root: str
    expires: date
    is_call: bool
    strike: Decimal

    @property
    def kind(self) -> str:
        return "call" if self.is_call else "put"

    @property
    def name(self) -> str:
        return f"{self.underlying} {self.expires:%b %d %Y} {self.strike:f} {self.kind.capitalize()}"

    def intrinsic(self, price: Decimal) -> Decimal:
        """Return what exercise is worth a share when the stock is at `price`, at least 0."""
        gain = price - self.strike if self.is_call else self.strike - price
        return max(gain, Decimal(0))


@lru_cache(maxsize=4096)
def parse_contract(symbol: str) -> OptionContract:
    """Return what an OCC symbol says; the underlying is taken to have the root's name.

    Raises:
        ValueError: the date in it is none.
    """
    strike = Decimal(int(symbol[-_STRIKE_DIGITS:])) / 1000
    rest, kind = symbol[: -_STRIKE_DIGITS - 1], symbol[-_STRIKE_DIGITS - 1]
    root, day = rest[:-_DATE_DIGITS], rest[-_DATE_DIGITS:]
    expires = date(2000 + int(day[:2]), int(day[2:4]), int(day[4:]))
    return OptionContract(symbol, root, root, expires, kind == "C", strike)


def root_of(symbol: str) -> str:
    """Return the root that a stock's contracts have: BRKB for BRK.B."""
    return symbol.replace(".", "")


def build_symbol(root: str, expires: date, strike: Decimal, *, is_call: bool) -> str:
    """Return a contract's OCC symbol without padding."""
    return f"{root}{expires:%y%m%d}{'C' if is_call else 'P'}{int(strike * 1000):0{_STRIKE_DIGITS}d}"


def list_strikes(price: float) -> tuple[Decimal, ...]:
    """Return the strikes of a stock whose first price is `price`, rising."""
    step = Decimal(next((text for below, text in _STEPS if price < below), _WIDEST_STEP))
    middle = Decimal(repr(round(price, 4)))
    low, high = middle * (1 - _REACH), middle * (1 + _REACH)
    first = max(int(low / step), 1)
    return tuple(step * number for number in range(first, int(high / step) + 2))


class OptionChains:
    """The contracts that trade: those of the synthetic chains, and those that are recorded themselves.

    Args:
        recording: the exchange's.
        calendar: sessions of the stocks.
        is_synthetic: False has the recorded ones alone.
    """

    def __init__(self, recording: Recording, calendar: SessionCalendar, *, is_synthetic: bool = True) -> None:
        self._recording = recording
        self._calendar = calendar
        self._stocks: dict[str, str] = {}
        if is_synthetic:
            stocks = [symbol for symbol in recording.symbols if not is_crypto(symbol) and not is_option(symbol)]
            # Roots have letters alone; of two stocks that would share one the first has it.
            self._stocks = {
                root: symbol
                for symbol in reversed(stocks)
                if (root := root_of(symbol)).isalpha() and len(root) <= _LONGEST_ROOT
            }
        self._recorded = {
            symbol: self._name_underlying(parse_contract(symbol)) for symbol in recording.symbols if is_option(symbol)
        }
        self._expirations: tuple[date, ...] | None = None
        self._strikes: dict[str, tuple[Decimal, ...]] = {}
        self._lists: dict[str, list[OptionContract]] = {}
        self._by_id: dict[str, str] | None = None

    @property
    def underlyings(self) -> tuple[str, ...]:
        """The stocks with a synthetic chain, by name."""
        return tuple(sorted(self._stocks.values()))

    def has_options(self, symbol: str) -> bool:
        """Tell whether a stock has a chain."""
        return self._stocks.get(root_of(symbol)) == symbol

    def is_synthetic(self, symbol: str) -> bool:
        """Tell whether a contract's prices are made of its underlying's."""
        return symbol not in self._recorded

    @property
    def expirations(self) -> tuple[date, ...]:
        """The days on which the contracts of a synthetic chain end, rising."""
        if self._expirations is None:
            self._expirations = self._find_expirations()
        return self._expirations

    def strikes(self, underlying: str) -> tuple[Decimal, ...]:
        """Return the strikes of a stock's chain, rising."""
        found = self._strikes.get(underlying)
        if found is None:
            found = self._strikes[underlying] = list_strikes(float(self._recording.columns(underlying)["open"][0]))
        return found

    def contract(self, symbol: str) -> OptionContract | None:
        """Return the contract of a symbol, None when there is none."""
        recorded = self._recorded.get(symbol)
        if recorded is not None or not is_option(symbol):
            return recorded
        try:
            contract = self._name_underlying(parse_contract(symbol))
        except ValueError:
            return None
        if contract.root not in self._stocks or contract.expires not in self.expirations:
            return None
        return contract if contract.strike in self.strikes(contract.underlying) else None

    def contracts(self, underlyings: Iterable[str] | None = None) -> Sequence[OptionContract]:
        """Return the contracts of some stocks, else of all, in the order of their symbols."""
        wanted = None if underlyings is None else set(underlyings)
        found = [contract for contract in self._recorded.values() if wanted is None or contract.underlying in wanted]
        for underlying in self.underlyings:
            if wanted is None or underlying in wanted:
                found += self._list_chain(underlying)
        return sorted({contract.symbol: contract for contract in found}.values(), key=lambda found: found.symbol)

    def find_by_id(self, text: str) -> str | None:
        """Return the symbol of the contract whose asset has an id, None when none has it."""
        if not _ID.fullmatch(text):
            return None
        if self._by_id is None:
            self._by_id = {asset_id(contract.symbol): contract.symbol for contract in self.contracts()}
        return self._by_id.get(text.lower())

    def close_ns(self, contract: OptionContract) -> int:
        """Return when a contract ends: at the close of its day, or of the next session when its day has none."""
        return expiry_ns(self._calendar, contract.expires)

    def _name_underlying(self, contract: OptionContract) -> OptionContract:
        stock = self._stocks.get(contract.root)
        return contract if stock is None else msgspec.structs.replace(contract, underlying=stock)

    def _list_chain(self, underlying: str) -> list[OptionContract]:
        known = self._lists.get(underlying)
        if known is None:
            known = self._lists[underlying] = self._build_chain(underlying)
        return known

    def _build_chain(self, underlying: str) -> list[OptionContract]:
        root = root_of(underlying)
        return [
            OptionContract(
                build_symbol(root, expires, strike, is_call=is_call), underlying, root, expires, is_call, strike
            )
            for expires in self.expirations
            for is_call in (True, False)
            for strike in self.strikes(underlying)
        ]

    def _find_expirations(self) -> tuple[date, ...]:
        ends = self._recording.slice_ends()
        first, last = (
            datetime.fromtimestamp(int(ns) // SECOND_NS, UTC).astimezone(_NEW_YORK).date() for ns in (ends[0], ends[-1])
        )
        sessions = self._calendar.sessions(first, min(last + _MONTHLY, self._calendar.last))
        weeks: dict[tuple[int, int], date] = {}
        for session in sessions:
            year, week, _ = session.date.isocalendar()
            weeks[year, week] = session.date
        found = {sessions[0].date} if sessions else set()
        for (year, week), day in weeks.items():
            friday = date.fromisocalendar(year, week, 5)
            is_monthly = 15 <= friday.day <= 21
            if day <= last + _WEEKLY or is_monthly:
                found.add(day)
        return tuple(sorted(found))


def expiry_ns(calendar: SessionCalendar, day: date) -> int:
    """Return the close of a day's session, or of the next one when it has none."""
    noon = datetime(day.year, day.month, day.day, 0, tzinfo=_NEW_YORK)
    return calendar.session_close_ns(int(noon.timestamp()) * SECOND_NS)
