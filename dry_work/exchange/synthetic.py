"""A made-up trading day for trying things out. SYNTHETIC: no price in it was ever paid. Pure.

Only additions and multiplications of seeded uniform numbers are used, so that a day is the same on every machine. The
bars of an option follow from those that its stock has on that day, in whole cents.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.exchange.option_contracts import expiry_ns, parse_contract
from dry_work.exchange.option_prices import derive_bars
from dry_work.feeds.recorded import Recording
from dry_work.market.calendar import shared_calendar
from dry_work.market.symbols import is_crypto, is_option, parse_symbol

DAY_START_NS = 1_718_112_600 * 1_000_000_000  # Tuesday 2024-06-11, 09:30 in New York
SESSION_MINUTES = 390
SENTIMENT = "sentiment_score"

_MOST_MINUTES = DAY_NS // MINUTE_NS
_BASE_PRICES = {"SPY": 535.0, "IBM": 170.0, "BAC": 39.0, "AIG": 75.0, "BTC/USD": 67_000.0, "ETH/USD": 3_500.0}
_TREND_MINUTES = (25, 55)  # a trend lasts this long, then it turns
_TREND_STEP = (0.0002, 0.0005)  # of the price, a minute
_NOISE = 0.0006  # of the price, a minute
_GAP_CHANCES = (0.0, 0.02, 0.08)  # of a minute without a trade; each symbol has one of these


def synthetic_day(symbols: Sequence[str], *, seed: int = 7, minutes: int = 390) -> Recording:
    """Make up the minute bars of `symbols` for one day from 09:30 in New York (crypto too): a SYNTHETIC recording.

    Prices run in trends that turn every half hour or so. A symbol's bars depend on its name and `seed` alone, and a
    shorter day is the beginning of a longer one. Some symbols lack some minutes. Bars carry trade_count, vwap and the
    extra field `sentiment_score` in [-1, 1], which follows the trend with noise; those of options have no extra field.
    """
    if not 1 <= minutes <= _MOST_MINUTES:
        raise ConfigError(f"minutes of a synthetic day: {minutes} was given, 1 to {_MOST_MINUTES} are allowed")
    wanted = dict.fromkeys(parse_symbol(symbol) for symbol in symbols)
    if not wanted:
        raise ConfigError("no symbols asked for: name at least one")
    return Recording(
        {
            symbol: _derive(symbol, seed, minutes) if is_option(symbol) else _walk(symbol, seed, minutes)
            for symbol in wanted
        }
    )


def _derive(symbol: str, seed: int, minutes: int) -> dict[str, np.ndarray]:
    try:
        contract = parse_contract(symbol)
    except ValueError as error:
        raise ConfigError(f"{symbol}: there is no such date in the calendar") from error
    close_ns = expiry_ns(shared_calendar(), contract.expires)
    if close_ns <= DAY_START_NS:
        raise ConfigError(f"{symbol} ends before the synthetic day, 2024-06-11: name one that ends later")
    stock = _walk(contract.underlying, seed, min(minutes, SESSION_MINUTES))
    starts = stock["ts_event_ns"]
    made = derive_bars(contract, starts, stock, MINUTE_NS, close_ns)
    return {"ts_event_ns": starts, **made}


def _random(*parts: object) -> random.Random:
    """Return a generator that depends on `parts` alone, not on the process's hash seed."""
    digest = hashlib.sha256(" ".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def _noise(rng: random.Random) -> float:
    """Return a bell-shaped number in [-1, 1]."""
    return (rng.random() + rng.random() + rng.random()) * (2 / 3) - 1


def _trend_steps(rng: random.Random, minutes: int) -> list[float]:
    """Return for each minute the relative step of its trend."""
    steps: list[float] = []
    direction = 1 if rng.random() < 0.5 else -1
    while len(steps) < minutes:
        step = _TREND_STEP[0] + rng.random() * (_TREND_STEP[1] - _TREND_STEP[0])
        length = _TREND_MINUTES[0] + int(rng.random() * (_TREND_MINUTES[1] - _TREND_MINUTES[0] + 1))
        steps += [direction * step] * length
        direction = -direction
    return steps[:minutes]


def _walk(symbol: str, seed: int, minutes: int) -> dict[str, np.ndarray]:
    traits = _random("traits", symbol, seed)
    rng = _random("prices", symbol, seed)
    base = _BASE_PRICES.get(symbol) or 20 + traits.random() * (2_000 if is_crypto(symbol) else 280)
    gap_chance = _GAP_CHANCES[int(traits.random() * len(_GAP_CHANCES))]
    usual_volume = 2.0 + traits.random() * 10 if is_crypto(symbol) else 2_000 + traits.random() * 30_000
    steps = _trend_steps(_random("trends", symbol, seed), minutes)

    columns: dict[str, list[float]] = {
        name: [] for name in ("open", "high", "low", "close", "volume", "trade_count", "vwap", SENTIMENT)
    }
    starts: list[int] = []
    last = round(base, 2)
    for minute, step in enumerate(steps):
        # The same number of draws in every minute, also in one without a bar.
        drift, gap, above, below, size, mood = _noise(rng), rng.random(), *(rng.random() for _ in range(3)), _noise(rng)
        open_ = last
        close = max(round(open_ * (1 + step + _NOISE * drift), 2), 0.01)
        last = close
        if minute and gap < gap_chance:
            continue
        high = round(max(open_, close) * (1 + _NOISE * above / 2), 2)
        low = max(round(min(open_, close) * (1 - _NOISE * below / 2), 2), 0.01)
        # Busy at the open and towards the close, as a session is.
        volume = usual_volume * (0.5 + size) * (1.5 if minute < 30 or minute >= 360 else 1.0)
        starts.append(DAY_START_NS + minute * MINUTE_NS)
        columns["open"].append(open_)
        columns["high"].append(high)
        columns["low"].append(low)
        columns["close"].append(close)
        columns["volume"].append(round(volume, 4) if is_crypto(symbol) else float(int(volume)))
        columns["trade_count"].append(float(1 + int(20 + 200 * size)))
        columns["vwap"].append(round((open_ + high + low + close) / 4, 4))
        columns[SENTIMENT].append(round(max(-1.0, min(1.0, 1_500 * step + 0.5 * mood)), 3))
    return {"ts_event_ns": np.array(starts, dtype=np.int64)} | {
        name: np.array(values, dtype=np.float64) for name, values in columns.items()
    }
