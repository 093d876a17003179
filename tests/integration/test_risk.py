"""The risk gate at the real simulated exchange: each limit trips by its name, and nothing gets around it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.journal import Journal
from dry_work.exchange.synthetic import synthetic_day
from dry_work.orders.risk import RiskState
from dry_work.orders.risk_limits import Bound, LossAction, OnBreach, OpenOrders, RiskLimits, share

from .test_broker import run_broker

SYMBOLS = ("SPY", "BAC")


class Scripted(bt.Strategy):
    """Does what it is told at chosen bars, and keeps what it hears."""

    script: dict[int, Callable[[Any], Any]]

    def __init__(self) -> None:
        self.placed: dict[str, Any] = {}
        self.told: list[tuple[str, str]] = []
        self.states: list[str] = []
        self.bars = 0
        type(self).last = self

    def notify_order(self, order: Any) -> None:
        name = next((name for name, placed in self.placed.items() if placed.ref == order.ref), "")
        self.told.append((name, order.getstatusname()))

    def notify_store(self, message: Any, *args: Any, **_: Any) -> None:
        if message == "risk":
            self.states.append(args[0].state.value)

    def next(self) -> None:
        self.bars += 1
        action = self.script.get(self.bars)
        if action is not None:
            self.placed.update(action(self) or {})

    def heard(self, name: str) -> list[str]:
        return [status for told, status in self.told if told == name]


def play(tmp_path: Path, limits: RiskLimits, script: dict[int, Callable[[Any], Any]], *, minutes: int = 20) -> Any:
    """Return the strategy after a run with the limits."""
    strategy: Any = type("Playing", (Scripted,), {"script": script})
    _, broker, _ = run_broker(synthetic_day(SYMBOLS, minutes=minutes), strategy, tmp_path, risk=limits)
    strategy.last.broker_used = broker
    return strategy.last


def codes(strategy: Any) -> dict[str, str]:
    return {name: str(order.info.get("reject_code", "")) for name, order in strategy.placed.items()}


def equal_orders(count: int) -> Callable[[Any], Any]:
    return lambda s: {str(number): s.buy(size=1) for number in range(count)}


@pytest.mark.parametrize(
    ("limits", "action", "refused", "code"),
    [
        (RiskLimits(order_value=Bound(Decimal(10_000))), lambda s: {"a": s.buy(size=100)}, "a", "order_value"),
        (
            RiskLimits(position_value=share(60)),
            lambda s: {"a": s.buy(size=100), "b": s.buy(size=20)},
            "b",
            "position_value",
        ),
        (
            RiskLimits(gross_exposure=share(60)),
            lambda s: {"a": s.buy(data=s.datas[0], size=100), "b": s.sell(data=s.datas[1], size=300)},
            "b",
            "gross_exposure",
        ),
        (
            RiskLimits(orders_per_minute=2),
            lambda s: {name: s.buy(size=size) for size, name in enumerate("abc", 1)},
            "c",
            "orders_per_minute",
        ),
        (RiskLimits(repeated_orders=3), equal_orders(4), "3", "repeated_orders"),
        (
            RiskLimits(price_collar=Decimal("0.1")),
            lambda s: {"a": s.buy(size=1, exectype=bt.Order.Limit, price=s.data.close[0] * 1.2)},
            "a",
            "price_collar",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) > 1 else "",
)
def test_a_limit_per_order_trips_by_its_name(
    tmp_path: Path, limits: RiskLimits, action: Callable[[Any], Any], refused: str, code: str
) -> None:
    strategy = play(tmp_path, limits, {2: action}, minutes=6)
    found = codes(strategy)
    assert found.pop(refused) == f"risk_{code}"
    assert strategy.heard(refused) == ["Rejected"]
    assert set(found.values()) <= {""}
    assert all(strategy.heard(name)[-1] == "Completed" for name in found)
    assert strategy.placed[refused].info.reject_reason.startswith(f"risk limit {code}: ")


def lose(limits: RiskLimits, tmp_path: Path, **more: Callable[[Any], Any]) -> Any:
    """Hold both symbols until a hundred dollars are lost, with an entry and an exit waiting far from the market."""

    def open_(s: Any) -> dict[str, Any]:
        price = s.data.close[0]
        return {
            "long": s.buy(data=s.datas[0], size=10),
            "short": s.sell(data=s.datas[1], size=1000),
        } | {"entry": s.buy(size=10, exectype=bt.Order.Limit, price=round(price * 0.8, 2))}

    def protect(s: Any) -> dict[str, Any]:
        return {"exit": s.sell(size=10, exectype=bt.Order.Stop, price=round(s.data.close[0] * 0.8, 2))}

    script = {2: open_, 4: protect}
    script.update({int(at.removeprefix("at_")): action for at, action in more.items()})
    return play(tmp_path, limits, script, minutes=60)


def later(s: Any) -> dict[str, Any]:
    """Try everything that might get around a state: an entry, a turn, a bracket, a larger order, and an exit."""
    price = s.data.close[0]
    entry, stop, profit = s.buy_bracket(
        size=1, price=price * 0.9, limitprice=price * 1.1, stopprice=price * 0.8, exectype=bt.Order.Limit
    )
    found = {"buy": s.buy(size=1), "turn": s.sell(size=11), "bracket": entry, "stop": stop, "profit": profit}
    return found | {"close": s.buy(data=s.datas[1], size=1000)}


@pytest.mark.parametrize("name", ["day_loss", "drawdown"])
def test_a_limit_of_losses_lets_only_exits_through(tmp_path: Path, name: str) -> None:
    limits: dict[str, Any] = {"day_loss": None, "drawdown": None, name: Bound(Decimal(100))}
    strategy = lose(RiskLimits(**limits), tmp_path, at_50=later)
    assert strategy.states == ["reducing"]
    found = codes(strategy)
    assert {key for key, code in found.items() if code} == {"buy", "turn", "bracket", "stop", "profit"}
    assert {code for code in found.values() if code} == {"risk_reducing"}
    assert strategy.heard("entry")[-1] == "Canceled"
    assert strategy.heard("exit") == ["Submitted", "Accepted"]
    assert strategy.heard("close")[-1] == "Completed"
    assert strategy.bars == 60  # the run goes on
    journal = Journal(tmp_path / "orders.sqlite")
    assert [(record.state, record.who) for record in journal.risk_history()] == [(RiskState.REDUCING, f"limit:{name}")]
    journal.close()


@pytest.mark.parametrize(
    ("policy", "entry", "exit_"),
    [
        (OpenOrders.CANCEL_ENTRIES, "Canceled", "Accepted"),
        (OpenOrders.CANCEL_ALL, "Canceled", "Canceled"),
        (OpenOrders.KEEP, "Accepted", "Accepted"),
    ],
)
def test_a_halt_by_a_limit_deals_with_open_orders_as_told(
    tmp_path: Path, policy: OpenOrders, entry: str, exit_: str
) -> None:
    limits = RiskLimits(
        day_loss=Bound(Decimal(100)), loss_action=LossAction.HALT, on_breach=OnBreach.HOLD, open_orders=policy
    )
    strategy = lose(limits, tmp_path, at_50=later)
    assert strategy.states == ["halted"]
    found = codes(strategy)
    assert {key for key, code in found.items() if code} == {"buy", "turn", "bracket", "stop", "profit", "close"}
    assert {code for code in found.values() if code} == {"risk_halted"}
    assert (strategy.heard("entry")[-1], strategy.heard("exit")[-1]) == (entry, exit_)
    assert strategy.broker_used.risk.stopped_by is None  # it is to hold


def test_flattening_by_a_limit_leaves_nothing_and_then_halts(tmp_path: Path) -> None:
    limits = RiskLimits(drawdown=Bound(Decimal(100)), loss_action=LossAction.FLATTEN)
    strategy = lose(limits, tmp_path, at_50=later)
    assert strategy.states == ["flattening", "halted"]
    assert {code for code in codes(strategy).values() if code} == {"risk_halted"}
    assert strategy.heard("entry")[-1] == strategy.heard("exit")[-1] == "Canceled"
    broker = strategy.broker_used
    assert [broker.position_of(symbol) for symbol in SYMBOLS] == [0, 0]
    assert broker.get_orders_open() == []
    assert broker.risk.stopped_by.who == "limit:drawdown"
    assert "sell 10 SPY, buy 1000 BAC" in broker.risk.stopped_by.reason


def test_brackets_and_replacements_do_not_get_around_a_limit(tmp_path: Path) -> None:
    def bracket(s: Any) -> dict[str, Any]:
        price = s.data.close[0]
        placed = s.buy_bracket(
            size=30, price=price * 0.99, limitprice=price * 1.1, stopprice=price * 0.8, exectype=bt.Order.Limit
        )
        resting = s.buy(size=10, exectype=bt.Order.Limit, price=round(price * 0.9, 2))
        return {**dict(zip(("entry", "stop", "profit"), placed, strict=True)), "resting": resting}

    def enlarge(s: Any) -> None:
        assert not s.broker.replace(s.placed["resting"], size=40)
        assert not s.broker.replace(s.placed["resting"], price=s.data.close[0] * 1.5)

    limits = RiskLimits(position_value=Bound(Decimal(12_000)), price_collar=Decimal("0.2"))
    strategy = play(tmp_path, limits, {2: bracket, 4: enlarge}, minutes=8)
    found = codes(strategy)
    assert [found[name] for name in ("entry", "stop", "profit")] == ["risk_position_value"] * 3
    assert found["resting"] == ""
    assert strategy.placed["resting"].info.replace_code == "risk_price_collar"
    assert strategy.broker_used.counters["orders refused by the risk limit position_value"] == 2


def test_orders_that_are_placed_when_an_order_is_told_of_pass_the_gate_too(tmp_path: Path) -> None:
    """A strategy that answers every word on an order with two new orders."""

    class Echo(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.script = {2: lambda s: {"first": s.buy(size=1)}}

        def notify_order(self, order: Any) -> None:
            super().notify_order(order)
            for _ in range(2 if len(self.placed) < 200 else 0):
                number = len(self.placed)
                self.placed[str(number)] = self.buy(size=1, exectype=bt.Order.Limit, price=400.0 + number)

    limits = RiskLimits(orders_per_minute=3, price_collar=None)
    _, broker, session = run_broker(synthetic_day(("SPY",), minutes=16), Echo, tmp_path, risk=limits)
    found = codes(Echo.last)  # type: ignore[attr-defined]
    assert set(found.values()) == {"", "risk_orders_per_minute"}
    sent = [order["submitted_at"] for order in broker.results()[0] if order["status"] != "rejected"]
    assert max(sent.count(at) for at in sent) == 3  # a bar is a minute
    assert session["orders"] == len(sent)


def test_an_order_through_zero_is_judged_as_one_at_the_exchange(tmp_path: Path) -> None:
    def open_(s: Any) -> dict[str, Any]:
        return {"long": s.buy(size=10)}

    def turn(s: Any) -> dict[str, Any]:
        return {"too_much": s.sell(size=25), "enough": s.sell(size=20), "more": s.sell(size=1)}

    strategy: Any = type("Turning", (Scripted,), {"script": {2: open_, 5: turn, 8: lambda s: {"late": s.sell(size=4)}}})
    price = 535 * Decimal("1.05")
    limits = RiskLimits(position_value=Bound(price * 10))
    _, broker, _ = run_broker(
        synthetic_day(("SPY",), minutes=12), strategy, tmp_path, risk=limits, rules="alpaca", broker_rules="alpaca"
    )
    found = codes(strategy.last)
    refused = ("too_much", "more", "late")
    assert found == {"long": "", "enough": "", **dict.fromkeys(refused, "risk_position_value")}
    assert strategy.last.heard("enough") == ["Submitted", "Accepted", "Partial", "Completed"]
    assert broker.position_of("SPY") == -10
