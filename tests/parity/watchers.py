"""Analyzers, observers and writers."""

from __future__ import annotations

import io
from typing import Any

import backtrader as bt

from tests.parity import market
from tests.parity.orders import BUY, close_all
from tests.parity.scenario import Cross, acting, add, crossing, every

MINUTES, DAYS, WEEKS, MONTHS = bt.TimeFrame.Minutes, bt.TimeFrame.Days, bt.TimeFrame.Weeks, bt.TimeFrame.Months
YEARS, NONE = bt.TimeFrame.Years, bt.TimeFrame.NoTimeFrame
A = bt.analyzers
SESSIONS = (market.days(2, 6, 12),)
GAPS = (market.days(2, 6, 12, gaps=0.25), market.days(3, 6, 12, gaps=0.25))
LONG = (market.daily(bars=330),)

ANALYZERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "Calmar": (A.Calmar, {"timeframe": DAYS, "period": 3}),
    "DrawDown": (A.DrawDown, {}),
    "DrawDown of the fund": (A.DrawDown, {"fund": True}),
    "TimeDrawDown": (A.TimeDrawDown, {}),
    "TimeDrawDown by day": (A.TimeDrawDown, {"timeframe": DAYS}),
    "TimeDrawDown by hour, fund": (A.TimeDrawDown, {"timeframe": MINUTES, "compression": 60, "fund": True}),
    "GrossLeverage": (A.GrossLeverage, {}),
    "GrossLeverage of the fund": (A.GrossLeverage, {"fund": True}),
    "LogReturnsRolling": (A.LogReturnsRolling, {"timeframe": DAYS}),
    "LogReturnsRolling over 5 minutes": (A.LogReturnsRolling, {"timeframe": MINUTES, "compression": 5}),
    "PeriodStats by day": (A.PeriodStats, {"timeframe": DAYS}),
    "PeriodStats by minute, zero is positive": (A.PeriodStats, {"timeframe": MINUTES, "zeroispos": True}),
    "PositionsValue": (A.PositionsValue, {}),
    "PositionsValue with headers and cash": (A.PositionsValue, {"headers": True, "cash": True}),
    "PyFolio": (A.PyFolio, {}),
    "PyFolio by minute": (A.PyFolio, {"timeframe": MINUTES}),
    "Returns": (A.Returns, {"timeframe": DAYS}),
    "Returns, annualised by a number": (A.Returns, {"timeframe": DAYS, "tann": 252, "fund": True}),
    "SharpeRatio by day": (A.SharpeRatio, {"timeframe": DAYS, "annualize": True}),
    "SharpeRatio by hour": (
        A.SharpeRatio,
        {"timeframe": MINUTES, "compression": 60, "factor": 1700, "convertrate": False},
    ),
    "SharpeRatio of a sample": (A.SharpeRatio, {"timeframe": DAYS, "stddev_sample": True, "riskfreerate": 0.0}),
    "SharpeRatio_A": (A.SharpeRatio_A, {"timeframe": DAYS}),
    "SQN": (A.SQN, {}),
    "TimeReturn": (A.TimeReturn, {}),
    "TimeReturn by day": (A.TimeReturn, {"timeframe": DAYS}),
    "TimeReturn by hour": (A.TimeReturn, {"timeframe": MINUTES, "compression": 60}),
    "TimeReturn in all": (A.TimeReturn, {"timeframe": NONE}),
    "TimeReturn by week, fund": (A.TimeReturn, {"timeframe": WEEKS, "fund": True}),
    "TradeAnalyzer": (A.TradeAnalyzer, {}),
    "Transactions": (A.Transactions, {}),
    "Transactions with headers": (A.Transactions, {"headers": True}),
    "VWR": (A.VWR, {"timeframe": DAYS}),
    "VWR with options": (A.VWR, {"timeframe": DAYS, "tau": 0.1, "sdev_max": 1.5, "tann": 252, "fund": True}),
}
LONGER: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "Calmar by month": (A.Calmar, {}),
    "PeriodStats by year": (A.PeriodStats, {}),
    "Returns by month": (A.Returns, {"timeframe": MONTHS}),
    "SharpeRatio by year": (A.SharpeRatio, {}),
    "TimeReturn by year": (A.TimeReturn, {"timeframe": YEARS}),
    "VWR by year": (A.VWR, {"timeframe": YEARS}),
}
SEEN = {"analyzers": 1, "analyzer_values": 1, "fills": 2}


def watched(name: str, tune: Any, *, lean: bool = True, least: dict[str, int] | None = None, **options: Any) -> None:
    raised = options.pop("raised", "")
    frames = options.pop("frames", SESSIONS)
    options.setdefault("size", 60)
    add(f"watchers: {name}", crossing(frames, tune=tune, **options), lean=lean, least=SEEN if least is None else least,
        raised=raised)  # fmt: skip


for name, (analyzer, options) in ANALYZERS.items():

    def with_one(cerebro: Any, analyzer: Any = analyzer, options: Any = options) -> None:
        cerebro.addanalyzer(analyzer, **options)

    watched(f"analyzer {name}", with_one)
