"""Orders of every kind."""

from __future__ import annotations

import datetime as dt
from typing import Any

import backtrader as bt

from tests.parity import market
from tests.parity.scenario import Acts, acting, add, at, every, scenario

O = bt.Order  # noqa: E741 - the name stands in every line
FILLS = {"orders": 2, "fills": 2}


def near(strategy: Any, factor: float) -> float:
    return round(strategy.data.close[0] * factor, 2)


def order(side: str, **fixed: Any) -> Any:
    """Return an act that makes an order; callables among its values are given the strategy."""

    def act(strategy: Any) -> None:
        values = {name: value(strategy) if callable(value) else value for name, value in fixed.items()}
        strategy.kept.append(getattr(strategy, side)(**values))

    return act


def price(factor: float) -> Any:
    return lambda strategy: near(strategy, factor)


def close_all(strategy: Any) -> None:
    strategy.close()


def cancel_last(strategy: Any) -> None:
    if strategy.kept:
        strategy.cancel(strategy.kept[-1])


BUY, SELL = order("buy", size=10), order("sell", size=10)
EXIT = (every(25, 20), close_all)


def kind(name: str, *acts: Any, **options: Any) -> None:
    least = options.pop("least", FILLS)
    options.setdefault("lean", True)
    lean = options.pop("lean")
    add(f"orders: {name}", acting(*acts, **options), lean=lean, least=least)


kind("market, long", (every(10, 2), BUY), (every(10, 7), close_all))
kind("market, short", (every(10, 2), SELL), (every(10, 7), close_all))
kind("market, flips", (every(10, 2), order("buy", size=20)), (every(10, 7), order("sell", size=30)))
kind("market, growing and shrinking", (every(4, 1), BUY), (every(9, 1), order("sell", size=13)))
kind("market, several at one bar", (every(8, 1), BUY), (every(8, 1), SELL), (every(8, 1), order("buy", size=3)))
kind("market, size of the default sizer", (every(8, 1), order("buy")), (every(8, 5), order("sell")))
kind("size zero", (every(8, 1), order("buy", size=0)), (every(8, 5), BUY), least={"orders": 10})
kind("negative size", (every(8, 1), order("buy", size=-5)), (every(8, 5), order("sell", size=-5)))
kind("fractional sizes", (every(8, 1), order("buy", size=0.37)), (every(8, 5), order("sell", size=0.21)))
kind("close", (every(9, 1), order("buy", size=5, exectype=O.Close)), (every(9, 6), close_all), frames=[market.days()])
kind(
    "close with a session end",
    (every(9, 1), order("buy", size=5, exectype=O.Close)), (every(9, 6), order("sell", size=4, exectype=O.Close)),
    feeds=lambda: [market.feed(market.days(), sessionend=dt.time(17, 0))],
)  # fmt: skip
for side, sign in (("buy", -1), ("sell", 1)):
    for cents in (1, 2, 5):
        below, above = price(1 + sign * cents / 5000), price(1 - sign * cents / 5000)
        kind(
            f"{side} limit, {cents} steps away", (every(6, 1), order(side, size=7, exectype=O.Limit, price=below)), EXIT
        )
        kind(
            f"{side} limit, {cents} steps through",
            (every(6, 1), order(side, size=7, exectype=O.Limit, price=above)),
            EXIT,
        )
        kind(f"{side} stop, {cents} steps away", (every(6, 1), order(side, size=7, exectype=O.Stop, price=above)), EXIT)
    further, nearer = price(1 - sign * 0.001), price(1 - sign * 0.0004)
    for name, plimit in (("limit behind", nearer), ("limit beyond", further)):
        kind(
            f"{side} stop limit, {name}",
            (every(6, 1), order(side, size=7, exectype=O.StopLimit, price=price(1 - sign * 0.0007), plimit=plimit)),
            EXIT,
        )
    kind(f"{side} stop without a price", (every(6, 1), order(side, size=7, exectype=O.Stop)), EXIT)
    kind(f"{side} limit without a price", (every(6, 1), order(side, size=7, exectype=O.Limit)), EXIT)
    kind(f"{side} trailing amount", (every(12, 1), order(side, size=7, exectype=O.StopTrail, trailamount=0.1)), EXIT)
    kind(
        f"{side} trailing percent", (every(12, 1), order(side, size=7, exectype=O.StopTrail, trailpercent=0.001)), EXIT
    )
    kind(
        f"{side} trailing with a first price",
        (every(12, 1), order(side, size=7, exectype=O.StopTrail, price=price(1 - sign * 0.0005), trailamount=0.12)),
        EXIT,
    )
    kind(
        f"{side} trailing limit",
        (every(12, 1), order(side, size=7, exectype=O.StopTrailLimit, price=price(1), plimit=price(1 - sign * 0.001),
                             trailamount=0.1)),
        EXIT,
    )  # fmt: skip
    kind(
        f"{side} trailing limit percent",
        (every(12, 1), order(side, size=7, exectype=O.StopTrailLimit, price=price(1), plimit=price(1 + sign * 0.001),
                             trailpercent=0.0008)),
        EXIT,
    )  # fmt: skip

