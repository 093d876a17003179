"""Connections to an HTTP port that say nothing: each is closed unless a request comes in time. Event-loop only."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web


class SilentConnections:
    """The connections of some ports on which no request has come yet.

    Args:
        limit_s: how long a connection may be one of them.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ends: dict[Any, asyncio.TimerHandle] = {}  # by protocol

    def build_protocol(self, runner: web.AppRunner) -> Any:
        """Return the protocol of a new connection, for `create_server`."""
        assert runner.server is not None
        protocol = runner.server()

        def end() -> None:
            del self._ends[protocol]
            if protocol.transport is not None:
                protocol.transport.close()

        self._ends[protocol] = asyncio.get_running_loop().call_later(self._limit_s, end)
        return protocol

    def note_request(self, request: web.Request) -> None:
        """A request's header has come: its connection stays."""
        if (end := self._ends.pop(request.protocol, None)) is not None:
            end.cancel()

    def forget(self) -> None:
        """Close nobody any more: the ports do that themselves."""
        for end in self._ends.values():
            end.cancel()
        self._ends.clear()
