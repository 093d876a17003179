"""What the venue's answers say to somebody who wants to trade: account, permissions, rate limit, clock. Pure.

Each function makes a finding of what was answered. No text holds more of an id than its last four characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import requests

from dry_work.clock import SECOND_NS
from dry_work.engine.findings import Finding, failed, ok, warning
from dry_work.errors import CodecError
from dry_work.market.calendar import Session
from dry_work.market.symbols import is_crypto, is_option
from dry_work.settings import BROKER_LIVE_URL, BROKER_SANDBOX_URL, LIVE_URL, PAPER_URL
from dry_work.wire.alpaca_rest import parse_account, parse_error

SKEW_WARNING_S = 2.0
SKEW_FAILED_S = 30.0
RATE_WARNING = 0.1  # of the requests a minute, left
DATE_RESOLUTION_S = 1.0  # of the `Date` header

_NEW_YORK = ZoneInfo("America/New_York")
_BLOCKS = (
    ("account_blocked", "the account is blocked", "ask Alpaca's support why it is blocked"),
    ("trading_blocked", "trading is blocked", "ask Alpaca's support why it is blocked"),
    (
        "trade_suspended_by_user",
        "trading is suspended by the account's own settings",
        "switch `suspend_trade` off in the account's configuration at Alpaca",
    ),
)


def describe_account(answer: requests.Response, url: str, *, account_id: str = "") -> Finding:
    """Return what the venue says of the account, that of the Broker API with `account_id`."""
    if account_id and answer.status_code in (401, 403, 404, 422):
        return failed(
            "account",
            f"{url} has no account {mask_id(account_id)} for these credentials (HTTP {answer.status_code})",
            "give keys of the Broker API and one of its accounts, "
            "or unset ALPACA_ACCOUNT_ID to trade with the key's own account",
        )
    if answer.status_code in (401, 403):
        return failed(
            "account",
            f"{url} refused the credentials (HTTP {answer.status_code})",
            "make new keys in Alpaca's dashboard, paper keys for the paper address and live keys for the live one",
        )
    if answer.status_code == 429:
        return failed("account", f"{url}: no request is left in this minute (HTTP 429)", _RATE_REMEDY)
    if answer.status_code != 200:
        what = parse_error(answer.text)[1] or "no reason given"
        return failed(
            "account", f"{url}: HTTP {answer.status_code}, {what[:200]}", "try again later; is ALPACA_URL right?"
        )
    try:
        fields = answer.json()
        account = parse_account(fields)
    except (CodecError, ValueError) as error:
        return failed("account", f"{url}: the answer is no account ({error})", "is ALPACA_URL right?")
    kinds = {PAPER_URL: "paper", BROKER_SANDBOX_URL: "Broker API, sandbox"}
    kinds |= dict.fromkeys((LIVE_URL, BROKER_LIVE_URL), "LIVE, real money")
    kind = kinds.get(url, f"at {urlsplit(url).netloc}")
    text = f"{mask_id(account.account_number or account.id)}, {kind}, {account.status.lower()}"
    for name, what, remedy in _BLOCKS:
        if fields.get(name) is True:
            return failed("account", f"{text}, {what}", remedy)
    if account.status.upper() != "ACTIVE":
        return warning("account", text, "orders may be refused until Alpaca has made the account active")
    text = f"{text}, equity {account.equity:,.2f}"
    if account.equity <= 0:
        return warning("account", text, "put money on the account, or reset it in Alpaca's dashboard if it is on paper")
    return ok("account", text)


def mask_id(text: str) -> str:
    """Return the last four characters of an id, the others hidden."""
    return f"…{text[-4:]}" if len(text) > 4 else "…"


def describe_permissions(account: Mapping[str, Any], symbols: Sequence[str]) -> Finding:
    """Return what the account may trade, and whether that is enough for `symbols`."""
    level = account.get("options_trading_level")
    coins = str(account.get("crypto_status") or "").upper()
    told = ["shares", "short selling" if account.get("shorting_enabled") is True else "no short selling"]
    told.append(f"options up to level {level}" if level else "no options")
    told.append("crypto" if coins == "ACTIVE" else f"no crypto ({coins.lower() or 'not told'})")
    text = ", ".join(told)
    if coins and coins != "ACTIVE" and (pairs := [symbol for symbol in symbols if is_crypto(symbol)]):
        remedy = "sign the crypto agreement in Alpaca's dashboard, or take the pairs out of the symbols file"
        return failed("permissions", f"{text}; {pairs[0]} is a crypto pair", remedy)
    if not level and (options := [symbol for symbol in symbols if is_option(symbol)]):
        remedy = "ask for options trading in Alpaca's dashboard, or take the options out of the symbols file"
        return failed("permissions", f"{text}; {options[0]} is an option", remedy)
    return ok("permissions", text)


def describe_rate_limit(headers: Mapping[str, str]) -> Finding:
    """Return how many requests of this minute are left."""
    try:
        limit, left = int(headers["X-RateLimit-Limit"]), int(headers["X-RateLimit-Remaining"])
    except (KeyError, ValueError):
        return ok("rate limit", "the venue does not tell of one")
    text = f"{left} of {limit} requests a minute are left"
    return warning("rate limit", text, _RATE_REMEDY) if left < limit * RATE_WARNING else ok("rate limit", text)


_RATE_REMEDY = "wait a minute, and run fewer programs on this key"


# Time


def parse_date(header: str | None) -> int | None:
    """Return the time of a `Date` header in nanoseconds, None when there is none. It is cut to a whole second."""
    try:
        return round(parsedate_to_datetime(header or "").timestamp()) * SECOND_NS
    except (ValueError, TypeError, IndexError):
        return None


def describe_skew(skew_s: float, bound_s: float) -> Finding:
    """Return what a difference of the clocks means, which is known to within `bound_s`.

    Only what is beyond that bound counts: the network's time may be all of it.
    """
    text = f"the venue's clock is {abs(skew_s):.2f} s {'ahead' if skew_s > 0 else 'behind'} (± {bound_s:.2f} s)"
    sure_s = max(abs(skew_s) - bound_s, 0.0)
    remedy = "set this machine's clock, for example with `timedatectl set-ntp true`"
    if sure_s > SKEW_FAILED_S:
        return failed("clock", text, remedy)
    return warning("clock", text, remedy) if sure_s > SKEW_WARNING_S else ok("clock", text)


def parse_sessions(rows: object) -> dict[str, tuple[str, str]]:
    """Return (open, close) in New York by date, as the venue's calendar lists them.

    Raises:
        ValueError: it is no such list.
    """
    if not isinstance(rows, list):
        raise ValueError("no list")
    try:
        return {str(row["date"]): (str(row["open"])[:5], str(row["close"])[:5]) for row in rows}
    except (KeyError, TypeError) as error:
        raise ValueError(f"no session: {error!r}") from None


def compare_sessions(ours: Sequence[Session], venue: Mapping[str, tuple[str, str]]) -> Finding:
    """Tell whether the venue has the same sessions as our calendar; both are of the same days."""
    known = {
        session.date.isoformat(): (_in_new_york(session.open_ns), _in_new_york(session.close_ns)) for session in ours
    }
    differing = sorted(day for day in known.keys() | venue.keys() if known.get(day) != venue.get(day))
    if not differing:
        return ok("calendar", f"the venue has the same {len(known)} sessions ahead as ours")
    day = differing[0]
    text = f"{len(differing)} sessions ahead differ: {day} is {_hours(known.get(day))} here, "
    text += f"{_hours(venue.get(day))} at the venue"
    return warning("calendar", text, "pip install --upgrade exchange-calendars")


def describe_hours(session: Session | None, next_open_ns: int) -> str:
    """Return whether shares are traded now, and until or from when."""
    if session is not None:
        return f"the stock market is open until {_in_new_york(session.close_ns)} in New York"
    at = datetime.fromtimestamp(next_open_ns // SECOND_NS, _NEW_YORK)
    return f"the stock market is closed; it opens on {at:%Y-%m-%d} at {at:%H:%M} in New York"


def describe_time(ns: int) -> str:
    """Return a time to the minute, UTC."""
    return f"{datetime.fromtimestamp(ns // SECOND_NS, UTC):%Y-%m-%d %H:%M} UTC"


def _in_new_york(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // SECOND_NS, _NEW_YORK):%H:%M}"


def _hours(hours: tuple[str, str] | None) -> str:
    return "no session" if hours is None else f"{hours[0]}–{hours[1]}"
