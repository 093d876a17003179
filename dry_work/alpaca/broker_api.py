"""Alpaca's Broker API: a sub-account of a broker's key, as a `VenueApi`. One thread at a time.

The answers are those of the Trading API, at `/v1/trading/accounts/{account}/...`, with HTTP Basic. There is no
WebSocket: trade events come as server-sent events, see `broker_events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from alpaca.common.rest import RESTClient

from dry_work.alpaca.limits import Priority, RateLimiter
from dry_work.alpaca.venue_api import PATIENCE_S, VenueApi
from dry_work.errors import ConfigError, OrderRejectedError, VenueAuthError
from dry_work.orders.model import AccountSnapshot
from dry_work.settings import BROKER_LIVE_URL, BROKER_SANDBOX_URL

UNSET_HINT = "check key and ALPACA_ACCOUNT_ID, or unset ALPACA_ACCOUNT_ID to trade with a key's own account"

_ACTIVITIES = "/account/activities"
_ON_BEHALF = ("/account", "/orders", "/positions", "/watchlists")  # the rest is the same for all accounts


def choose_broker_url(url: str | None, *, sandbox: bool) -> str:
    """Return the base URL to use, without a slash at its end.

    Raises:
        ConfigError: when the live API is named while trading in the sandbox.
    """
    base = (url or (BROKER_SANDBOX_URL if sandbox else BROKER_LIVE_URL)).rstrip("/")
    if sandbox and urlsplit(base).hostname == urlsplit(BROKER_LIVE_URL).hostname:
        raise ConfigError(f"{base} trades with real money; set sandbox=False (--live) if that is meant")
    return base


class BrokerTradingApi(VenueApi):
    """Client of one sub-account.

    Args:
        api_key, secret_key: credentials of the broker; never part of an error or of `repr`.
        account_id: of the sub-account.
        url: base URL, as `choose_broker_url` returns it.
        timeout_s, priority, patience_s, limiter: see `VenueApi`.
    """

    def __init__(
        self,
        api_key: str,
        secret_key: str,
        *,
        account_id: str,
        url: str,
        timeout_s: float = 10.0,
        priority: Priority | None = None,
        patience_s: float = PATIENCE_S,
        limiter: RateLimiter | None = None,
    ) -> None:
        super().__init__(
            RESTClient(url, api_key, secret_key, use_basic_auth=True, api_version="v1", raw_data=True),
            url=url,
            key=api_key,
            timeout_s=timeout_s,
            priority=priority,
            patience_s=patience_s,
            limiter=limiter,
        )
        self.account_id = account_id

    def account(self) -> AccountSnapshot:
        """Return the trading account of the sub-account.

        Raises:
            VenueAuthError: the credentials were refused, or the broker has no such account.
            BrokerError: as `call` raises it.
        """
        try:
            return super().account()
        except OrderRejectedError as error:
            if error.http_status not in (404, 422):
                raise
            raise VenueAuthError(
                f"{self.url} has no account …{self.account_id[-4:]} for this key: {error.message}; {UNSET_HINT}",
                code=error.code,
                http_status=error.http_status,
                request_id=error.request_id,
            ) from error

    def _route(self, path: str, data: Mapping[str, object] | None) -> tuple[str, Mapping[str, object] | None, str]:
        if path.startswith(_ACTIVITIES):  # those of all accounts are in one place
            path = path.replace("/account", "/accounts", 1)
            return path, {**(data or {}), "account_id": self.account_id}, "v1"
        if path.startswith(_ON_BEHALF):
            path = f"/trading/accounts/{self.account_id}{path}"
        return path, data, "v1"

    def _refuse_credentials(self, error: VenueAuthError) -> VenueAuthError:
        return VenueAuthError(
            f"{error.message}; {UNSET_HINT}",
            code=error.code,
            http_status=error.http_status,
            request_id=error.request_id,
        )
