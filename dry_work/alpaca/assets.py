"""Check symbols against the venue's assets. One thread at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient

from dry_work.errors import BrokerUnavailableError, ConfigError, VenueAuthError
from dry_work.settings import Credentials

# From so many symbols on, one list of all assets costs fewer requests of the venue's 200 a minute.
_MOST_LOOK_UPS = 40


def check_symbols(symbols: Sequence[str], credentials: Credentials, *, url: str, timeout_s: float = 10.0) -> None:
    """Make sure that the venue knows and trades every symbol.

    Raises:
        ConfigError: naming the symbols that it does not know or does not trade.
        VenueAuthError: the credentials were refused.
        BrokerUnavailableError: the venue did not answer as it should.
    """
    client: Any = TradingClient(credentials.key, credentials.secret, raw_data=True, url_override=url)
    # alpaca-py sends its requests without a time-out.
    client._session.request = functools.partial(client._session.request, timeout=timeout_s)
    try:
        tradable = _look_up(client, symbols) if len(symbols) <= _MOST_LOOK_UPS else _list(client)
    except APIError as error:
        if error.status_code in (401, 403):
            raise VenueAuthError(
                f"{url} refused the credentials: check ALPACA_API_KEY and ALPACA_SECRET_KEY",
                http_status=error.status_code,
            ) from error
        raise BrokerUnavailableError(f"{url}: {error}", http_status=error.status_code) from error
    except requests.RequestException as error:
        raise BrokerUnavailableError(f"{url} does not answer ({type(error).__name__}); is ALPACA_URL right?") from error
    finally:
        client._session.close()
    unknown = [symbol for symbol in symbols if symbol not in tradable]
    if unknown:
        raise ConfigError(f"{url} has no asset {', '.join(unknown)}: check the symbols file")
    halted = [symbol for symbol in symbols if not tradable[symbol]]
    if halted:
        raise ConfigError(f"{url} does not trade {', '.join(halted)} at present: take it out of the symbols file")


def _look_up(client: Any, symbols: Sequence[str]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for symbol in symbols:
        try:
            found[symbol] = _is_tradable(client.get(f"/assets/{symbol}"))
        except APIError as error:
            if error.status_code not in (404, 422):
                raise
    return found


def _list(client: Any) -> dict[str, bool]:
    return {asset["symbol"]: _is_tradable(asset) for asset in client.get("/assets")}


def _is_tradable(asset: Any) -> bool:
    return bool(asset.get("tradable")) and asset.get("status", "active") == "active"
