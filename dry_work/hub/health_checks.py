"""Whether the trading APIs that the hub depends on answer: each is asked now and then. Event-loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

import structlog

from dry_work.errors import BrokerError
from dry_work.hub.ports import OrderAccount

ANSWER_WITHIN_S = 10.0
NOT_ASKED = "not asked yet"

_REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

_log = structlog.get_logger(__name__)


class AccountChecks:
    """Asks accounts for the time of their venue.

    Args:
        accounts: whose API is asked.
        interval_s: between two questions.
        answer_within_s: an API that does not answer for so long is down; it is not asked again before it has answered.
    """

    def __init__(
        self, accounts: Mapping[str, OrderAccount], *, interval_s: float, answer_within_s: float = ANSWER_WITHIN_S
    ) -> None:
        self._accounts = dict(accounts)
        self._interval_s = interval_s
        self._answer_within_s = answer_within_s
        self._errors = dict.fromkeys(accounts, NOT_ASKED)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def errors(self) -> Mapping[str, str]:
        """Why an account's API is down, by account; empty when it is up."""
        return self._errors

    def start(self) -> None:
        """Begin to ask."""
        self._tasks = [
            asyncio.create_task(self._ask_on(name, account), name=f"hub-check-{name}")
            for name, account in self._accounts.items()
        ]

    async def stop(self) -> None:
        """Ask no more. May be called twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_on(self, name: str, account: OrderAccount) -> None:
        while True:
            asking = asyncio.ensure_future(_ask(account))
            try:
                done, _ = await asyncio.wait([asking], timeout=self._answer_within_s)
                if not done:
                    self._note(name, f"no answer within {self._answer_within_s:g} s")
                self._note(name, await asking)
            finally:
                asking.cancel()
            await asyncio.sleep(self._interval_s)

    def _note(self, name: str, error: str) -> None:
        before = self._errors[name]
        self._errors[name] = error
        if error and error != before:
            _log.warning("the trading API cannot be used", account=name, reason=error)
        elif before and before != NOT_ASKED and not error:
            _log.info("the trading API can be used again", account=name)


async def _ask(account: OrderAccount) -> str:
    """Return why an account's API is down; empty when it answers, whatever it thinks of the question."""
    try:
        await account.call("GET", "/clock")
    except BrokerError as error:
        status = error.http_status
        if status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _REFUSALS:
            return str(error)
    return ""
