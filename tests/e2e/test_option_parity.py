"""An agent with a stock and its options runs unchanged in a backtest and in a lock-step session, over each feed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dry_work.backtest.run import BacktestSettings, run_backtest
from dry_work.engine.agents import load_agent
from dry_work.engine.result import RunResult
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.settings import FeedSettings

from .test_feeds_parity import NEEDS
from .test_local_parity import run_local

CALL, PUT = "SPY240621C00550000", "SPY240621P00540000"
SYMBOLS = ("SPY", CALL, PUT)
AGENT = '''
import backtrader as bt

SYMBOLS = ("SPY", "SPY240621C00550000", "SPY240621P00540000")


class Mixed(bt.Strategy):
    """Trades calls and the stock at market, writes puts at a limit, and asks for more than it can pay."""

    params = (("period", 20),)

    def __init__(self):
        self.stock, self.call, self.put = (self.getdatabyname(name) for name in SYMBOLS)
        average = bt.indicators.SMA(self.stock.close, period=self.p.period)
        self.cross = bt.indicators.CrossOver(self.stock.close, average)
        self.trades = []

    def notify_trade(self, trade):
        if trade.isclosed:
            self.trades.append(trade.pnl)

    def next(self):
        if self.cross > 0:
            self.close(data=self.put)
            gained = bool(self.trades) and self.trades[-1] > 0
            share = 0.1 if gained else 0.05
            self.buy(data=self.call, size=int(self.broker.getvalue() * share / 100 / self.call.close[0]))
            self.sell(data=self.stock, size=50)
        elif self.cross < 0:
            self.close(data=self.call)
            self.close(data=self.stock)
            self.sell(data=self.put, size=1, exectype=bt.Order.Limit, price=self.put.close[0] + 0.05)
            self.buy(data=self.call, size=int(1_250 / self.call.close[0]))
'''
SPEC = "mixed.py:Mixed"
MINUTES = 150


@pytest.fixture
def folder(clean_environment: Path) -> Path:
    (clean_environment / "mixed.py").write_text(AGENT)
    (clean_environment / "data").mkdir()
    recording = synthetic_day(SYMBOLS, minutes=MINUTES)
    for symbol in SYMBOLS:
        columns = recording.columns(symbol)
        table = pd.DataFrame({name: columns[name] for name in ("open", "high", "low", "close", "volume")})
        table.insert(0, "timestamp", pd.to_datetime(columns["ts_event_ns"], utc=True))
        table.assign(symbol=symbol).to_parquet(clean_environment / "data" / f"{symbol}.parquet", index=False)
    return clean_environment


def read() -> Recording:
    return read_bars(["data"], SYMBOLS)


def backtest(engine: str, agent: str = SPEC) -> RunResult:
    settings = BacktestSettings(symbols=SYMBOLS, agent=agent, params={}, engine=engine)
    return run_backtest(settings, read(), load_agent(agent))


def strip(result: RunResult) -> list[list[object]]:
    return [[fill[name] for name in ("time", "symbol", "side", "qty", "price")] for fill in result.fills]


@pytest.mark.parametrize("feed", ["pubsub", "ws", "grpc", "nats", "redis"])
def test_a_session_over_each_feed_gives_the_orders_and_fills_of_the_backtest(feed: str, folder: Path) -> None:
    for package in NEEDS.get(feed, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    expected = backtest("lean")
    assert {fill["symbol"] for fill in expected.fills} == set(SYMBOLS)
    assert {order["status"] for order in expected.orders} >= {"filled", "rejected"}
    result = run_local(SPEC, SYMBOLS, ("data",), feed=FeedSettings(name=feed))
    assert result.bars == expected.bars
    assert strip(result) == strip(expected)
    assert [order["status"] for order in result.orders] == [order["status"] for order in expected.orders]
    assert result.equity.end == pytest.approx(expected.equity.end, abs=1e-6)
    assert not result.notes


def test_a_backtest_counts_a_hundred_shares_a_contract_on_either_engine(folder: Path) -> None:
    found = backtest("lean")
    units = {"SPY": 1, CALL: 100, PUT: 100}
    last = {symbol: float(read().columns(symbol)["close"][-1]) for symbol in SYMBOLS}
    money = 100_000.0
    for fill in found.fills:
        money += fill["qty"] * fill["price"] * units[fill["symbol"]] * (-1 if fill["side"] == "buy" else 1)
    money += sum(size * last[symbol] * units[symbol] for symbol, size in found.positions.items())
    assert found.equity.end == pytest.approx(money, abs=1e-6)
    assert found.curve is not None
    assert found.curve.value[-1] == pytest.approx(money, abs=1e-6)
    assert not found.notes
    stock = backtest("stock")
    assert (stock.orders, stock.fills, stock.equity.end) == (found.orders, found.fills, found.equity.end)


def test_a_multiplier_that_a_strategy_sets_does_not_count_twice(folder: Path) -> None:
    (folder / "told.py").write_text(
        AGENT.replace("self.trades = []", "self.trades = []\n        for data in (self.call, self.put):\n"
                      "            self.broker.setcommission(mult=100, name=data._name)")
    )  # fmt: skip
    plain, told = backtest("lean"), backtest("lean", "told.py:Mixed")
    assert told.equity.end == plain.equity.end
    assert strip(told) == strip(plain)
