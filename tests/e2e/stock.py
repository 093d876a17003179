"""The reference: a stock Cerebro with BackBroker on the same bars."""

from __future__ import annotations

from typing import Any

import backtrader as bt

from dry_work.feeds.base import line_time_ns
from dry_work.feeds.recorded import Recording
from dry_work.wire.pubsub import encode_time
from tests.unit.engine.sources import RecordedBars


class GuardedBroker(bt.brokers.BackBroker):
    """BackBroker that matches no limit or stop order against a bar that ended before the order was made."""

    def submit(self, order: Any, check: bool = True) -> Any:
        order.made_at = order.owner.lines.datetime[0]
        return super().submit(order, check)

    def _try_exec(self, order: Any) -> None:
        if order.exectype != bt.Order.Market and order.data.datetime[0] <= order.made_at:
            return
        super()._try_exec(order)


class Fills(bt.Analyzer):
    """Writes each execution down as `--json` does."""

    def start(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.bars: dict[str, int] = {}

    def notify_order(self, order: Any) -> None:
        if order.status not in (order.Partial, order.Completed):
            return
        for bit in order.executed.iterpending():
            self.rows.append(
                {
                    "time": encode_time(line_time_ns(bit.dt)),
                    "symbol": order.data._name,
                    "side": "buy" if bit.size > 0 else "sell",
                    "qty": abs(bit.size),
                    "price": bit.price,
                }
            )

    def stop(self) -> None:
        self.bars = {data._name: len(data) for data in self.strategy.datas}


class ScoredBars(RecordedBars):
    """A recorded feed whose extra column is a line."""

    lines = ("sentiment_score",)

    def _load(self) -> bool:
        if not self._left:
            return False
        score = self._left[0].extra.get("sentiment_score", float("nan"))
        loaded = super()._load()
        self.lines.sentiment_score[0] = score
        return loaded


def run_stock(
    strategy: type[Any], recording: Recording, *, params: dict[str, Any] | None = None, guarded: bool = False,
    cash: float = 100_000.0,
) -> tuple[list[dict[str, Any]], dict[str, int], float]:  # fmt: skip
    """Return fills, bars by symbol and the final value of a backtest in stock Backtrader."""
    cerebro = bt.Cerebro(stdstats=False)
    cerebro.setbroker(GuardedBroker() if guarded else bt.brokers.BackBroker())
    cerebro.broker.setcash(cash)
    for symbol in recording.symbols:
        feed = ScoredBars if recording.extra_fields(symbol) else RecordedBars
        cerebro.adddata(feed(bars=recording.bars(symbol)), name=symbol)
    cerebro.addstrategy(strategy, **(params or {}))
    cerebro.addanalyzer(Fills, _name="fills")
    [strat] = cerebro.run()
    return strat.analyzers.fills.rows, strat.analyzers.fills.bars, cerebro.broker.getvalue()
