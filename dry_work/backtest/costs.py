"""What a backtest charges: commission, slippage, fees, and how much of a bar's volume an order may take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import backtrader as bt
import msgspec

from dry_work.errors import ConfigError
from dry_work.market.symbols import contract_size, is_crypto

# Alpaca's published rates of July 2025 (docs.alpaca.markets, "Regulatory Fees" and "Crypto Fees"); regulators change
# theirs about twice a year. Alpaca rounds a day's sum up to a cent, which is left out here.
SEC_FEE_OF_VALUE = 27.80e-6  # of what is sold
TAF_PER_SHARE = 0.000166  # sold
TAF_MOST = 8.30  # of one execution
CAT_PER_SHARE = 0.000046  # bought or sold
CRYPTO_TAKER_OF_VALUE = 0.0025  # of the lowest volume tier


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What is charged; nothing by default."""

    commission_of_value: float = 0.0  # fraction of what is traded
    commission_per_unit: float = 0.0  # dollars a share or coin
    slippage_of_price: float = 0.0  # fraction of the price
    slippage_amount: float = 0.0  # dollars
    volume_share: float = 0.0  # an order takes at most this part of a bar's volume; 0: all it wants
    fees: str = ""  # "" or "alpaca"

    def describe(self) -> dict[str, str]:
        """Return each assumption in words."""
        found = {"commission": "none", "slippage": "none", "fees": "none", "fills": "whole orders"}
        if self.commission_of_value:
            found["commission"] = f"{self.commission_of_value * 100:g} % of the value"
        elif self.commission_per_unit:
            found["commission"] = f"{self.commission_per_unit:g} a share or coin"
        if self.slippage_of_price:
            found["slippage"] = f"{self.slippage_of_price * 100:g} % of the price, within the bar"
        elif self.slippage_amount:
            found["slippage"] = f"{self.slippage_amount:g} of the price, within the bar"
        if self.fees:
            found["fees"] = "Alpaca's: SEC, TAF and CAT for stocks, 0.25 % for crypto, taken in money"
        if self.volume_share:
            found["fills"] = f"at most {self.volume_share * 100:g} % of a bar's volume"
        return found


def parse_commission(text: str) -> dict[str, float]:
    """Return the fields of `Costs` that `0.1%` (of the value) or `0.005/share` sets.

    Raises:
        ConfigError: when it is neither.
    """
    percent = _parse_percent(text)
    if percent is not None:
        return {"commission_of_value": percent}
    match = re.fullmatch(r"(.+)/(share|unit|coin|contract)", text.strip())
    amount = _parse_amount(match[1]) if match else None
    if amount is None:
        raise ConfigError(f"--commission {text!r}: expected a part of the value such as 0.1%, or 0.005/share")
    return {"commission_per_unit": amount}


def parse_slippage(text: str) -> dict[str, float]:
    """Return the fields of `Costs` that `0.05%` (of the price) or `0.01` (dollars) sets.

    Raises:
        ConfigError: when it is neither.
    """
    percent = _parse_percent(text)
    if percent is not None:
        return {"slippage_of_price": percent}
    amount = _parse_amount(text)
    if amount is None:
        raise ConfigError(f"--slippage {text!r}: expected a part of the price such as 0.05%, or dollars such as 0.01")
    return {"slippage_amount": amount}


def parse_volume_share(text: str) -> dict[str, float]:
    """Return the field of `Costs` that `10%` sets.

    Raises:
        ConfigError: when it is no percentage above 0 and up to 100.
    """
    percent = _parse_percent(text)
    if percent is None or not 0 < percent <= 1:
        raise ConfigError(f"--max-volume {text!r}: expected a part of each bar's volume above 0, such as 10%")
    return {"volume_share": percent}


def parse_fees(text: str) -> dict[str, str]:
    """Return the field of `Costs` that `alpaca` or `none` sets.

    Raises:
        ConfigError: when it is neither.
    """
    word = text.strip().lower()
    if word not in ("alpaca", "none"):
        raise ConfigError(f"--fees {text!r}: expected alpaca or none")
    return {"fees": "" if word == "none" else word}


def apply_costs(broker: Any, costs: Costs, names: Mapping[str, str]) -> None:
    """Set commission, slippage and filler of a BackBroker.

    Args:
        broker: takes the settings.
        costs: what is charged.
        names: the symbol of each data, by the data's name.
    """
    if costs.commission_of_value or costs.commission_per_unit or costs.fees:
        scheme: Any = AlpacaFees if costs.fees else CostScheme
        rate = costs.commission_of_value or costs.commission_per_unit
        for name, symbol in names.items():
            broker.addcommissioninfo(
                scheme(
                    commission=rate,
                    per_unit=bool(costs.commission_per_unit),
                    crypto=is_crypto(symbol),
                    contract=contract_size(symbol),
                ),
                name=name,
            )
    # Beyond the bar's range nobody traded: the price is moved as far as the range goes.
    limits = {"slip_open": True, "slip_limit": True, "slip_match": True, "slip_out": False}
    if costs.slippage_of_price:
        broker.set_slippage_perc(costs.slippage_of_price, **limits)
    elif costs.slippage_amount:
        broker.set_slippage_fixed(costs.slippage_amount, **limits)
    if costs.volume_share:
        broker.set_filler(bt.broker.fillers.FixedBarPerc(perc=costs.volume_share * 100))


class CostScheme(bt.CommInfoBase):
    """A part of the value, or an amount for each share, coin or contract.

    `contract` is how many times its price a unit is worth: 100 for an option.
    """

    params = (
        ("per_unit", False),
        ("crypto", False),
        ("contract", 1),
        ("stocklike", True),
        ("commtype", bt.CommInfoBase.COMM_PERC),
        ("percabs", True),
    )

    def _getcommission(self, size: float, price: float, pseudoexec: bool) -> float:
        rate = float(self.p.commission)
        return abs(size) * rate if self.p.per_unit else abs(size) * rate * price * self.p.contract


class AlpacaFees(CostScheme):
    """What Alpaca passes on to its customers, on top of a commission.

    Stocks: SEC fee and TAF on sales, CAT on both sides. Options: the SEC fee alone; what exchanges, the OCC and FINRA
    take by the contract is left out. Crypto: the taker's rate of the lowest tier, in money; Alpaca
    takes it from the coins on a purchase.
    """

    def _getcommission(self, size: float, price: float, pseudoexec: bool) -> float:
        commission = super()._getcommission(size, price, pseudoexec)
        units = abs(size)
        if self.p.crypto:
            return commission + units * price * CRYPTO_TAKER_OF_VALUE
        if self.p.contract > 1:
            return commission + (units * price * self.p.contract * SEC_FEE_OF_VALUE if size < 0 else 0.0)
        fee = units * CAT_PER_SHARE
        if size < 0:
            fee += units * price * SEC_FEE_OF_VALUE + min(units * TAF_PER_SHARE, TAF_MOST)
        return commission + fee


def _parse_percent(text: str) -> float | None:
    match = re.fullmatch(r"([0-9.]+)\s*%", text.strip())
    amount = _parse_amount(match[1]) if match else None
    return None if amount is None else amount / 100


def _parse_amount(text: str) -> float | None:
    try:
        amount = float(text)
    except ValueError:
        return None
    return amount if math.isfinite(amount) and amount >= 0 else None