VALID = {
    "a number": lambda s: 0.004, "a number that is over": -0.1, "an integer": 1,
    "a date": lambda s: s.data.datetime.date() + dt.timedelta(days=1), "a date that is over": dt.date(2021, 1, 1),
    "a datetime": lambda s: s.data.datetime.datetime() + dt.timedelta(minutes=4),
    "a timedelta": dt.timedelta(minutes=3), "a day": O.DAY, "zero": 0,
}  # fmt: skip
for name, valid in VALID.items():
    far = order("buy", size=7, exectype=O.Limit, price=price(0.999), valid=valid)
    kind(
        f"valid for {name}", (every(6, 1), far), (every(5, 2), order("sell", size=3, valid=valid)), EXIT,
        least={"orders": 20}, frames=[market.walk()] if "day" not in name else [market.days()],
    )  # fmt: skip

kind("margin refusal", (every(6, 1), order("buy", size=100)), (every(30, 29), close_all), cash=30_000.0)
kind("margin refusal of everything", (every(6, 1), BUY), cash=10.0, least={"orders": 10})
kind(
    "margin at the execution",
    (every(20, 1), order("buy", size=98)), (every(20, 1), order("sell", size=1, exectype=O.Limit, price=price(1.001))),
    (every(20, 2), order("buy", size=4, exectype=O.Limit, price=price(0.9995))), (every(20, 19), close_all),
    cash=10_000.0,
)  # fmt: skip
kind("target size", (every(5, 1), lambda s: s.order_target_size(target=(len(s) % 7) * 4 - 10)))
kind("target value", (every(5, 1), lambda s: s.order_target_value(target=(len(s) % 7) * 900.0 - 2000)))
kind("target percent", (every(5, 1), lambda s: s.order_target_percent(target=(len(s) % 7) / 10 - 0.25)))
kind("target zero", (every(9, 1), BUY), (every(9, 5), lambda s: s.order_target_percent(target=0.0)))
kind("trade ids", *[(every(7, i), order("buy", size=4, tradeid=i)) for i in range(3)],
     *[(every(7, 3 + i), order("sell", size=4, tradeid=i)) for i in range(3)])  # fmt: skip
kind("close with a size", (every(9, 1), BUY), (every(9, 5), lambda s: s.close(size=3)))
kind("notes on orders", (every(9, 1), order("buy", size=2, reason="why not", weight=0.5)), (every(9, 5), close_all))

LIMIT = order("buy", size=7, exectype=O.Limit, price=price(0.9985))
kind("cancelled in the bar of making", (every(6, 1), LIMIT), (every(6, 1), cancel_last), (every(9, 2), BUY), EXIT)
kind("cancelled a bar later", (every(6, 1), LIMIT), (every(6, 2), cancel_last), (every(9, 2), BUY), EXIT)
kind("cancelled some bars later, twice", (every(8, 1), LIMIT), (every(8, 4), cancel_last), (every(8, 4), cancel_last),
     (every(9, 2), BUY), EXIT)  # fmt: skip
