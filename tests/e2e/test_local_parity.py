"""A local run in lock-step delivers every bar and fills as a stock backtest does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dry_work.engine.agents import load_agent
from dry_work.engine.result import RunResult
from dry_work.engine.runner import Runner
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.settings import RunSettings

from .stock import run_stock

STOCKS = ("SPY", "IBM", "BAC", "AIG")
CRYPTO = ("BTC/USD", "ETH/USD")
AGENTS = {
    "market": ("agents.sma_cross:SmaCross", False),
    "limit": ("agents.limit_bounce:LimitBounce", True),
    "extra-line": ("agents.sentiment_tilt:SentimentTilt", False),
}


def run_local(agent: str, symbols: tuple[str, ...], data: tuple[str, ...] = (), **changes: Any) -> RunResult:
    lines: list[str] = []
    settings = RunSettings(symbols=symbols, agent=agent, params={}, mode="local", data=data, **changes)
    return Runner(settings, tell=lines.append).run()


def assert_equal_fills(result: RunResult, expected: list[dict[str, Any]]) -> None:
    found = list(result.fills)
    assert [(f["symbol"], f["side"], f["time"]) for f in found] == [
        (f["symbol"], f["side"], f["time"]) for f in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["qty"] == pytest.approx(theirs["qty"], abs=1e-6)
        assert ours["price"] == pytest.approx(theirs["price"], abs=1e-6)


def check(kind: str, symbols: tuple[str, ...], data: tuple[str, ...], recording: Recording) -> RunResult:
    result = run_local(AGENTS[kind][0], symbols, data)
    assert_equal_to_stock(result, kind, symbols, recording)
    return result


def assert_equal_to_stock(result: RunResult, kind: str, symbols: tuple[str, ...], recording: Recording) -> None:
    agent, guarded = AGENTS[kind]
    assert result.bars == {symbol: recording.count(symbol) for symbol in symbols}
    expected, bars, value = run_stock(load_agent(agent).strategy, recording, guarded=guarded)
    assert bars == result.bars
    assert_equal_fills(result, expected)
    assert result.equity.end == pytest.approx(value, abs=1e-6)


@pytest.mark.recordings
@pytest.mark.parametrize(("kind", "days"), [("market", "*"), ("limit", "2013-10-07")])
def test_stocks_over_three_days_or_one(kind: str, days: str, recordings: Path, clean_environment: Path) -> None:
    data = tuple(str(recordings / f"bars-{symbol}-{days}.parquet") for symbol in STOCKS)
    result = check(kind, STOCKS, data, read_bars(data, STOCKS))
    assert len(result.fills) > 20


@pytest.mark.recordings
@pytest.mark.parametrize(("kind", "days"), [("market", "2017-09-03"), ("limit", "2018-04-04")])
def test_crypto_over_a_full_day_and_one_with_a_gap(
    kind: str, days: str, recordings: Path, clean_environment: Path
) -> None:
    data = (str(recordings / f"bars-BTC-USD-{days}.parquet"), str(recordings / f"bars-ETH-USD-{days}.parquet"))
    result = check(kind, CRYPTO, data, read_bars(data, CRYPTO))
    assert len(result.fills) > 20


def test_a_local_run_leaves_nothing_behind(clean_environment: Path) -> None:
    run_local(AGENTS["market"][0], ("SPY",))
    assert list(clean_environment.iterdir()) == []
