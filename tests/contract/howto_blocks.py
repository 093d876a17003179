"""Code blocks of the how-to page about the exchange, and an exchange to run them on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "exchange.md"


def read_blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@contextmanager
def run_exchange() -> Iterator[tuple[ExchangeServer, dict[str, str]]]:
    """Run an exchange whose market goes on for minutes; yield it and the environment that it prints.

    A bar comes every two seconds, so that streams are connected long before an order fills.
    """
    server = ExchangeServer(synthetic_day(["SPY", "BTC/USD"], minutes=1440), rules="alpaca", speed=30.0)
    server.start()
    try:
        yield server, os.environ | {"ALPACA_URL": server.url, "ALPACA_STREAM_URL": server.stream_url}
    finally:
        server.stop()
