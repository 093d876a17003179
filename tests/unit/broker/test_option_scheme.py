"""A contract is worth, gains and loses 100 times its price, on every broker."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import backtrader as bt
import pytest
from backtrader.position import Position

from dry_work.backtest.broker import BacktestBroker
from dry_work.backtest.costs import CostScheme
from dry_work.broker.option_scheme import OptionScheme, fit_scheme
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.exchange.account import BacktraderAccount

CALL = "SPY240621C00550000"


class Data:
    def __init__(self, name: str) -> None:
        self._name = name


def test_values_gains_and_costs_are_those_of_a_hundred_shares() -> None:
    scheme: Any = fit_scheme(bt.CommissionInfo(commission=0.01), Data(CALL), {})
    assert isinstance(scheme, OptionScheme)
    assert scheme.getvaluesize(-2, 5.0) == -1_000
    assert scheme.getoperationcost(-2, 5.0) == 1_000
    assert scheme.profitandloss(2, 5.0, 5.5) == 100
    assert scheme.getsize(5.0, 1_700.0) == 3
    assert scheme.getvalue(Position(2, 5.0), 6.0) == 1_200
    assert scheme.getvalue(Position(-2, 5.0), 6.0) == -800, "as Backtrader values what is sold short"
    assert scheme.getcommission(2, 5.0) == pytest.approx(10.0)
    assert fit_scheme(bt.CommissionInfo(mult=100, commission=0.01), Data(CALL), {}).profitandloss(2, 5, 6) == 200
    fixed: Any = CostScheme
    by_contract = fit_scheme(fixed(commission=0.65, per_unit=True, contract=100), Data(CALL), {})
    assert by_contract.getcommission(-2, 5.0) == pytest.approx(1.3)
    of_value = fit_scheme(fixed(commission=0.01, contract=100), Data(CALL), {})
    assert of_value.getcommission(-2, 5.0) == pytest.approx(10.0)


class Own(bt.CommissionInfo):  # type: ignore[misc]
    def getvaluesize(self, size: float, price: float) -> float:
        return size * price * 10


@pytest.mark.parametrize(
    ("scheme", "name"),
    [(bt.CommissionInfo(), "SPY"), (bt.CommissionInfo(), "BTC/USD"), (bt.CommissionInfo(margin=500.0, mult=50), CALL),
     (Own(), CALL)],
)  # fmt: skip
def test_other_datas_and_schemes_with_a_valuation_of_their_own_are_left_alone(scheme: Any, name: str) -> None:
    assert fit_scheme(scheme, Data(name), {}) is scheme


@pytest.mark.parametrize("kind", [BacktestBroker, AlpacaPaperTradingBroker])
def test_every_broker_gives_its_options_the_same_scheme_each_time(kind: Any) -> None:
    given = {} if kind is BacktestBroker else {"api_key": "k", "secret_key": "s"}
    broker = kind(**given)
    call = Data(CALL)
    found = broker.getcommissioninfo(call)
    assert isinstance(found, OptionScheme)
    assert broker.getcommissioninfo(call) is found
    assert not isinstance(broker.getcommissioninfo(Data("SPY")), OptionScheme)
    broker.setcommission(commission=0.001, mult=100, name=CALL)
    renewed = broker.getcommissioninfo(call)
    assert renewed.getvaluesize(1, 2.0) == 200
    assert renewed.getcommission(1, 2.0) == pytest.approx(0.2)


def test_the_exchange_pays_for_contracts_as_the_scheme_does() -> None:
    rng, account, cash = random.Random(4), BacktraderAccount(Decimal(100_000)), 100_000.0
    scheme: Any = fit_scheme(bt.CommissionInfo(), Data(CALL), {})
    position = Position()
    refusals = 0
    for _ in range(300):
        size, price = rng.choice((-9, -3, -1, 1, 4, 30, 70)), round(rng.uniform(8, 30), 2)
        before = position.price
        _, _, opened, closed = position.pseudoupdate(size, price)
        after = cash
        if closed:
            after += scheme.getvaluesize(-closed, before) + scheme.profitandloss(-closed, before, price)
            cash = after
        pays = after - scheme.getvaluesize(opened, price) >= 0 if opened else True
        check = account.begin_check().take(CALL, Decimal(size), Decimal(repr(price)))
        executed, refused = account.execute(CALL, Decimal(size), Decimal(repr(price)))
        assert refused == (not pays)
        assert check or refused or closed
        refusals += refused
        if opened and pays:
            cash -= scheme.getvaluesize(opened, price)
        done = closed + (opened if pays else 0)
        assert float(executed) == done
        if done:
            position.update(done, price)
        assert account._float_cash == cash
        assert float(account.cash) == pytest.approx(cash)
    assert 5 < refusals < 250
