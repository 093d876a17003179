"""The accounts that a Broker API key trades for, beside the account of its own. Event-loop only.

The books know a sub-account by its name, `KEY:1`, `KEY:2` and so on; no key id has a colon in it. Its ids follow from
its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from dry_work.clock import SECOND_NS
from dry_work.exchange.identifiers import build_account_id
from dry_work.exchange.timeframes import NEW_YORK
from dry_work.market.calendar import SessionCalendar
from dry_work.wire.alpaca_rest import encode_decimal
from dry_work.wire.pubsub import encode_time

SEPARATOR = ":"
_LONGEST_CLOSING = timedelta(days=14)  # no closing of the exchange lasted longer


def is_sub_account(name: str) -> bool:
    """Tell whether an account is a sub-account, not that of a key itself."""
    return SEPARATOR in name


def owner_of(name: str) -> str:
    """Return the key that an account belongs to."""
    return name.partition(SEPARATOR)[0]


def build_name(owner: str, number: int) -> str:
    """Return the name of a key's sub-account `number`, counted from 1."""
    return f"{owner}{SEPARATOR}{number}"


def build_sub_account_ids(owner: str, count: int) -> list[str]:
    """Return the ids of the first `count` sub-accounts of a key."""
    return [build_account_id(build_name(owner, number)) for number in range(1, count + 1)]


class SubAccounts:
    """Knows the sub-accounts of every key.

    Args:
        count: sub-accounts that a key has from its first use of the Broker API on.
        open_account: called once for each name, before its first use, with what was told of its owner.
    """

    def __init__(self, count: int, *, open_account: Callable[[str, dict[str, Any]], None]) -> None:
        self._count = count
        self._open_account = open_account
        self._names: dict[str, list[str]] = {}  # by key
        self._by_id: dict[str, str] = {}

    def names(self, owner: str) -> list[str]:
        """Return the sub-accounts of a key, the oldest first; those that it begins with are opened at first use."""
        while len(self._names.get(owner, ())) < self._count:
            self.open(owner, {})
        return list(self._names.get(owner, ()))

    def open(self, owner: str, details: dict[str, Any]) -> str:
        """Open one more sub-account of a key; return its name."""
        name = build_name(owner, len(self._names.get(owner, ())) + 1)
        self._open_account(name, details)
        self._add(name)
        return name

    def find(self, owner: str, account_id: str) -> str | None:
        """Return the sub-account of a key with this id."""
        name = self._by_id.get(account_id.lower())
        if name is None:
            self.names(owner)  # it may be one that is opened now
            name = self._by_id.get(account_id.lower())
        return name if name is not None and owner_of(name) == owner else None

    def restore(self, names: Iterable[str]) -> None:
        """Take note of accounts that are open already, in the order of their opening."""
        for name in names:
            if is_sub_account(name):
                self._add(name)

    def _add(self, name: str) -> None:
        self._names.setdefault(owner_of(name), []).append(name)
        self._by_id[build_account_id(name)] = name


def describe_broker_fields(cash: str, calendar: SessionCalendar, now_ns: int) -> dict[str, Any]:
    """Return what is told of the trading account of a sub-account with this cash, beside what is told of every one.

    Values of the last close are not kept, and null.
    """
    spendable = encode_decimal(max(Decimal(cash), Decimal(0)))
    return {
        "cash_withdrawable": spendable,
        "cash_transferable": spendable,
        "previous_close": _find_previous_close(calendar, now_ns),
        "last_long_market_value": None,
        "last_short_market_value": None,
        "last_cash": None,
        "last_initial_margin": None,
        "last_regt_buying_power": None,
        "last_buying_power": None,
        "clearing_broker": None,
    }


def _find_previous_close(calendar: SessionCalendar, now_ns: int) -> str | None:
    """Return the close of the last session that is over, None when the calendar has none."""
    today = datetime.fromtimestamp(now_ns // SECOND_NS, NEW_YORK).date()
    last = min(today, calendar.last)
    closes = [session.close_ns for session in calendar.sessions(max(last - _LONGEST_CLOSING, calendar.first), last)]
    over = [close_ns for close_ns in closes if close_ns <= now_ns]
    return encode_time(over[-1]) if over else None
