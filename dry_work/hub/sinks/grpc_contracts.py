"""The option contracts of a root, as the venue lists them. Event-loop only.

Quotes of options can only be had contract by contract. One request at a time goes to the venue, and what it answers is
good for a while: many calls for one root cost the account no more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from dry_work.errors import HubError
from dry_work.hub.ports import HubPort
from dry_work.hub.sinks.grpc_filters import root_of
from dry_work.market.symbols import is_option

FRESH_S = 900.0
PAGE = 10_000
PAGES = 20
ROOTS = 1_000  # remembered


class OptionContracts:
    """Lists contracts.

    Args:
        hub: has the account that may ask.
        environment: paper or live.
    """

    def __init__(self, hub: HubPort, environment: str) -> None:
        self._hub = hub
        self._environment = environment
        self._turn = asyncio.Lock()
        self._found: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def find(self, root: str) -> tuple[str, ...]:
        """Return the symbols of the active contracts with a root.

        Raises:
            HubError: the hub has no account that could ask, or the answer is of another form.
            BrokerError: the venue refuses, or does not answer.
        """
        async with self._turn:
            now_s = self._hub.clock.monotonic()
            known = self._found.get(root)
            if known is not None and now_s - known[0] < FRESH_S:
                return known[1]
            symbols = await self._ask(root)
            if len(self._found) >= ROOTS:
                self._found.clear()
            self._found[root] = (now_s, symbols)
            return symbols

    async def _ask(self, root: str) -> tuple[str, ...]:
        account = self._hub.account(self._environment)
        if account is None:
            raise HubError(f"the hub has no credentials for the {self._environment} account")
        found: dict[str, None] = {}
        token = ""
        for _ in range(PAGES):
            query = {"root_symbol": root, "status": "active", "limit": PAGE}
            answer = await account.call("GET", "/options/contracts", query | ({"page_token": token} if token else {}))
            rows = answer.get("option_contracts") if isinstance(answer, Mapping) else None
            if not isinstance(rows, list):
                raise HubError("the venue's list of option contracts cannot be read")
            found.update((symbol, None) for row in rows if (symbol := _symbol_of(row)) and root_of(symbol) == root)
            token = str(answer.get("next_page_token") or "")
            if not token:
                break
        return tuple(found)


def _symbol_of(row: Any) -> str:
    symbol = row.get("symbol") if isinstance(row, Mapping) else None
    return symbol if isinstance(symbol, str) and is_option(symbol) else ""