kind("cancelled after the fill", (every(6, 1), BUY), (every(6, 4), cancel_last), EXIT)
kind("market cancelled at once", (every(6, 1), BUY), (every(6, 1), cancel_last), EXIT)


class CancelsWhenAccepted(Acts):
    def notify_order(self, order: Any) -> None:
        if order.status == order.Accepted and order.ref % 2:
            self.cancel(order)
        if order.status == order.Completed and order.isbuy() and self.position.size > 30:
            self.sell(size=5, exectype=O.Limit, price=order.executed.price + 0.05)


kind("cancelled when accepted", (every(4, 1), LIMIT), (every(6, 2), BUY), EXIT, strategy=CancelsWhenAccepted)


class BuysWhenClosed(Acts):
    def notify_trade(self, trade: Any) -> None:
        if trade.isclosed:
            self.buy(size=1 + trade.ref % 3)


kind("made when a trade closes", (at(3), BUY), (every(5, 1), close_all), strategy=BuysWhenClosed)


class BuysBeforeTheMinimum(Acts):
    def prenext(self) -> None:
        if len(self) % 4 == 2:
            self.kept.append(self.buy(size=3))

    def nextstart(self) -> None:
        self.close()
        self.next()

    def stop(self) -> None:
        self.kept.append(self.buy(size=1))


kind("made in prenext, nextstart and stop", (every(7, 1), BUY), wait=20, strategy=BuysBeforeTheMinimum)


class BuysAtTheStart(Acts):
    def start(self) -> None:
        self.kept.append(self.buy(size=3))


kind("made in start", (every(7, 1), BUY), EXIT, strategy=BuysAtTheStart)

# Brackets -----------------------------------------------------------------------------------------------------------


def bracket(side: str, **fixed: Any) -> Any:
    def act(strategy: Any) -> None:
        values = {name: value(strategy) if callable(value) else value for name, value in fixed.items()}
        strategy.kept.extend(each for each in getattr(strategy, f"{side}_bracket")(**values) if each is not None)

    return act


for side, sign in (("buy", 1), ("sell", -1)):
    ends = {"stopprice": price(1 - sign * 0.0015), "limitprice": price(1 + sign * 0.0015)}
    kind(f"{side} bracket", (every(12, 1), bracket(side, size=5, price=price(1 - sign * 0.0002), **ends)))
    kind(f"{side} bracket at market", (every(12, 1), bracket(side, size=5, exectype=O.Market, **ends)))
    tight = {"stopprice": price(1 - sign * 0.0004), "limitprice": price(1 + sign * 0.0004)}
    kind(f"{side} bracket, tight", (every(3, 1), bracket(side, size=5, exectype=O.Market, **tight)))
    kind(f"{side} bracket without limit", (every(12, 1), bracket(side, size=5, price=price(1), limitexec=None, **ends)))
    kind(f"{side} bracket without stop", (every(12, 1), bracket(side, size=5, price=price(1), stopexec=None, **ends)))
    kind(
        f"{side} bracket with a trailing stop",
        (
            every(12, 1),
            bracket(side, size=5, exectype=O.Market, stopexec=O.StopTrail, stopargs={"trailamount": 0.15}, **ends),
        ),
    )
    kind(
        f"{side} bracket that is valid for minutes",
        (every(12, 1), bracket(side, size=5, price=price(1 - sign * 0.001), valid=dt.timedelta(minutes=5), **ends)),
        least={"orders": 6},
    )
    kind(
        f"{side} bracket refused for margin",
        (every(12, 1), bracket(side, size=5000, exectype=O.Market, **ends)), (every(7, 1), BUY), cash=20_000.0,
    )  # fmt: skip
for number, name in enumerate(("stop", "limit", "main")):
    kind(
        f"bracket with its {name} cancelled",
        (every(12, 1), bracket("buy", size=5, price=price(0.9998), stopprice=price(0.9985), limitprice=price(1.0015))),
        (every(12, 4), lambda s, number=number: s.cancel(s.kept[-(2 - number) if number < 2 else -3])),
        (every(20, 19), close_all),
    )


