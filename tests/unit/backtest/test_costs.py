from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backtrader as bt
import pytest

from dry_work.backtest.costs import (
    AlpacaFees,
    Costs,
    apply_costs,
    parse_commission,
    parse_fees,
    parse_slippage,
    parse_volume_share,
)
from dry_work.errors import ConfigError


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_commission, "0.1%", {"commission_of_value": 0.001}),
        (parse_commission, " 0.25 % ", {"commission_of_value": 0.0025}),
        (parse_commission, "0.005/share", {"commission_per_unit": 0.005}),
        (parse_commission, "0/share", {"commission_per_unit": 0.0}),
        (parse_slippage, "0.05%", {"slippage_of_price": 0.0005}),
        (parse_slippage, "0.01", {"slippage_amount": 0.01}),
        (parse_volume_share, "10%", {"volume_share": 0.1}),
        (parse_fees, "Alpaca", {"fees": "alpaca"}),
        (parse_fees, "none", {"fees": ""}),
    ],
)
def test_what_is_given_becomes_costs(
    parse: Callable[[str], dict[str, Any]], text: str, expected: dict[str, Any]
) -> None:
    assert parse(text) == pytest.approx(expected) if parse is not parse_fees else parse(text) == expected
    Costs(**parse(text))


@pytest.mark.parametrize(
    ("parse", "text", "option"),
    [
        (parse_commission, "0.001", "--commission '0.001': expected"),
        (parse_commission, "-1%", "--commission"),
        (parse_commission, "1/order", "--commission"),
        (parse_commission, "nan/share", "--commission"),
        (parse_slippage, "1.2.3%", "--slippage"),
        (parse_slippage, "-0.01", "--slippage"),
        (parse_volume_share, "0%", "--max-volume"),
        (parse_volume_share, "101%", "--max-volume"),
        (parse_volume_share, "0.5", "--max-volume"),
        (parse_fees, "ibkr", "--fees 'ibkr': expected alpaca or none"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(
    parse: Callable[[str], dict[str, Any]], text: str, option: str
) -> None:
    with pytest.raises(ConfigError, match=option):
        parse(text)


def test_every_assumption_is_told() -> None:
    assert Costs().describe() == {
        "commission": "none", "slippage": "none", "fees": "none", "fills": "whole orders",
    }  # fmt: skip
    told = Costs(commission_of_value=0.001, slippage_amount=0.01, volume_share=0.1, fees="alpaca").describe()
    assert told["commission"] == "0.1 % of the value"
    assert told["slippage"] == "0.01 of the price, within the bar"
    assert told["fills"] == "at most 10 % of a bar's volume"
    assert "0.25 % for crypto" in told["fees"]


def scheme(**params: Any) -> Any:
    kind: Any = AlpacaFees
    return kind(**params)


def test_alpacas_fees_of_stocks_fall_on_both_sides_and_more_on_sales() -> None:
    stocks = scheme(crypto=False)
    assert stocks.getcommission(1_000, 50.0) == pytest.approx(1_000 * 0.000046)
    sale = 1_000 * 0.000046 + 50_000 * 27.80e-6 + 1_000 * 0.000166
    assert stocks.getcommission(-1_000, 50.0) == pytest.approx(sale)
    capped = 100_000 * 0.000046 + 100_000 * 27.80e-6 + 8.30
    assert stocks.getcommission(-100_000, 1.0) == pytest.approx(capped)


def test_alpacas_fees_of_crypto_are_a_part_of_the_value() -> None:
    assert scheme(crypto=True).getcommission(-0.5, 60_000.0) == pytest.approx(75.0)


def test_costs_of_options_are_of_the_whole_value_or_by_the_contract() -> None:
    assert scheme(contract=100).getcommission(2, 5.0) == 0
    assert scheme(contract=100).getcommission(-2, 5.0) == pytest.approx(1_000 * 27.80e-6)
    assert scheme(contract=100, commission=0.001).getcommission(2, 5.0) == pytest.approx(1.0)
    assert scheme(contract=100, commission=0.65, per_unit=True).getcommission(2, 5.0) == pytest.approx(1.3)
    assert parse_commission("0.65/contract") == {"commission_per_unit": 0.65}
    broker: Any = bt.brokers.BackBroker()
    apply_costs(broker, Costs(fees="alpaca"), {"SPY": "SPY", "x": "SPY240621C00550000"})
    assert {name: info.p.contract for name, info in broker.comminfo.items() if name} == {"SPY": 1, "x": 100}


def test_a_commission_comes_on_top_of_the_fees() -> None:
    assert scheme(crypto=True, commission=0.001).getcommission(1, 100.0) == pytest.approx(0.1 + 0.25)
    assert scheme(crypto=True, commission=0.01, per_unit=True).getcommission(2, 100.0) == pytest.approx(0.02 + 0.5)


def test_each_data_gets_the_scheme_of_its_symbol() -> None:
    broker: Any = bt.brokers.BackBroker()
    apply_costs(broker, Costs(fees="alpaca"), {"SPY": "SPY", "SPY@5m": "SPY", "BTC/USD": "BTC/USD"})
    assert {name: info.p.crypto for name, info in broker.comminfo.items() if name} == {
        "SPY": False, "SPY@5m": False, "BTC/USD": True,
    }  # fmt: skip


def test_without_costs_a_broker_is_left_as_it_is() -> None:
    broker: Any = bt.brokers.BackBroker()
    apply_costs(broker, Costs(), {"SPY": "SPY"})
    assert list(broker.comminfo) == [None]
    assert broker.p.filler is None
    assert not broker.p.slip_perc