for name, (analyzer, options) in LONGER.items():

    def with_long(cerebro: Any, analyzer: Any = analyzer, options: Any = options) -> None:
        cerebro.broker.setcash(5000.0)
        cerebro.addanalyzer(analyzer, **options)

    def over_years(engine: type[Any], with_long: Any = with_long) -> Any:
        return crossing(feeds=lambda: [market.feed(LONG[0], timeframe=DAYS)], tune=with_long, slow=21)(engine)

    add(f"watchers: analyzer {name}", over_years, lean=True, least=SEEN)


def with_all(cerebro: Any) -> None:
    for name, (analyzer, options) in ANALYZERS.items():
        cerebro.addanalyzer(analyzer, _name=name.replace(" ", "_"), **options)


watched("all analyzers at once", with_all)
watched("all analyzers at once, two feeds with gaps", with_all, frames=GAPS)
watched("all analyzers at once, prenext is next", with_all, frames=GAPS, prenext=True)
watched("all analyzers at once, in fund mode", lambda c: (with_all(c), c.broker.set_fundmode(True)))
watched("all analyzers at once, no trade", with_all, slow=70, fast=69, least={"analyzers": len(ANALYZERS)})
watched("an analyzer twice under one name", lambda c: [c.addanalyzer(A.SQN, _name="same") for _ in range(2)])
watched("TimeReturn of a data", lambda c: c.addanalyzer(A.TimeReturn, timeframe=DAYS, data=c.datas[0]))
watched("TimeReturn of a data, not from its open", lambda c: c.addanalyzer(
    A.TimeReturn, timeframe=DAYS, data=c.datas[1], firstopen=False), frames=GAPS)  # fmt: skip
watched("LogReturnsRolling of a data", lambda c: c.addanalyzer(A.LogReturnsRolling, timeframe=DAYS, data=c.datas[0]))
watched("AnnualReturn with default observers", lambda c: c.addanalyzer(A.AnnualReturn), stdstats=True, lean=True)
watched(
    "AnnualReturn without its observers", lambda c: c.addanalyzer(A.AnnualReturn), raised="AttributeError", least={}
)
watched(
    "SharpeRatio of old with default observers",
    lambda c: c.addanalyzer(A.SharpeRatio, legacyannual=True), stdstats=True, lean=True, raised="ZeroDivisionError",
    least={},
)  # fmt: skip


class Everything(bt.Analyzer):
    """Keeps what it is told, in the order of telling."""

    def __init__(self) -> None:
        self.inner = A.TimeReturn(timeframe=DAYS)

    def start(self) -> None:
        self.rets["told"] = [("start", len(self))]

    def prenext(self) -> None:
        self.rets["told"].append(("prenext", len(self), len(self.data)))

    def nextstart(self) -> None:
        self.rets["told"].append(("nextstart", len(self), self.data.close[0]))

    def next(self) -> None:
        self.rets["told"].append(("next", len(self), self.data.close[0], self.strategy.broker.getvalue()))

    def notify_order(self, order: Any) -> None:
        self.rets["told"].append(("order", order.ref, order.status, order.executed.price))

    def notify_trade(self, trade: Any) -> None:
        self.rets["told"].append(("trade", trade.ref, trade.status, trade.pnlcomm))

    def notify_cashvalue(self, cash: float, value: float) -> None:
        self.rets["told"].append(("cash", cash, value))

    def notify_fund(self, cash: float, value: float, fundvalue: float, shares: float) -> None:
        self.rets["told"].append(("fund", cash, value, fundvalue, shares))

    def stop(self) -> None:
        self.rets["told"].append(("stop", len(self), self.inner.get_analysis()))


class OnlyOrders(bt.Analyzer):
    def notify_order(self, order: Any) -> None:
        self.rets[order.ref, order.status] = (order.data.datetime.datetime(), order.executed.size)


class MoreDrawDown(A.DrawDown):
    def next(self) -> None:
        super().next()
        self.rets.seen = self.rets.get("seen", 0) + 1


class HasNoAnalysis(bt.Analyzer):
    def get_analysis(self) -> Any:
        raise KeyError("nothing")


watched("own analyzer without an analysis", lambda c: c.addanalyzer(HasNoAnalysis), raised="KeyError", least={})
for analyzer in (Everything, OnlyOrders, MoreDrawDown):
    for number, frames in (("one feed", SESSIONS), ("two feeds with gaps", GAPS)):
        watched(f"own analyzer {analyzer.__name__}, {number}", lambda c, a=analyzer: c.addanalyzer(a), frames=frames)

# Observers -----------------------------------------------------------------------------------------------------------
OBSERVED = {"observer_values": 50, "fills": 2}
for number, frames in (("one feed", SESSIONS), ("two feeds with gaps", GAPS)):
    watched(f"default observers, {number}", lambda c: None, stdstats=True, frames=frames, least=OBSERVED, lean=True)
    watched(
        f"default observers, prenext is next, {number}",
        lambda c: None, stdstats=True, frames=frames, least=OBSERVED, prenext=True, lean=True,
    )  # fmt: skip
