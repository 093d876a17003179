"""Accounts whose orders go through the hub: requests to their trading API, made on a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import msgspec
import structlog

from dry_work.alpaca.venues import VenueAccess
from dry_work.errors import BrokerError

CLOSE_TIMEOUT_S = 1.0

_log = structlog.get_logger(__name__)


class AccountSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An account and how it is reached."""

    environment: str  # paper or live
    access: VenueAccess

    @property
    def feed(self) -> str:
        """The feed of its order updates."""
        return f"orders.{self.environment}"


class HubAccount:
    """One account.

    Args:
        settings: of the account.
    """

    def __init__(self, settings: AccountSettings) -> None:
        self.environment = settings.environment
        self.feed = settings.feed
        self.access = settings.access
        self.account_id = ""
        self.account_number = ""
        self.error = ""  # of the last request; empty after one that was answered
        self._is_closed = False
        self._api = settings.access.open_api()
        # One thread: a client of alpaca-py is for one at a time, and orders keep their order.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"hub account {settings.environment}")

    def __repr__(self) -> str:
        return f"HubAccount({self.environment!r}, {self.access!r})"

    async def call(self, method: str, path: str, data: Mapping[str, Any] | None = None) -> Any:
        """Send one request of Alpaca's trading API and return the decoded answer; `path` is without its version.

        Raises:
            BrokerError: as `VenueApi.call`.
        """
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._api.call, method, path, data)
        except BrokerError as error:
            self.error = str(error) if error.http_status is None or error.http_status >= 500 else ""
            raise
        self.error = ""
        return answer

    async def identify(self) -> None:
        """Learn the account's id and number.

        Raises:
            BrokerError: the venue does not say.
        """
        answer = await self.call("GET", "/account")
        if isinstance(answer, Mapping):
            self.account_id = str(answer.get("id") or "")
            self.account_number = str(answer.get("account_number") or "")

    def close(self) -> None:
        """End the thread; a request under way is given up after a second. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._api.abandon()
        closed = self._pool.submit(self._api.close)
        wait([closed], CLOSE_TIMEOUT_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
