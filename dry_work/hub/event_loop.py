"""The event loop that the hub runs in."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import structlog

_log = structlog.get_logger(__name__)


def close_runner(runner: asyncio.Runner) -> None:
    """Close a runner and its event loop."""
    try:
        runner.close()
    except OSError as error:
        # uvloop, seldom: libuv is not done with a request yet. Nothing of the hub waits for it any more.
        if error.errno != errno.EBUSY:
            raise
        _log.warning("the event loop was left open", error=str(error))


def choose_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop, which the extra `hub` installs, or None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
