"""Random orders of random kinds on random bars: both engines alike."""

from __future__ import annotations

import datetime as dt
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dry_work.backtest.verify import verify
from tests.parity import market

O = bt.Order  # noqa: E741 - the name stands in every line
BARS = 60

steps = st.fixed_dictionaries(
    {
        "bar": st.integers(1, BARS),
        "data": st.integers(0, 2),
        "act": st.sampled_from(["buy", "sell", "close", "cancel", "target", "bracket", "oco", "cash"]),
        "kind": st.integers(O.Market, O.StopTrailLimit),
        "size": st.one_of(st.integers(1, 60), st.floats(0.01, 40, allow_nan=False)),
        "away": st.integers(-30, 30),
        "valid": st.one_of(st.none(), st.integers(0, 12)),
        "pick": st.integers(0, 50),
    }
)
plans = st.lists(steps, min_size=5, max_size=40)
brokers = st.fixed_dictionaries(
    {
        "cash": st.sampled_from([900.0, 5_000.0, 100_000.0]),
        "commission": st.sampled_from([None, {"commission": 0.001}, {"commission": 1.5, "margin": 50.0, "mult": 3.0},
                                       {"commission": 0.0, "leverage": 3.0}, {"commission": 0.0003, "interest": 0.09}]),
        "slip": st.sampled_from([0.0, 0.0004]),
        "coc": st.booleans(),
        "checksubmit": st.booleans(),
        "shortcash": st.booleans(),
        "filler": st.sampled_from([None, 5]),
        "stdstats": st.booleans(),
    }
)  # fmt: skip
markets = st.tuples(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([0.0, 0.2, 0.7]), st.integers(1, 4))


class Planned(bt.Strategy):
    params = (("plan", ()), ("period", 3))

    def __init__(self) -> None:
        self.averages = [bt.ind.SMA(data, period=self.p.period) for data in self.datas]
        self.made: list[Any] = []

    def next(self) -> None:
        for step in self.p.plan:
            if step["bar"] == len(self):
                self.act(step)

    def act(self, step: dict[str, Any]) -> None:
        data = self.datas[step["data"] % len(self.datas)]
        price = round(data.close[0] * (1 + step["away"] / 10_000), 2)
        valid = None if step["valid"] is None else dt.timedelta(minutes=step["valid"])
        size, act = step["size"], step["act"]
        if act == "close":
            self.close(data)
        elif act == "cancel":
            if self.made:
                self.cancel(self.made[step["pick"] % len(self.made)])
        elif act == "target":
            self.order_target_percent(data, target=step["away"] / 40)
        elif act == "cash":
            self.broker.add_cash(step["away"] * 10.0)
        elif act == "bracket":
            ends = {"stopprice": price * 0.999, "limitprice": price * 1.001}
            self.made += self.buy_bracket(data, size=size, price=price, valid=valid, **ends)
        else:
            kind = step["kind"]
            more = {"plimit": price * 1.0003} if kind in (O.StopLimit, O.StopTrailLimit) else {}
            if kind in (O.StopTrail, O.StopTrailLimit):
                more |= {"trailamount": 0.1} if step["pick"] % 2 else {"trailpercent": 0.0008}
            oco = self.made[step["pick"] % len(self.made)] if act == "oco" and self.made else None
            make = self.sell if act == "sell" or step["pick"] % 3 == 0 else self.buy
            self.made.append(make(data, size=size, price=price, exectype=kind, valid=valid, oco=oco, **more))


def frames_of(seed: int, count: int, gaps: float) -> list[pd.DataFrame]:
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        # Not through the cache of named markets: there are many of these.
        frame = market.walk.__wrapped__(seed + i, BARS, price=float(rng.choice([0.9, 50.0, 127.9])), swing=0.05)
        frames.append(frame[rng.random(BARS) >= gaps] if gaps else frame)
    return [frame if len(frame) > 5 else market.walk(3, BARS) for frame in frames]


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(plan=plans, broker=brokers, made=markets)
def test_random_strategies_give_the_same_records(plan: Any, broker: Any, made: Any) -> None:
    seed, count, gaps, period = made
    frames = frames_of(seed, count, gaps)

    def build(engine: type[Any]) -> Any:
        cerebro = engine(stdstats=broker["stdstats"])
        for name, frame in zip("ABC", frames, strict=False):
            cerebro.adddata(market.feed(frame), name=name)
        cerebro.broker.setcash(broker["cash"])
        cerebro.broker.set_slippage_perc(broker["slip"])
        cerebro.broker.set_coc(broker["coc"])
        cerebro.broker.set_checksubmit(broker["checksubmit"])
        cerebro.broker.set_shortcash(broker["shortcash"])
        if broker["commission"]:
            cerebro.broker.setcommission(**broker["commission"])
        if broker["filler"]:
            cerebro.broker.set_filler(bt.fillers.FixedSize(size=broker["filler"]))
        cerebro.addanalyzer(bt.analyzers.TradeAnalyzer)
        cerebro.addstrategy(Planned, plan=plan, period=period)
        return cerebro

    report = verify(build)
    assert report.identical, str(report)
    assert not report.fallback, report.fallback
