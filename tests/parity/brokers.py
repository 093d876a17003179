"""Costs, fills and accounts."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import backtrader as bt

from dry_work.backtest.broker import BacktestBroker
from tests.parity import market
from tests.parity.orders import BUY, SELL, O, close_all, order, price
from tests.parity.scenario import Cross, acting, add, at, cerebro_of, crossing, every, scenario

FILLS = {"fills": 4}
BUSY = (
    (every(10, 2), BUY), (every(10, 7), close_all), (every(9, 4), SELL),
    (every(6, 1), order("buy", size=3, exectype=O.Limit, price=price(0.9997), valid=dt.timedelta(minutes=20))),
    (every(7, 2), order("sell", size=4, exectype=O.Stop, price=price(0.9995), valid=dt.timedelta(minutes=20))),
    (every(11, 3), order("sell", size=4, exectype=O.StopLimit, price=price(0.9996), plimit=price(0.9995),
                         valid=dt.timedelta(minutes=20))),
)  # fmt: skip


def account(name: str, tune: Any, *, lean: bool = True, least: dict[str, int] | None = None, **options: Any) -> None:
    add(f"brokers: {name}", acting(*BUSY, tune=tune, **options), lean=lean, least=least or FILLS)


# Slippage with every switch -----------------------------------------------------------------------------------------
for kind_name, opening, limit, match, out in itertools.product(
    ("perc", "fixed"), (True, False), (True, False), (True, False), (True, False)
):
    switches = {"slip_open": opening, "slip_limit": limit, "slip_match": match, "slip_out": out}
    on = [name.removeprefix("slip_") for name, value in switches.items() if value]

    def slip(cerebro: Any, kind_name: str = kind_name, switches: dict[str, bool] = switches) -> None:
        if kind_name == "perc":
            cerebro.broker.set_slippage_perc(0.0006, **switches)
        else:
            cerebro.broker.set_slippage_fixed(0.07, **switches)

    add(
        f"brokers: slippage {kind_name}, {' '.join(on) or 'nothing'}",
        acting(*BUSY, tune=slip, frames=[market.walk(bars=60)]), lean=True, least={"orders": 1},
    )  # fmt: skip

# Commissions --------------------------------------------------------------------------------------------------------
COMMISSIONS: dict[str, dict[str, Any]] = {
    "percent": {"commission": 0.001},
    "percent as an absolute": {
        "commission": 0.1,
        "percabs": False,
        "commtype": bt.CommInfoBase.COMM_PERC,
        "stocklike": True,
    },
    "fixed": {"commission": 0.35, "commtype": bt.CommInfoBase.COMM_FIXED, "stocklike": True},
    "futures": {"commission": 2.0, "margin": 200.0, "mult": 10.0},
    "futures with automatic margin": {"commission": 2.0, "mult": 10.0, "automargin": 5.0, "stocklike": False},
    "futures with leverage": {"commission": 2.0, "margin": 2000.0, "mult": 5.0, "leverage": 4.0},
    "leverage": {"commission": 0.0005, "leverage": 5.0},
    "interest on shorts": {"commission": 0.0005, "interest": 0.08},
    "interest on both": {"commission": 0.0005, "interest": 0.08, "interest_long": True},
}
for name, values in COMMISSIONS.items():
    frames = [market.days()] if "interest" in name else None
    account(f"commission, {name}", lambda c, values=values: c.broker.setcommission(**values), frames=frames)
    add(
        f"brokers: commission, {name}, two feeds with gaps",
        crossing(market.pair() if "interest" not in name else (market.days(4, gaps=0.2), market.days(5, gaps=0.2)),
                 tune=lambda c, values=values: c.broker.setcommission(**values)),
        lean=True, least=FILLS,
    )  # fmt: skip
account(
    "commission, futures refused for margin",
    lambda c: c.broker.setcommission(commission=2.0, margin=6000.0, mult=10.0), cash=40_000.0,
)  # fmt: skip
account("interest left out of the profit", lambda c: (c.broker.setcommission(commission=0.001, interest=0.1),
                                                      c.broker.set_int2pnl(False)), frames=[market.days()])  # fmt: skip


@scenario(lean=True, least=FILLS)
def commissions_per_name(engine: type[Any]) -> Any:
    cerebro = crossing(market.trio())(engine)
    cerebro.broker.setcommission(commission=0.001)
    cerebro.broker.setcommission(commission=1.5, margin=30.0, mult=2.0, name="B")
    cerebro.broker.setcommission(commission=0.2, commtype=bt.CommInfoBase.COMM_FIXED, stocklike=True, name="C")
    return cerebro


class Tiered(bt.CommInfoBase):
    params = (("stocklike", True), ("commtype", bt.CommInfoBase.COMM_PERC), ("percabs", True), ("least", 1.0))

    def _getcommission(self, size: float, price: float, pseudoexec: bool) -> float:
        return max(self.p.least, abs(size) * price * (0.001 if abs(size) < 8 else 0.0004))


class ByExecution(Tiered):
    """Counts what was executed, as brokers with volume tiers do."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0.0

    def confirmexec(self, size: float, price: float) -> None:
        self.done += abs(size)

    def _getcommission(self, size: float, price: float, pseudoexec: bool) -> float:
        return super()._getcommission(size, price, pseudoexec) / (1 + self.done / 100)


