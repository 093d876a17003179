"""A backtest gives the fills of a stock Cerebro script and of a local run, on both engines."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dry_work.backtest.run import BacktestSettings, load_recording, run_backtest, verify_backtest
from dry_work.engine.agents import load_agent
from dry_work.engine.result import RunResult
from dry_work.exchange.synthetic import synthetic_day
from dry_work.settings import parse_timeframe

from .stock import run_stock
from .test_local_parity import AGENTS, CRYPTO, STOCKS, assert_equal_to_stock, run_local

PARTS = ("SPY", "BAC", "BTC/USD")


def backtest(kind: str, symbols: tuple[str, ...], data: tuple[str, ...] = (), **changes: Any) -> RunResult:
    agent, _ = AGENTS[kind]
    settings = BacktestSettings(symbols=symbols, agent=agent, params={}, data=data, **changes)
    return run_backtest(settings, load_recording(settings), load_agent(agent))


def check(kind: str, symbols: tuple[str, ...], data: tuple[str, ...] = ()) -> None:
    agent, guarded = AGENTS[kind]
    lean, stock = (backtest(kind, symbols, data, engine=engine) for engine in ("lean", "stock"))
    assert lean.assumptions["engine"] == "lean"  # and not Backtrader's own path
    assert (lean.orders, lean.fills, lean.bars, lean.positions) == (
        stock.orders,
        stock.fills,
        stock.bars,
        stock.positions,
    )
    assert lean.curve is not None
    assert stock.curve is not None
    np.testing.assert_array_equal(lean.curve.value, stock.curve.value)
    recording = load_recording(BacktestSettings(symbols=symbols, agent=agent, params={}, data=data))
    expected, bars, value = run_stock(load_agent(agent).strategy, recording, guarded=guarded)
    assert lean.bars == bars
    assert [{name: fill[name] for name in expected[0]} for fill in lean.fills] == expected
    assert lean.equity.end == pytest.approx(value, abs=1e-6)


@pytest.mark.recordings
@pytest.mark.parametrize("kind", list(AGENTS))
def test_stocks_over_three_days(kind: str, recordings: Path) -> None:
    check(kind, STOCKS, tuple(str(recordings / f"bars-{symbol}-*.parquet") for symbol in STOCKS))


@pytest.mark.recordings
@pytest.mark.parametrize("kind", list(AGENTS))
def test_crypto_over_a_full_day_and_one_with_a_gap(kind: str, recordings: Path) -> None:
    check(kind, CRYPTO, (str(recordings / "bars-BTC-USD-*.parquet"), str(recordings / "bars-ETH-USD-*.parquet")))


@pytest.mark.parametrize("kind", list(AGENTS))
def test_the_synthetic_day(kind: str) -> None:
    check(kind, PARTS)


@functools.cache
def run_live(kind: str) -> RunResult:
    return run_local(AGENTS[kind][0], PARTS)


@pytest.mark.parametrize("kind", list(AGENTS))
def test_a_local_run_of_stocks_and_crypto_fills_as_stock_does(kind: str, clean_environment: Path) -> None:
    live = run_live(kind)
    assert_equal_to_stock(live, kind, PARTS, synthetic_day(PARTS))
    assert live.fills


def test_two_local_runs_are_equal(clean_environment: Path) -> None:
    first, second = run_live("market"), run_local(AGENTS["market"][0], PARTS)
    assert first.orders == second.orders
    assert first.fills == second.fills
    assert first.orders


@pytest.mark.parametrize("kind", list(AGENTS))
def test_a_local_run_has_the_same_orders_fills_and_equity(kind: str, clean_environment: Path) -> None:
    ours, live = backtest(kind, PARTS), run_live(kind)
    assert ours.bars == live.bars
    assert [order | {"qty": 0, "status": ""} for order in ours.orders] == [
        order | {"qty": 0, "status": ""} for order in live.orders
    ]
    assert [fill | {"qty": 0} for fill in ours.fills] == [fill | {"qty": 0} for fill in live.fills]
    assert [fill["qty"] for fill in ours.fills] == pytest.approx([fill["qty"] for fill in live.fills], abs=1e-9)
    assert ours.curve is not None
    assert live.curve is not None
    np.testing.assert_array_equal(ours.curve.end_ns, live.curve.end_ns)
    np.testing.assert_allclose(ours.curve.value, live.curve.value, rtol=1e-9)
    assert ours.fingerprint == live.fingerprint


@pytest.mark.parametrize("kind", list(AGENTS))
def test_both_engines_agree_in_every_record(kind: str) -> None:
    agent, _ = AGENTS[kind]
    settings = BacktestSettings(symbols=PARTS, agent=agent, params={})
    report = verify_backtest(settings, load_recording(settings), load_agent(agent))
    assert report.difference is None
    assert report.fallback == ""


@pytest.mark.parametrize("kind", ["market", "limit"])
def test_bundled_agents_count_a_contract_as_100_shares(kind: str) -> None:
    result = backtest(kind, ("SPY240621C00550000",))
    bought = [fill["qty"] * fill["price"] * 100 for fill in result.fills if fill["side"] == "buy"]
    assert bought
    assert 5_000 < max(bought) < 17_000  # a tenth, or 15 %, of 100,000, in whole contracts


RESAMPLED = '''
import backtrader as bt


class Agent(bt.Strategy):
    """Trades when a longer bar closes higher or lower, for its own data or for the minute bars of its symbol."""

    def __init__(self):
        self.seen = dict.fromkeys(self.datas, 0)

    def prenext(self):
        self.next()

    def next(self):
        for data in self.datas:
            if len(data) < 2 or len(data) == self.seen[data] or "@" not in data._name:
                continue
            self.seen[data] = len(data)
            base = self.getdatabyname(data._name.partition("@")[0])
            target = base if len(data) % 2 else data
            rises = data.close[0] > data.close[-1]
            if rises and not self.getposition(data).size:
                self.buy(data=target, size=1)
            elif not rises and self.getposition(base).size:
                self.sell(data=target, size=1, exectype=bt.Order.Limit, price=data.close[0])
'''


@pytest.mark.parametrize("frames", [("5m",), ("5m", "1h"), ("1d",)])
def test_resampled_feeds_are_those_of_a_local_run(frames: tuple[str, ...], clean_environment: Path) -> None:
    (clean_environment / "agent.py").write_text(RESAMPLED)
    resample = tuple(map(parse_timeframe, frames))
    settings = BacktestSettings(symbols=PARTS, agent="agent.py:Agent", params={}, resample=resample)
    ours = run_backtest(settings, load_recording(settings), load_agent(settings.agent))
    live = run_local("agent.py:Agent", PARTS, resample=resample)
    assert [fill | {"qty": 0} for fill in ours.fills] == [fill | {"qty": 0} for fill in live.fills]
    assert ours.bars == live.bars
    if "5m" in frames:
        assert len(ours.fills) > 20
