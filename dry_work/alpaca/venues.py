"""The ways to an account at Alpaca: by the Trading API with the key's own account, by the Broker API with another."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec

from dry_work.alpaca.broker_api import BrokerTradingApi, choose_broker_url
from dry_work.alpaca.limits import Priority
from dry_work.alpaca.streams import EventStream, TradeUpdates
from dry_work.alpaca.trading import TradingApi, choose_url
from dry_work.alpaca.venue_api import PATIENCE_S, VenueApi
from dry_work.settings import BROKER_LIVE_URL, BROKER_SANDBOX_URL, LIVE_URL, PAPER_URL

_BROKER_HOSTS = {urlsplit(url).hostname for url in (BROKER_SANDBOX_URL, BROKER_LIVE_URL)}
_TRADING_HOSTS = {urlsplit(url).hostname for url in (PAPER_URL, LIVE_URL)}


class VenueAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How an account is reached. All its clients share the request budget of the key. Its `repr` shows no secret."""

    url: str
    stream_url: str
    api_key: str
    secret_key: str
    account_id: str = ""  # of a sub-account; empty: the key's own
    timeout_s: float = 10.0  # of every request
    oauth_token: str = ""  # in place of key and secret

    def __repr__(self) -> str:
        kind = "Broker API" if self.account_id else "Trading API"
        return f"VenueAccess({self.url!r}, {kind})"

    def open_api(self, *, priority: Priority | None = None, patience_s: float = PATIENCE_S) -> VenueApi:
        """Return a client with connections of its own.

        Args:
            priority: of all its requests; None: by what they ask for.
            patience_s: see `VenueApi`.
        """
        options: dict[str, Any] = {
            "url": self.url, "timeout_s": self.timeout_s, "priority": priority, "patience_s": patience_s,
        }  # fmt: skip
        if self.account_id:
            return BrokerTradingApi(self.api_key, self.secret_key, account_id=self.account_id, **options)
        return TradingApi(self.api_key, self.secret_key, oauth_token=self.oauth_token, **options)

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request of one's own to the Trading API."""
        if self.oauth_token:
            return {"Authorization": f"Bearer {self.oauth_token}"}
        return {"APCA-API-KEY-ID": self.api_key, "APCA-API-SECRET-KEY": self.secret_key}

    @property
    def stream_credentials(self) -> dict[str, str]:
        """What authenticates at the stream of trade updates.

        https://docs.alpaca.markets/docs/using-oauth2-and-trading-api
        """
        if self.oauth_token:
            return {"oauth_token": self.oauth_token}
        return {"key_id": self.api_key, "secret_key": self.secret_key}

    def open_stream(self, **options: Any) -> EventStream:
        """Return the stream of trade events, not started; `options` as `EventStream` takes them."""
        options.update(api_key=self.api_key, secret_key=self.secret_key)
        if self.account_id:
            from dry_work.alpaca.broker_events import BrokerTradeEvents

            return BrokerTradeEvents(self.stream_url, account_id=self.account_id, **options)
        return TradeUpdates(self.stream_url, **options)


def open_venue(
    api_key: str,
    secret_key: str,
    *,
    url: str | None = None,
    stream_url: str | None = None,
    account_id: str | None = None,
    paper: bool = True,
    timeout_s: float = 10.0,
    oauth_token: str = "",
) -> VenueAccess:
    """Return the way to an account; nothing is asked yet.

    Args:
        api_key, secret_key: credentials; of the broker when `account_id` is given.
        url: base URL; None: Alpaca's own.
        stream_url: whole URL of the trade events; None: it follows from `url`.
        account_id: of a sub-account; empty or None: the key's own account.
        paper: trade on paper, or in the sandbox; False trades with real money.
        timeout_s: of every request.
        oauth_token: in place of key and secret; for the key's own account alone.

    Raises:
        ConfigError: when the live API is named without `paper=False`.
    """
    if account_id:
        base = choose_broker_url(url, sandbox=paper)
        stream_url = stream_url or f"{base}/v2/events/trades"
    else:
        base = choose_url(url, paper=paper)
        stream_url = stream_url or f"ws{base.removeprefix('http')}/stream"
    return VenueAccess(
        url=base,
        stream_url=stream_url,
        api_key=api_key,
        secret_key=secret_key,
        account_id=account_id or "",
        timeout_s=timeout_s,
        oauth_token=oauth_token,
    )


def choose_account_id(url: str, recorded: str, named: str) -> str:
    """Return the sub-account that an agent trades with, empty when it trades with the key's own account.

    Args:
        url: base URL that its journal names, which tells the API at Alpaca.
        recorded: id of the account in its journal.
        named: what ALPACA_ACCOUNT_ID says, which tells the API at another address.
    """
    host = urlsplit(url).hostname
    if host in _BROKER_HOSTS:
        return recorded
    if host in _TRADING_HOSTS or named.lower() != recorded.lower():
        return ""
    return recorded
