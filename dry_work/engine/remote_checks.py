"""The parts of a diagnosis that ask the venue over the network: account, clock, calendar, symbols, market data.

Each part is one thread. Each request has a time-out, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import requests

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.deadlines import DeadlineAdapter
from dry_work.alpaca.simulated import ExchangeSession, is_alpaca
from dry_work.clock import SECOND_NS, Clock
from dry_work.engine.account_checks import (
    DATE_RESOLUTION_S,
    compare_sessions,
    describe_account,
    describe_permissions,
    describe_rate_limit,
    describe_skew,
    describe_time,
    parse_date,
    parse_sessions,
)
from dry_work.engine.findings import Finding, Subject, failed, ok, warning
from dry_work.errors import BrokerError, ConfigError
from dry_work.market.calendar import shared_calendar
from dry_work.market.symbols import is_crypto, is_option
from dry_work.settings import DEFAULT_STOCK_FEED, Credentials, check_live, read_credentials, read_stock_feed
from dry_work.wire.alpaca_rest import lacks_subscription, parse_error
from dry_work.wire.pubsub import parse_time

DAYS_COMPARED = 30  # of the calendars

# The calendar's library is slow to load, and two threads of a diagnosis need it.
CALENDAR = shared_calendar()

_NEW_YORK = ZoneInfo("America/New_York")


def read_keys(subject: Subject) -> Credentials:
    """Return the credentials.

    Raises:
        ConfigError: when they are missing or do not go with the venue's address.
    """
    keys = read_credentials(subject.environment)
    check_live(keys, subject.alpaca_url, live=subject.live, account_id=subject.account_id)
    return keys


class Web:
    """Requests with credentials and a time-out.

    Args:
        basic: give the credentials by HTTP Basic, as the Broker API wants them.
    """

    def __init__(self, keys: Credentials, base_url: str, *, timeout_s: float, basic: bool = False) -> None:
        self.url = base_url
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = not is_loopback_url(base_url)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, DeadlineAdapter())
        if basic:
            self._session.auth = (keys.key, keys.secret)
        else:
            self._session.headers.update({"APCA-API-KEY-ID": keys.key, "APCA-API-SECRET-KEY": keys.secret})

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get(self, path: str, **query: str) -> requests.Response:
        return self._session.get(
            self.url + path, params=query, timeout=(self._timeout_s, self._timeout_s), allow_redirects=False
        )


# The account


def check_venue(subject: Subject, clock: Clock) -> Iterator[Finding]:
    """Look at the account, what it may trade, the rate limit, the clock, the calendar and the symbols."""
    try:
        url, account_id = subject.alpaca_url, subject.account_id
        keys = read_keys(subject)
    except ConfigError as error:
        yield failed("account", str(error), "set ALPACA_API_KEY and ALPACA_SECRET_KEY; `--local` runs need none")
        return
    version = "/v1" if account_id else "/v2"
    with Web(keys, url, timeout_s=subject.timeout_s, basic=bool(account_id)) as web:
        try:
            answer = web.get(f"/v1/trading/accounts/{account_id}/account" if account_id else "/v2/account")
        except requests.RequestException as error:
            yield _not_reached("account", url, error, "ALPACA_URL; is the exchange running?")
            return
        yield describe_account(answer, url, account_id=account_id)
        if answer.status_code in (200, 429):
            yield describe_rate_limit(answer.headers)
        if answer.status_code != 200:
            return
        yield describe_permissions(_read_object(answer), _list_symbols(subject))
        session = None if is_alpaca(url) else _ask_session(web)
        if session is not None:
            yield describe_exchange(session)
        yield check_clock(web, clock, version=version, is_simulated=session is not None)
        yield check_calendar(web, version=version)
    yield check_symbols(subject, keys, url)


def describe_exchange(session: ExchangeSession) -> Finding:
    """Return what a simulated exchange says of itself."""
    pace = "in lock-step" if session.lockstep else f"at speed {session.speed}"
    text = f"simulated, rules {session.rules}, {pace}, {session.state}: slice {session.slice} of {session.slices}"
    if session.state == "ended":
        return warning("exchange", text, "start it again: its recording is over, and a run would wait for bars")
    return ok("exchange", text)


def check_clock(web: Web, clock: Clock, *, version: str = "/v2", is_simulated: bool = False) -> Finding:
    """Compare this machine's clock with the venue's.

    A simulated exchange has the time of its recording: there the `Date` header is compared, which has whole seconds.
    """
    bound_s = 0.0
    try:
        before_ns = clock.time_ns()
        answer = web.get(f"{version}/clock")
        after_ns = clock.time_ns()
        venue_ns: int | None
        if is_simulated:
            venue_ns = parse_date(answer.headers.get("Date"))
            bound_s = DATE_RESOLUTION_S / 2
        else:
            venue_ns = parse_time(str(answer.json()["timestamp"]))
        if venue_ns is None:
            raise ValueError
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        return warning("clock", f"{web.url} does not tell its time ({type(error).__name__})", "is ALPACA_URL right?")
    skew_s = (venue_ns - (before_ns + after_ns) // 2) / SECOND_NS + bound_s
    return describe_skew(skew_s, bound_s + (after_ns - before_ns) / SECOND_NS / 2)


def check_calendar(web: Web, *, version: str = "/v2") -> Finding:
    """Compare the sessions ahead with those that the venue has."""
    try:
        answer = web.get(f"{version}/clock")
        today = datetime.fromtimestamp(parse_time(str(answer.json()["timestamp"])) // SECOND_NS, _NEW_YORK).date()
        end = today + timedelta(days=DAYS_COMPARED)
        rows = web.get(f"{version}/calendar", start=today.isoformat(), end=end.isoformat()).json()
        return compare_sessions(CALENDAR.sessions(today, end), parse_sessions(rows))
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        return warning("calendar", f"{web.url} does not tell its sessions ({error!r:.100})", "is ALPACA_URL right?")
    except ConfigError as error:
        return warning("calendar", str(error), "pip install --upgrade exchange-calendars")


def check_symbols(subject: Subject, keys: Credentials, url: str) -> Finding:
    """Tell whether the venue trades the symbols."""
    from dry_work.alpaca import assets
    from dry_work.alpaca.venues import open_venue

    try:
        symbols = subject.wanted_symbols()
    except ConfigError:
        return warning("symbols", "not looked up, since the symbols file cannot be read", "see the symbols file")
    venue = open_venue(
        keys.key,
        keys.secret,
        url=url,
        account_id=subject.account_id,
        paper=not subject.live,
        timeout_s=subject.timeout_s,
    )
    api = venue.open_api()
    try:
        assets.check_symbols(symbols, api)
    except ConfigError as error:
        return failed("symbols", str(error), "correct or take out what the venue does not trade")
    except BrokerError as error:
        return failed("symbols", f"{url}: {error}", "try again later; is ALPACA_URL right?")
    finally:
        api.close()
    return ok("symbols", "known to the venue and traded")


def _ask_session(web: Web) -> ExchangeSession | None:
    try:
        answer = web.get("/dry-work/v1/session")
        return msgspec.convert(answer.json(), type=ExchangeSession) if answer.status_code == 200 else None
    except (requests.RequestException, ValueError):
        return None


def _read_object(answer: requests.Response) -> Mapping[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _list_symbols(subject: Subject) -> list[str]:
    try:
        return subject.wanted_symbols()
    except ConfigError:
        return []


def _not_reached(part: str, url: str, error: requests.RequestException, where: str) -> Finding:
    return failed(part, f"{url} does not answer ({type(error).__name__})", f"look at the network, and at {where}")


# Market data


def check_market_data(subject: Subject) -> Iterator[Finding]:
    """Ask for a bar of each kind of symbol, from the feed that would be used."""
    try:
        url, keys = subject.data_url, read_keys(subject)
    except ConfigError:
        return  # told with the account
    symbols = _list_symbols(subject) or ["SPY"]
    try:
        feed = read_stock_feed(subject.environment)
    except ConfigError as error:
        yield failed("stock bars", str(error), "set ALPACA_FEED alone, to iex, sip or delayed_sip")
        return
    feed = DEFAULT_STOCK_FEED if feed == "test" else feed  # there are no bars of made-up symbols to be asked for
    option_feed = subject.variable("ALPACA_OPTION_FEED").lower() or ("opra" if subject.live else "indicative")
    with Web(keys, url, timeout_s=subject.timeout_s, basic=bool(subject.account_id)) as web:
        for name, path, query in build_data_requests(symbols, url=url, feed=feed, option_feed=option_feed):
            try:
                answer = web.get(path, **query)
                found = describe_entitlement(answer, name, query["symbols"])
                if _is_not_subscribed(answer) and feed != "iex" and query.get("feed") == feed:
                    found = _try_iex(web, path, query, found)
                yield found
            except requests.RequestException as error:
                yield _not_reached("market data", url, error, "ALPACA_DATA_URL")
                return


def build_data_requests(
    symbols: Sequence[str], *, url: str, feed: str, option_feed: str = "indicative"
) -> list[tuple[str, str, dict[str, str]]]:
    """Return (name of the data, path, query) of the requests that show whether there is market data for `symbols`.

    At Alpaca the newest bars are asked for, since old ones of every feed can be read without a subscription.
    """
    wanted: list[tuple[str, str, dict[str, str]]] = []
    latest = is_alpaca(url)
    history = {} if latest else {"timeframe": "1Min", "limit": "1"}
    stocks = [symbol for symbol in symbols if not is_crypto(symbol) and not is_option(symbol)]
    crypto = [symbol for symbol in symbols if is_crypto(symbol)]
    if stocks:
        path = "/v2/stocks/bars/latest" if latest else "/v2/stocks/bars"
        wanted.append((f"stock bars ({feed})", path, {"symbols": stocks[0], "feed": feed, **history}))
    contracts = [symbol for symbol in symbols if is_option(symbol)]
    if contracts:
        # Of options there are no newest bars; what may be read shows with the newest trades.
        path = "/v1beta1/options/trades/latest" if latest else "/v1beta1/options/bars"
        asked = {"feed": option_feed} if latest else history
        wanted.append((f"options ({option_feed})", path, {"symbols": contracts[0], **asked}))
    if crypto:
        path = "/v1beta3/crypto/us/latest/bars" if latest else "/v1beta3/crypto/us/bars"
        wanted.append(("crypto bars", path, {"symbols": crypto[0], **history}))
    return wanted


def describe_entitlement(answer: requests.Response, name: str, symbol: str = "") -> Finding:
    """Return whether the market data called `name` may be read."""
    if answer.status_code == 200:
        newest_ns = _find_newest(_read_object(answer), symbol)
        return ok(name, "can be read" + (f"; a bar of {symbol}: {describe_time(newest_ns)}" if newest_ns else ""))
    reason = parse_error(answer.text)[1] or "no reason given"
    text = f"HTTP {answer.status_code}, {reason[:200]}"
    if answer.status_code in (401, 403) and not _is_not_subscribed(answer):
        return failed(name, f"the credentials are refused ({text})", "see what is said of the account")
    if answer.status_code == 403 and name.startswith("options"):
        remedy = "set ALPACA_OPTION_FEED=indicative, which needs no subscription, or subscribe at Alpaca"
        return failed(name, text, remedy)
    if answer.status_code == 403:
        return failed(name, text, "set ALPACA_FEED=iex, which needs no subscription, or subscribe at Alpaca")
    if answer.status_code in (400, 422):
        if name.startswith("options"):
            return failed(name, text, "set ALPACA_OPTION_FEED to indicative or opra")
        return failed(name, text, "set ALPACA_FEED to iex, sip or delayed_sip")
    if answer.status_code == 429:
        return warning(name, f"no request is left in this minute ({text})", "wait a minute, then look again")
    return warning(name, text, "try again later; is ALPACA_DATA_URL right?")


def _is_not_subscribed(answer: requests.Response) -> bool:
    return lacks_subscription(answer.status_code, parse_error(answer.text)[1])


def _try_iex(web: Web, path: str, query: Mapping[str, str], found: Finding) -> Finding:
    """Add to the refusal of a feed whether the one without a subscription can be read."""
    answer = web.get(path, **{**query, "feed": "iex"})
    told = "iex can be read" if answer.status_code == 200 else f"iex neither (HTTP {answer.status_code})"
    return msgspec.structs.replace(found, text=f"{found.text}; {told}")


def _find_newest(body: Mapping[str, Any], symbol: str) -> int | None:
    bars = body.get("bars")
    found = bars.get(symbol) if isinstance(bars, dict) else None
    row = found[-1] if isinstance(found, list) and found else found
    if not isinstance(row, dict):
        return None
    try:
        return parse_time(str(row.get("t")))
    except ValueError:
        return None
