"""An exchange whose market has been played to its end, so that all of it is history."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from dry_work.exchange.server import ExchangeServer
from dry_work.feeds.recorded import Recording
from dry_work.settings import Credentials

KEYS = Credentials(key="known", secret="s")
DEADLINE_S = 60.0


@contextlib.contextmanager
def run_ended_exchange(recording: Recording) -> Iterator[ExchangeServer]:
    """Play the recording, then give the exchange."""
    server = ExchangeServer(recording, speed=1e6, keys={KEYS.key: KEYS.secret})
    server.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        while server.describe()["state"] != "ended":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server
    finally:
        server.stop()
