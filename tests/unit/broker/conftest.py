"""Fixtures of the broker: a venue, a journal, and a Cerebro that a test moves bar by bar."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dry_work.broker.journal import Journal
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.orders.risk_limits import RiskLimits

from .scripted_venue import ScriptedVenue, wait_until


@pytest.fixture
def venue() -> Iterator[ScriptedVenue]:
    venue = ScriptedVenue()
    venue.start()
    yield venue
    venue.stop()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "orders.sqlite")
    yield journal
    journal.close()


@pytest.fixture
def broker(venue: ScriptedVenue, journal: Journal) -> Iterator[Any]:
    """A broker at the venue, not started."""
    broker = build_broker(venue, journal)
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: not (set(threading.enumerate()) - before), "all threads of the test have ended")


def build_broker(venue: ScriptedVenue, journal: Journal, **params: Any) -> Any:
    given = {
        "api_key": "KEY", "secret_key": "SECRET", "url_override": venue.url, "journal": journal, "agent": "tester",
        "session": "s", "request_timeout_s": 1.0, "refresh_s": 30.0, "risk": RiskLimits(stale_bars=0), **params,
    }  # fmt: skip
    return AlpacaPaperTradingBroker(**given)