O = bt.observers  # noqa: E741 - the name stands in every line
OBSERVERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "Benchmark": (O.Benchmark, {"timeframe": DAYS}),
    "Broker": (O.Broker, {}),
    "Broker of the fund": (O.Broker, {"fund": True}),
    "BuySell": (O.BuySell, {}),
    "BuySell with bars": (O.BuySell, {"barplot": True, "bardist": 0.02}),
    "Cash": (O.Cash, {}),
    "DrawDown": (O.DrawDown, {}),
    "DrawDownLength": (O.DrawDownLength, {}),
    "DrawDown_Old": (O.DrawDown_Old, {}),
    "FundShares": (O.FundShares, {}),
    "FundValue": (O.FundValue, {}),
    "LogReturns": (O.LogReturns, {"timeframe": DAYS}),
    "LogReturns2": (O.LogReturns2, {"timeframe": DAYS}),
    "TimeReturn": (O.TimeReturn, {"timeframe": DAYS}),
    "TimeReturn in all": (O.TimeReturn, {"timeframe": NONE}),
    "Trades": (O.Trades, {}),
    "DataTrades": (O.DataTrades, {}),
    "DataTrades without names": (O.DataTrades, {"usenames": False}),
    "Value": (O.Value, {}),
    "Value of the fund": (O.Value, {"fund": True}),
}
for name, (observer, options) in OBSERVERS.items():
    multi = name.startswith("BuySell")
    for number, frames in (("one feed", SESSIONS), ("two feeds with gaps", GAPS)):
        if number == "one feed" and name == "LogReturns2":
            continue  # it is of two
        if number != "one feed" and name in ("LogReturns", "Cash", "FundShares", "DrawDown_Old", "TimeReturn in all"):
            continue

        def observed(cerebro: Any, observer: Any = observer, options: Any = options, multi: bool = multi) -> None:
            (cerebro.addobservermulti if multi else cerebro.addobserver)(observer, **options)

        watched(f"observer {name}, {number}", observed, frames=frames, least=OBSERVED, lean=True)
watched("Benchmark of another data", lambda c: c.addobserver(O.Benchmark, data=c.datas[1], timeframe=DAYS), frames=GAPS,
        least=OBSERVED, lean=True)  # fmt: skip


class OrderCount(bt.observer.Observer):
    """A user's own observer."""

    lines = ("created", "filled")

    def next(self) -> None:
        for order in self._owner._orderspending:
            line = self.lines.created if order.status == order.Accepted else self.lines.filled
            line[0] = order.created.price
        self._owner.seen_by_observer = len(self)


watched("own observer", lambda c: c.addobserver(OrderCount), least=OBSERVED, lean=True)


class LooksAtStats(Cross):
    """Trades by what an observer shows."""

    def next(self) -> None:
        super().next()
        if self.stats.drawdown.drawdown[0] > 0.01 and len(self) % 4 == 0:
            self.buy(size=1)
        if self.stats.broker.value[0] > 100_000.0 and len(self) % 5 == 0:
            self.sell(size=1)
        if len(self) % 20 == 0 and self.analyzers.drawdown.get_analysis().max.drawdown > 0.005:
            self.close()


watched(
    "a strategy that looks at observers and analyzers",
    lambda c: (c.addobserver(O.DrawDown), c.addanalyzer(A.DrawDown)),
    stdstats=True, strategy=LooksAtStats, least=OBSERVED, lean=True,
)  # fmt: skip

# Writers -------------------------------------------------------------------------------------------------------------
for csv in (False, True):
    for number, frames in (("one feed", SESSIONS), ("two feeds with gaps", GAPS)):

        def written(cerebro: Any, csv: bool = csv) -> None:
            cerebro.addwriter(bt.WriterFile, out=io.StringIO(), csv=csv, rounding=6)
            cerebro.addanalyzer(A.TradeAnalyzer)

        watched(f"writer {'with' if csv else 'without'} csv, {number}", written, frames=frames, lean=True)
watched(
    "writer of text, default observers",
    lambda c: c.addwriter(bt.WriterStringIO, csv=True), stdstats=True, lean=True, least=OBSERVED,
)  # fmt: skip

# Everything together -------------------------------------------------------------------------------------------------


def all_of_it(cerebro: Any) -> None:
    with_all(cerebro)
    for observer, options in OBSERVERS.values():
        cerebro.addobserver(observer, **options)
    cerebro.addwriter(bt.WriterStringIO, csv=True)


watched("analyzers, observers and a writer", all_of_it, stdstats=True, frames=GAPS, lean=True)
add(
    "watchers: analyzers of partial fills",
    acting((every(15, 1), BUY), (every(15, 8), close_all),
           tune=lambda c: (with_all(c), c.broker.set_filler(bt.fillers.FixedSize(size=4)))),
    lean=True, least=SEEN,
)  # fmt: skip