class HalfMargin(bt.CommInfoBase):
    params = (("stocklike", False), ("commission", 1.0), ("mult", 3.0))

    def get_margin(self, price: float) -> float:
        return price / 2

    def getoperationcost(self, size: float, price: float) -> float:
        return abs(size) * self.get_margin(price)


class OwnInterest(bt.CommInfoBase):
    params = (("stocklike", True), ("commission", 0.0005), ("interest", 0.05))

    def get_credit_interest(self, data: Any, pos: Any, dt: Any) -> float:
        return 0.01 * abs(pos.size)


for scheme in (Tiered, ByExecution, HalfMargin, OwnInterest):
    account(f"own commission scheme {scheme.__name__}", lambda c, scheme=scheme: c.broker.addcommissioninfo(scheme()))

# Switches -----------------------------------------------------------------------------------------------------------
SWITCHES = {
    "cheat on close": lambda c: c.broker.set_coc(True),
    "cheat on open of the broker": lambda c: c.broker.set_coo(True),
    "end of session bar": lambda c: c.broker.seteosbar(True),
    "no check at submit": lambda c: c.broker.set_checksubmit(False),
    "no short cash": lambda c: c.broker.set_shortcash(False),
    "fund mode": lambda c: c.broker.set_fundmode(True),
    "fund mode with a start value": lambda c: c.broker.set_fundmode(True, 10.0),
    "cash added before the run": lambda c: c.broker.add_cash(5000.0),
}
for name, switch in SWITCHES.items():
    account(name, switch)
    add(f"brokers: {name}, two feeds with gaps", crossing(market.pair(), tune=switch), lean=True, least=FILLS)
account("no check at submit, too little cash", lambda c: c.broker.set_checksubmit(False), cash=1500.0)
account("no short cash, too little cash", lambda c: c.broker.set_shortcash(False), cash=1500.0)
account("closing orders and end of session bars", lambda c: c.broker.seteosbar(True), frames=[market.days()])
add(
    "brokers: cheat on close, one order not",
    acting(
        (every(9, 1), order("buy", size=4, coc=False)), (every(9, 5), close_all), tune=lambda c: c.broker.set_coc(True)
    ),
    lean=True,
    least=FILLS,
)
add(
    "brokers: cash added and removed on the way",
    acting(
        *BUSY, (every(20, 3), lambda s: s.broker.add_cash(1000.0)), (every(30, 9), lambda s: s.broker.add_cash(-700.5))
    ),
    lean=True,
    least=FILLS,
)

# Fillers ------------------------------------------------------------------------------------------------------------
FILLERS = {
    "fixed size": bt.broker.fillers.FixedSize(size=4)
    if hasattr(bt.broker, "fillers")
    else bt.fillers.FixedSize(size=4),
    "percent of the bar": bt.fillers.FixedBarPerc(perc=1.0),
    "by the points of the bar": bt.fillers.BarPointPerc(minmov=0.01, perc=20.0),
    "own": lambda order, price, ago: min(abs(order.executed.remsize), 3),
    "nothing": lambda order, price, ago: 0,
}
for name, filler in FILLERS.items():
    account(
        f"filler, {name}", lambda c, filler=filler: c.broker.set_filler(filler),
        least={"orders": 10} if name == "nothing" else FILLS,
    )  # fmt: skip
add(
    "brokers: filler and cancelled parts",
    acting((every(15, 1), order("buy", size=50)), (every(15, 4), lambda s: s.cancel(s.kept[-1])),
           (every(30, 28), close_all), tune=lambda c: c.broker.set_filler(bt.fillers.FixedSize(size=7))),
    lean=True, least=FILLS,
)  # fmt: skip
add(
    "brokers: filler and an order that expires in part",
    acting((every(15, 1), order("buy", size=50, exectype=O.Limit, price=price(1.01), valid=dt.timedelta(minutes=4))),
           (every(30, 28), close_all), tune=lambda c: c.broker.set_filler(bt.fillers.FixedSize(size=7))),
    lean=True, least=FILLS,
)  # fmt: skip

