"""One backtest of an SMA cross in one engine, from Parquet files to its result, timed from inside.

A script of its own, so that any Python that has the engine can run it: `python benchmarks/backtest_engines.py ENGINE
FILE...` prints one JSON object, or ends with code 3 when the engine is not installed. Every file holds the minute bars
of one symbol in alpaca-py's columns. Loading the libraries is not part of the time; the peak of memory includes them.

Long when the mean of 10 closes crosses over that of 30, flat when it crosses under; one unit, at the next bar's open.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

FAST, SLOW = 10, 30
CASH = 1e7
NOT_INSTALLED = 3


def make_strategy(bt: Any) -> Any:
    """Return the strategy for Backtrader or what takes its place."""

    class SmaCross(bt.Strategy):  # type: ignore[misc]
        def __init__(self) -> None:
            self.crosses = {}
            for data in self.datas:
                fast = bt.indicators.SMA(data.close, period=FAST)
                slow = bt.indicators.SMA(data.close, period=SLOW)
                self.crosses[data._name] = bt.indicators.CrossOver(fast, slow)
            self.fills = 0

        def notify_order(self, order: Any) -> None:
            if order.status == order.Completed:
                self.fills += 1

        def next(self) -> None:
            for data in self.datas:
                cross = self.crosses[data._name][0]
                if cross:
                    size = self.getposition(data).size
                    if cross > 0 and not size:
                        self.buy(data=data, size=1)
                    elif cross < 0 and size:
                        self.sell(data=data, size=size)

    return SmaCross


def read_frame(path: Path) -> Any:
    """Return a file as a frame by the end of its bars."""
    import pandas as pd

    frame = pd.read_parquet(path)
    index = pd.DatetimeIndex(frame["timestamp"]).tz_convert(None) + pd.Timedelta(minutes=1)
    return frame[["open", "high", "low", "close", "volume"]].set_index(index)


def run_backtrader(bt: Any, paths: list[Path]) -> tuple[float, int]:
    """Run with frames in `PandasData`; return the final value and the number of fills."""
    cerebro = bt.Cerebro(stdstats=False)
    for path in paths:
        feed = bt.feeds.PandasData(dataname=read_frame(path), timeframe=bt.TimeFrame.Minutes, compression=1)
        cerebro.adddata(feed, name=path.stem)
    cerebro.addstrategy(make_strategy(bt))
    cerebro.broker.setcash(CASH)
    strategy = cerebro.run()[0]
    return cerebro.broker.getvalue(), strategy.fills


def run_stock(paths: list[Path]) -> Any:
    import backtrader as bt
    import pandas as pd  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401

    yield
    yield run_backtrader(bt, paths)


def run_lean(paths: list[Path]) -> Any:
    import backtrader as bt
    import pandas as pd  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401

    from dry_work.backtest.lean import LeanCerebro
    from dry_work.feeds.columnar import columnar_feed
    from dry_work.feeds.recorded import read_bars

    yield
    recording = read_bars(paths)
    cerebro = LeanCerebro(stdstats=False)
    for symbol in recording.symbols:
        cerebro.adddata(columnar_feed(recording, symbol))
    del recording
    cerebro.addstrategy(make_strategy(bt))
    cerebro.broker.setcash(CASH)
    strategy = cerebro.run()[0]
    assert not cerebro.fallback, cerebro.fallback
    yield cerebro.broker.getvalue(), strategy.fills


def run_back_trader_cpp(paths: list[Path]) -> Any:
    import back_trader as bt  # type: ignore[import-not-found]
    import pandas as pd  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401

    yield
    yield run_backtrader(bt, paths)


def run_backtesting(paths: list[Path]) -> Any:
    import pandas as pd
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    from backtesting import Backtest, Strategy  # type: ignore[import-untyped]
    from backtesting.lib import crossover  # type: ignore[import-untyped]

    yield
    value, fills = CASH, 0

    def mean(values: Any, period: int) -> Any:
        return pd.Series(values).rolling(period).mean()

    class SmaCross(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            self.fast = self.I(mean, self.data.Close, FAST)
            self.slow = self.I(mean, self.data.Close, SLOW)

        def next(self) -> None:
            if crossover(self.fast, self.slow):
                if not self.position:
                    self.buy(size=1)
            elif crossover(self.slow, self.fast) and self.position:
                self.position.close()

    for path in paths:
        frame = read_frame(path).rename(columns=str.capitalize)
        stats = Backtest(frame, SmaCross, cash=CASH).run()
        value += stats["Equity Final [$]"] - CASH
        fills += 2 * stats["# Trades"]
    yield value, int(fills)


def run_nautilus(paths: list[Path]) -> Any:
    from decimal import Decimal

    import pandas as pd  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig  # type: ignore[import-not-found]
    from nautilus_trader.config import LoggingConfig, StrategyConfig  # type: ignore[import-not-found]
    from nautilus_trader.indicators import SimpleMovingAverage  # type: ignore[import-not-found]
    from nautilus_trader.model.currencies import USD  # type: ignore[import-not-found]
    from nautilus_trader.model.data import BarType  # type: ignore[import-not-found]
    from nautilus_trader.model.enums import AccountType, OmsType, OrderSide  # type: ignore[import-not-found]
    from nautilus_trader.model.identifiers import (  # type: ignore[import-not-found]
        InstrumentId,
        Symbol,
        TraderId,
        Venue,
    )
    from nautilus_trader.model.instruments import Equity  # type: ignore[import-not-found]
    from nautilus_trader.model.objects import Money, Price, Quantity  # type: ignore[import-not-found]
    from nautilus_trader.persistence.wranglers import BarDataWrangler  # type: ignore[import-not-found]
    from nautilus_trader.trading.strategy import Strategy  # type: ignore[import-not-found]

    class CrossConfig(StrategyConfig, frozen=True):  # type: ignore[misc, call-arg]
        instrument_id: InstrumentId
        bar_type: BarType

    class SmaCross(Strategy):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.fast = SimpleMovingAverage(FAST)
            self.slow = SimpleMovingAverage(SLOW)
            self.was_over = None
            self.fills = 0

        def on_start(self) -> None:
            self.register_indicator_for_bars(self.config.bar_type, self.fast)
            self.register_indicator_for_bars(self.config.bar_type, self.slow)
            self.subscribe_bars(self.config.bar_type)

        def on_order_filled(self, event: Any) -> None:
            self.fills += 1

        def on_bar(self, bar: Any) -> None:
            if not self.slow.initialized:
                return
            is_over = self.fast.value > self.slow.value
            if self.was_over is not None and is_over != self.was_over:
                name = self.config.instrument_id
                is_flat = self.portfolio.is_flat(name)
                if is_over == is_flat:
                    side = OrderSide.BUY if is_over else OrderSide.SELL
                    self.submit_order(self.order_factory.market(name, side, Quantity.from_int(1)))
            self.was_over = is_over

    yield
    venue = Venue("SIM")
    engine = BacktestEngine(BacktestEngineConfig(trader_id=TraderId("T-1"), logging=LoggingConfig(bypass_logging=True)))
    engine.add_venue(
        venue=venue,
        oms_type=OmsType.NETTING,
        account_type=AccountType.CASH,
        base_currency=USD,
        starting_balances=[Money(CASH, USD)],
    )
    strategies = []
    for path in paths:
        name = InstrumentId(Symbol(path.stem), venue)
        instrument = Equity(
            instrument_id=name,
            raw_symbol=Symbol(path.stem),
            currency=USD,
            price_precision=4,
            price_increment=Price.from_str("0.0001"),
            lot_size=Quantity.from_int(1),
            ts_event=0,
            ts_init=0,
            maker_fee=Decimal(0),
            taker_fee=Decimal(0),
        )
        engine.add_instrument(instrument)
        bar_type = BarType.from_str(f"{name}-1-MINUTE-LAST-EXTERNAL")
        frame = read_frame(path)
        frame.index = frame.index.tz_localize("UTC")
        engine.add_data(BarDataWrangler(bar_type, instrument).process(frame))
        strategy = SmaCross(CrossConfig(instrument_id=name, bar_type=bar_type, order_id_tag=path.stem))
        strategies.append(strategy)
        engine.add_strategy(strategy)
    engine.run()
    value = float(engine.portfolio.account(venue).balance_total(USD))
    for strategy in strategies:
        value += sum(
            float(position.quantity) * float(engine.cache.bar(strategy.config.bar_type).close)
            for position in engine.cache.positions_open(instrument_id=strategy.config.instrument_id)
        )
    yield value, sum(strategy.fills for strategy in strategies)


ENGINES = {
    "stock": run_stock,
    "lean": run_lean,
    "back-trader-cpp": run_back_trader_cpp,
    "backtesting": run_backtesting,
    "nautilus": run_nautilus,
}


def main(engine: str, paths: list[Path]) -> int:
    """Run one engine over the files and print what came of it."""
    running = ENGINES[engine](paths)
    try:
        next(running)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return NOT_INSTALLED
    begun = time.perf_counter()
    value, fills = next(running)
    seconds = time.perf_counter() - begun
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "value": value, "fills": fills}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [Path(name) for name in sys.argv[2:]]))
