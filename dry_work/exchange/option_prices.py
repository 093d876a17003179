"""What a synthetic option costs: the Black-Scholes price of its underlying's bars. SYNTHETIC: nobody paid it. Pure.

A stock has one volatility, which follows from its symbol; the rate is 4 %. Prices are in whole cents, at least one.
A quote stands one per cent, at least a cent, to both sides of the price.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dry_work.clock import DAY_NS
from dry_work.exchange.option_contracts import OptionContract

Floats = NDArray[np.float64]

RATE = 0.04
_YEAR_NS = 365 * DAY_NS
_VOLATILITIES = (0.18, 0.6)
_SHARES_A_CONTRACT = 500  # of the underlying's volume, for each contract that is traded
_CENT = 0.01
_HALF_SPREAD = 0.01
_erf = np.frompyfunc(math.erf, 1, 1)


class Greeks(msgspec.Struct, frozen=True):
    """Sensitivities of a price: a year's theta and vega are given a day and a per cent, as quoting systems do."""

    delta: float
    gamma: float
    rho: float
    theta: float
    vega: float


def volatility_of(underlying: str) -> float:
    """Return the yearly volatility that a stock's options are priced with."""
    share = int.from_bytes(hashlib.sha256(f"volatility {underlying}".encode()).digest()[:4], "big") / 2**32
    low, high = _VOLATILITIES
    return round(low + share * (high - low), 4)


def _cumulate(values: Floats) -> Floats:
    return 0.5 * (1 + np.asarray(_erf(values / math.sqrt(2)), dtype=np.float64))


def price_options(contract: OptionContract, prices: Floats, left_ns: Floats) -> Floats:
    """Return a share's price for each price of the stock and the nanoseconds that are left; unrounded."""
    strike, sigma = float(contract.strike), volatility_of(contract.underlying)
    years = np.maximum(left_ns, 0.0) / _YEAR_NS
    sign = 1.0 if contract.is_call else -1.0
    intrinsic = np.maximum(sign * (prices - strike), 0.0)
    width = sigma * np.sqrt(years)
    is_alive = width > 0
    safe = np.where(is_alive, width, 1.0)
    above = (np.log(prices / strike) + RATE * years) / safe + safe / 2
    discounted = strike * np.exp(-RATE * years)
    value = sign * (prices * _cumulate(sign * above) - discounted * _cumulate(sign * (above - safe)))
    return np.where(is_alive, np.maximum(value, intrinsic), intrinsic)


def to_cents(values: Floats) -> Floats:
    """Round prices to whole cents, at least one."""
    return np.maximum(np.round(values * 100), 1.0) / 100


def derive_bars(
    contract: OptionContract, times: NDArray[np.int64], columns: Mapping[str, Any], length_ns: int, close_ns: int
) -> dict[str, Floats]:
    """Return a contract's bars from those of its stock, which start at `times` and last `length_ns`."""
    at_start = np.asarray(close_ns - times, dtype=np.float64)
    at_end = at_start - length_ns
    opens = to_cents(price_options(contract, np.asarray(columns["open"], dtype=np.float64), at_start))
    others = [
        to_cents(price_options(contract, np.asarray(columns[name], dtype=np.float64), at_end))
        for name in ("high", "low", "close")
    ]
    closes = others[2]
    highs = np.maximum.reduce([opens, *others])
    lows = np.minimum.reduce([opens, *others])
    volume = np.maximum(np.floor(np.asarray(columns["volume"], dtype=np.float64) / _SHARES_A_CONTRACT), 1.0)
    return {
        "open": opens,
        "high": highs,
        "low": lows,
        "close": closes,
        "volume": volume,
        "trade_count": np.ones(len(times)),
        "vwap": np.round((opens + highs + lows + closes) / 4, 4),
    }


def quote_around(price: float) -> tuple[float, float]:
    """Return bid and ask around a price; the bid of a cent is 0, which means none."""
    half = max(round(price * _HALF_SPREAD, 2), _CENT)
    return max(round(price - half, 2), 0.0), round(price + half, 2)


def compute_greeks(contract: OptionContract, price: float, left_ns: int) -> Greeks | None:
    """Return the sensitivities at a price of the stock; None when the contract is at its end."""
    years = left_ns / _YEAR_NS
    if years <= 0:
        return None
    strike, sigma = float(contract.strike), volatility_of(contract.underlying)
    width = sigma * math.sqrt(years)
    above = (math.log(price / strike) + RATE * years) / width + width / 2
    below = above - width
    density = math.exp(-above * above / 2) / math.sqrt(2 * math.pi)
    sign = 1.0 if contract.is_call else -1.0
    chance = 0.5 * (1 + math.erf(sign * below / math.sqrt(2)))
    discounted = strike * math.exp(-RATE * years)
    delta = sign * 0.5 * (1 + math.erf(sign * above / math.sqrt(2)))
    theta = -price * density * sigma / (2 * math.sqrt(years)) - sign * RATE * discounted * chance
    return Greeks(
        delta=round(delta, 6),
        gamma=round(density / (price * width), 6),
        rho=round(sign * discounted * years * chance / 100, 6),
        theta=round(theta / 365, 6),
        vega=round(price * density * math.sqrt(years) / 100, 6),
    )
