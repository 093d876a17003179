"""Accounts whose orders go through the hub: requests to their trading API, made on a few threads."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import structlog

from dry_work.alpaca.venue_api import VenueApi
from dry_work.alpaca.venues import VenueAccess
from dry_work.errors import BrokerError, BrokerUnavailableError, OutcomeUnknownError
from dry_work.observability.tracing import trace

THREADS = 4  # requests under way at a time; one that hangs leaves the others theirs
CALL_TIMEOUT_S = 30.0  # of a request, from its begin
TURN_TIMEOUT_S = 30.0  # until it begins
PATIENCE_S = 15.0  # for the budget of the key
CLOSE_TIMEOUT_S = 1.0
CHANGES = "changes"  # the lane of requests that change something and name no other

_log = structlog.get_logger(__name__)


class AccountSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An account and how it is reached."""

    environment: str  # paper or live
    access: VenueAccess

    @property
    def feed(self) -> str:
        """The feed of its order updates."""
        return f"orders.{self.environment}"


class _Lane:
    """Requests that are made one after another."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()  # given in the order in which it is asked for
        self.users = 0


class HubAccount:
    """One account. Event-loop only, but for `close`.

    Args:
        settings: of the account.
        threads: requests under way at a time.
        call_timeout_s: of a request, from its begin.
        turn_timeout_s: until it begins.
    """

    def __init__(
        self,
        settings: AccountSettings,
        *,
        threads: int = THREADS,
        call_timeout_s: float = CALL_TIMEOUT_S,
        turn_timeout_s: float = TURN_TIMEOUT_S,
    ) -> None:
        self.environment = settings.environment
        self.feed = settings.feed
        self.access = settings.access
        self.account_id = ""
        self.account_number = ""
        self.error = ""  # of the last request; empty after one that was answered
        self._call_timeout_s = call_timeout_s
        self._turn_timeout_s = turn_timeout_s
        self._is_closed = self._is_abandoned = False
        self._lanes: dict[str, _Lane] = {}
        self._room = asyncio.Semaphore(threads)
        # A client of alpaca-py is for one thread at a time; all of them share the budget of the key.
        self._clients = [settings.access.open_api(patience_s=PATIENCE_S) for _ in range(threads)]
        self._idle: queue.LifoQueue[VenueApi] = queue.LifoQueue()
        for client in reversed(self._clients):
            self._idle.put(client)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"hub account {settings.environment}")

    def __repr__(self) -> str:
        return f"HubAccount({self.environment!r}, {self.access!r})"

    async def call(
        self,
        method: str,
        path: str,
        data: Mapping[str, Any] | None = None,
        *,
        lane: str = "",
        timeout_s: float | None = None,
    ) -> Any:
        """Send one request of Alpaca's trading API and return the decoded answer; `path` is without its version.

        Args:
            method: see `VenueApi.call`.
            path: see `VenueApi.call`.
            data: see `VenueApi.call`.
            lane: requests of one lane are made one after another, in the order of the calls. Empty: those that change
                something share one, and those that only ask are in none.
            timeout_s: of the request, from its begin; None: as the account has it. What takes longer is given up here
                and may be carried out all the same; its lane goes on when it has ended.

        Raises:
            BrokerError: as `VenueApi.call`; OutcomeUnknownError when the time is over, BrokerUnavailableError when the
                request could not begin in time.
        """
        if not lane and method != "GET":
            lane = CHANGES
        try:
            with trace("alpaca.request", account=self.environment, http_method=method, http_path=path):
                answer = await self._make(method, path, data, lane, timeout_s or self._call_timeout_s)
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
        """End the threads; requests under way are given up after a second. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        for client in self._clients:
            client.abandon()
        self._pool.shutdown(wait=False, cancel_futures=True)
        end_s = time.monotonic() + CLOSE_TIMEOUT_S
        closed = 0
        while closed < len(self._clients):
            try:
                self._idle.get(timeout=max(0.0, end_s - time.monotonic())).close()
            except queue.Empty:
                if self._is_abandoned:
                    return
                self._is_abandoned = True  # those that are in use are closed by who uses them; look once more
            else:
                closed += 1

    async def _make(self, method: str, path: str, data: Mapping[str, Any] | None, lane: str, timeout_s: float) -> Any:
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(self._turn_timeout_s):
                await self._take_turn(lane)
        except TimeoutError:
            raise BrokerUnavailableError(
                f"{what}: not sent, for requests before it have not ended within {self._turn_timeout_s:g} s"
            ) from None
        try:
            request = asyncio.get_running_loop().run_in_executor(self._pool, self._send, method, path, data)
        except RuntimeError:  # closed
            self._give_turn(lane)
            raise BrokerUnavailableError(f"{what}: not sent, for the hub stops") from None
        request.add_done_callback(lambda done: self._finish(done, lane))
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(request)
        except TimeoutError:
            raise OutcomeUnknownError(f"{what}: no answer within {timeout_s:g} s") from None

    async def _take_turn(self, name: str) -> None:
        if name:
            lane = self._lanes.setdefault(name, _Lane())
            lane.users += 1
            try:
                await lane.lock.acquire()
            except BaseException:
                self._leave(name)
                raise
        try:
            await self._room.acquire()
        except BaseException:
            if name:
                self._lanes[name].lock.release()
                self._leave(name)
            raise

    def _give_turn(self, name: str) -> None:
        self._room.release()
        if name:
            self._lanes[name].lock.release()
            self._leave(name)

    def _leave(self, name: str) -> None:
        lane = self._lanes[name]
        lane.users -= 1
        if not lane.users:
            del self._lanes[name]

    def _finish(self, request: asyncio.Future[Any], lane: str) -> None:
        self._give_turn(lane)
        if not request.cancelled():
            request.exception()  # nobody else may look at it

    def _send(self, method: str, path: str, data: Mapping[str, Any] | None) -> Any:
        client = self._idle.get_nowait()
        try:
            return client.call(method, path, data)
        finally:
            if self._is_abandoned:
                client.close()
            else:
                self._idle.put(client)
