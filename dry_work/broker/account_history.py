"""What has happened in an account: its executions, and orders of all states. One request a page, by REST."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import structlog

from dry_work.errors import BrokerUnavailableError, CodecError
from dry_work.orders.model import Execution, VenueOrder
from dry_work.wire.alpaca_orders import parse_order
from dry_work.wire.alpaca_rest import parse_execution
from dry_work.wire.pubsub import encode_time

PAGES = 50  # of 100 executions
HISTORY_LIMIT = 500  # orders, the venue's own

_Row = TypeVar("_Row")

_log = structlog.get_logger(__name__)


class HistoryVenue(Protocol):
    """What is asked of the venue; see `dry_work.alpaca.venue_api.VenueApi`."""

    def call(self, method: str, path: str, data: Mapping[str, object] | None = None) -> Any: ...


def fetch_executions(venue: HistoryVenue, *, since_ns: int) -> list[Execution]:
    """Return the account's executions since then, oldest first.

    Raises:
        BrokerError: the venue did not give them.
    """
    query: dict[str, object] = {"direction": "asc", "page_size": 100, "after": encode_time(since_ns)}
    found: list[Execution] = []
    for _ in range(PAGES):
        rows = venue.call("GET", "/account/activities/FILL", query)
        if not isinstance(rows, list):
            raise BrokerUnavailableError("/account/activities/FILL: the answer is no list")
        found += _read(parse_execution, rows)
        if len(rows) < 100 or not isinstance(rows[-1], dict) or not rows[-1].get("id"):
            break
        query = {**query, "page_token": str(rows[-1]["id"])}
    return found


def fetch_history(venue: HistoryVenue, symbols: Iterable[str]) -> list[VenueOrder]:
    """Return the newest orders of these symbols, of all states, newest first.

    Raises:
        BrokerError: the venue did not give them.
    """
    query = {"status": "all", "limit": HISTORY_LIMIT, "symbols": ",".join(symbols)}
    rows = venue.call("GET", "/orders", query)
    if not isinstance(rows, list):
        raise BrokerUnavailableError("/orders: the answer is no list")
    return _read(parse_order, rows)


def _read(parse: Callable[[Any], _Row], rows: Iterable[Any]) -> list[_Row]:
    found: list[_Row] = []
    for row in rows:
        try:
            found.append(parse(row))
        except CodecError as error:
            _log.warning("a row of the account's history cannot be read", reason=error.reason)
    return found
