"""Alpaca's trading API: the account that a key belongs to. One thread at a time.

Of alpaca-py only the client that all of its clients are built on is used: those of single APIs bring pandas along, half
a second and 90 MB that nothing here needs.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from alpaca.common.rest import RESTClient

from dry_work.alpaca.limits import Priority, RateLimiter
from dry_work.alpaca.venue_api import OPEN_ORDERS_LIMIT, PATIENCE_S, VenueApi, map_status, prepare_client
from dry_work.errors import ConfigError
from dry_work.settings import LIVE_URL, PAPER_URL

__all__ = ["OPEN_ORDERS_LIMIT", "TradingApi", "choose_url", "map_status", "prepare_client"]


def choose_url(url: str | None, *, paper: bool) -> str:
    """Return the base URL to use, without a slash at its end.

    Raises:
        ConfigError: when the live API is named while trading on paper.
    """
    base = (url or (PAPER_URL if paper else LIVE_URL)).rstrip("/")
    if paper and urlsplit(base).hostname == urlsplit(LIVE_URL).hostname:
        raise ConfigError(f"{base} trades with real money; set sandbox=False (--live) if that is meant")
    return base


class TradingApi(VenueApi):
    """Client of the key's own account.

    Args:
        api_key, secret_key: credentials; never part of an error or of `repr`.
        oauth_token: in their place.
        url: base URL, as `choose_url` returns it.
        timeout_s, priority, patience_s, limiter: see `VenueApi`.
    """

    def __init__(
        self,
        api_key: str,
        secret_key: str,
        *,
        url: str,
        timeout_s: float = 10.0,
        priority: Priority | None = None,
        patience_s: float = PATIENCE_S,
        limiter: RateLimiter | None = None,
        oauth_token: str = "",
    ) -> None:
        keys = {"oauth_token": oauth_token} if oauth_token else {"api_key": api_key, "secret_key": secret_key}
        super().__init__(
            RESTClient(base_url=url, api_version="v2", raw_data=True, **keys),
            url=url,
            key=oauth_token or api_key,
            timeout_s=timeout_s,
            priority=priority,
            patience_s=patience_s,
            limiter=limiter,
        )