@scenario(lean=True, least=FILLS)
def parents_and_children_by_hand(engine: type[Any]) -> Any:
    def act(s: Any) -> None:
        main = s.buy(size=4, exectype=O.Limit, price=near(s, 1.0001), transmit=False)
        low = s.sell(size=4, exectype=O.Stop, price=near(s, 0.999), parent=main, transmit=False)
        high = s.sell(size=4, exectype=O.Limit, price=near(s, 1.001), parent=main, transmit=True)
        s.kept.extend((main, low, high))

    return acting((every(9, 1), act))(engine)


@scenario(lean=True, least={"orders": 1, "fills": 1})
def an_order_that_is_never_transmitted(engine: type[Any]) -> Any:
    return acting((at(5), order("buy", size=4, transmit=False)), (at(9), BUY))(engine)


@scenario(lean=True, least=FILLS)
def a_child_whose_parent_is_over(engine: type[Any]) -> Any:
    def child(s: Any) -> None:
        s.sell(size=1, parent=s.kept[0], exectype=O.Limit, price=near(s, 1.0))

    return acting((every(15, 1), BUY), (every(15, 5), child))(engine)


@scenario(lean=True, least=FILLS)
def one_cancels_others(engine: type[Any]) -> Any:
    def act(s: Any) -> None:
        first = s.buy(size=4, exectype=O.Limit, price=near(s, 0.999))
        s.buy(size=5, exectype=O.Stop, price=near(s, 1.001), oco=first)
        s.buy(size=6, exectype=O.Limit, price=near(s, 0.9995), oco=first)

    return acting((every(14, 1), act), EXIT)(engine)


@scenario(lean=True, least=FILLS)
def one_cancels_others_in_a_chain(engine: type[Any]) -> Any:
    def act(s: Any) -> None:
        last = None
        for factor in (0.9993, 0.9995, 1.0004):
            last = s.sell(size=4, exectype=O.Limit if factor > 1 else O.Stop, price=near(s, factor), oco=last)
        s.kept.append(last)

    return acting((every(14, 1), act), (every(28, 4), cancel_last), EXIT)(engine)


@scenario(lean=True, least={"orders": 4, "fills": 4})
def one_cancels_others_filled_at_one_bar(engine: type[Any]) -> Any:
    def act(s: Any) -> None:
        first = s.buy(size=4)
        s.buy(size=5, oco=first)
        s.sell(size=2, exectype=O.Limit, price=near(s, 0.99), oco=first)

    return acting((every(14, 1), act), EXIT)(engine)


@scenario(lean=True, least={"orders": 2, "fills": 2})
def the_first_and_the_last_bar(engine: type[Any]) -> Any:
    last = len(market.walk())
    return acting((at(1), BUY), (at(last - 1), BUY), (at(last), BUY))(engine)


@scenario(lean=True, least=FILLS)
def every_kind_at_once(engine: type[Any]) -> Any:
    def act(exectype: int) -> Any:
        fixed: dict[str, Any] = {"exectype": exectype, "price": price(1 + (exectype - 3) / 4000)}
        if exectype in (O.StopLimit, O.StopTrailLimit):
            fixed["plimit"] = price(1 + (exectype - 3) / 3000)
        if exectype in (O.StopTrail, O.StopTrailLimit):
            fixed["trailamount"] = 0.1
        side = "buy" if exectype % 2 else "sell"
        return order(side, size=exectype + 1, valid=dt.timedelta(minutes=15), **fixed)

    return acting(*[(every(11, exectype), act(exectype)) for exectype in range(O.Historical)])(engine)


HISTORY = [(dt.datetime(2021, 3, 1, 14, 40), 10, 100.0), (dt.datetime(2021, 3, 1, 15, 5), -4, 100.5),
           ("2021-03-01T15:20:00", -6, 99.25)]  # fmt: skip
for notify in (True, False):
    add(
        f"orders: a history of orders, {'told' if notify else 'not told'} of",
        acting((every(30, 1), BUY), tune=lambda c, notify=notify: c.add_order_history(HISTORY, notify=notify)),
        lean=True,
        least=FILLS,
    )