# Other brokers ------------------------------------------------------------------------------------------------------
for guard in (True, False):

    def with_broker(cerebro: Any, guard: bool = guard) -> None:
        cerebro.setbroker(BacktestBroker(guard=guard, cash=100_000.0))

    for name, frames in (("one feed", None), ("three feeds with gaps", market.trio())):
        add(
            f"brokers: the backtest's broker, guard {'on' if guard else 'off'}, {name}",
            acting(*BUSY, frames=frames, tune=with_broker), lean=True, least=FILLS,
        )  # fmt: skip


class RoundingBroker(bt.brokers.BackBroker):
    """A user's own broker."""

    def _execute(self, order: Any, ago: Any = None, price: Any = None, **others: Any) -> Any:
        return super()._execute(order, ago=ago, price=None if price is None else round(price, 1), **others)


class CountingBroker(bt.brokers.BackBroker):
    """A user's own broker with work in every bar."""

    turns = 0

    def next(self) -> None:
        self.turns += 1
        if self.turns % 10 == 0:
            self.add_cash(1.25)
        super().next()


class LyingBroker(bt.brokers.BackBroker):
    """A user's own broker with other figures."""

    def get_value(self, datas: Any = None, mkt: bool = False, lever: bool = False) -> float:
        return super().get_value(datas, mkt, lever) * 2

    getvalue = get_value


for broker in (RoundingBroker, CountingBroker, LyingBroker):
    account(f"own broker {broker.__name__}", lambda c, broker=broker: c.setbroker(broker(cash=50_000.0)), lean=False)


class Asking(Cross):
    """Asks the broker everything, at every bar."""

    def next(self) -> None:
        super().next()
        broker = self.broker
        self.seen = [
            broker.getvalue(), broker.get_value(self.datas[:1]), broker.get_value(self.datas), broker.get_leverage(),
            broker.get_value(mkt=True), broker.get_value(lever=True), broker.get_value_lever(), broker.fundvalue,
            broker.fundshares, self.position.size, self.getposition(self.datas[-1]).price,
            len(broker.get_orders_open()),
            broker.getcommissioninfo(self.data).getsize(self.data.close[0], broker.getcash()),
        ]  # fmt: skip
        if len(self) % 10 == 0:
            self.order_target_percent(self.data, target=0.1 * (broker.get_leverage() or 1))
        self.buy(size=1 + abs(hash(tuple(self.seen[:9]))) % 3)


for name, frames in (("one feed", None), ("three feeds with gaps", market.trio())):
    add(f"brokers: asked everything, {name}", crossing(frames, strategy=Asking), lean=True, least=FILLS)


class Late(Cross):
    """Looks at the account for the first time late, and after its own orders."""

    def next(self) -> None:
        super().next()
        if len(self) % 17 == 0:
            self.buy(size=1)
            self.sell(size=int(self.broker.getvalue()) % 5 + 1)
            if self.stats is not None and len(self) % 34 == 0:
                self.order_target_value(self.datas[-1], target=self.broker.getvalue() / 50)


for name, frames in (("one feed", None), ("three feeds with gaps", market.trio())):
    add(f"brokers: asked late, {name}", crossing(frames, strategy=Late), lean=True, least=FILLS)


@scenario(lean=False, least=FILLS)
def a_fund_history(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, [market.days()], runonce=False)
    history = [
        (dt.datetime(2021, 2, 25 if i < 4 else 26, 15 + i % 4), 10.0 + i / 10, 50_000.0 + 100 * i) for i in range(8)
    ]
    cerebro.set_fund_history(history)
    cerebro.addstrategy(Cross)
    return cerebro


@scenario(lean=True, least=FILLS)
def one_data_compensates_another(engine: type[Any]) -> Any:
    cerebro = acting(
        (every(12, 1), BUY), (every(12, 6), lambda s: s.sell(data=s.data1, size=10)), frames=market.pair()
    )(engine)
    cerebro.datas[1].compensate(cerebro.datas[0])
    return cerebro


@scenario(lean=True, least=FILLS)
def a_trade_history(engine: type[Any]) -> Any:
    return acting(*BUSY, tradehistory=True)(engine)


@scenario(lean=True, least=FILLS)
def quick_notifications(engine: type[Any]) -> Any:
    return acting(*BUSY, quicknotify=True)(engine)


@scenario(lean=True, least={"fills": 1})
def a_price_of_zero(engine: type[Any]) -> Any:
    frame = market.walk(5, price=0.4, swing=0.05, decimals=2)
    return acting((every(9, 1), BUY), (every(9, 5), close_all), (at(30), order("sell", size=5)), frames=[frame])(engine)
