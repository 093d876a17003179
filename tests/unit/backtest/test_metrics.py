from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.backtest.metrics import build_metrics
from dry_work.backtest.series import build_series
from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS
from dry_work.engine.result import EquityCurve
from dry_work.feeds.recorded import Recording
from dry_work.wire.pubsub import parse_time

from .results import MONDAY_NS, fill, recording_of, result_of, traded

DAILY = {"SPY": [100.0, 101.0, 99.0, 102.0, 104.0, 103.0, 106.0]}


def end_of(bar: int, length_ns: int = DAY_NS) -> int:
    return MONDAY_NS + (bar + 1) * length_ns


def test_returns_and_risk_of_a_known_curve() -> None:
    recording = recording_of(DAILY, length_ns=DAY_NS)
    values = [100_000.0, 101_000.0, 99_990.0, 102_989.7, 101_959.803, 105_018.6, 107_118.97]
    metrics = build_metrics(result_of(recording, values), recording)
    returns = np.array([values[0] / 100_000.0, *np.array(values[1:]) / np.array(values[:-1])]) - 1
    assert metrics.returns.total == pytest.approx(0.0711897)
    assert metrics.returns.annual == pytest.approx(1.0711897 ** (252 / 7) - 1)
    assert metrics.returns.volatility == pytest.approx(returns.std(ddof=1) * 252**0.5)
    assert metrics.returns.sharpe == pytest.approx(returns.mean() / returns.std(ddof=1) * 252**0.5)
    downside = np.sqrt(np.mean(np.minimum(returns, 0) ** 2))
    assert metrics.returns.sortino == pytest.approx(returns.mean() / downside * 252**0.5)
    assert metrics.returns.max_drawdown == pytest.approx(0.01)
    assert metrics.returns.calmar == pytest.approx((1.0711897 ** (252 / 7) - 1) / 0.01)
    assert metrics.returns.best_day == pytest.approx(returns.max())
    assert metrics.returns.worst_day == pytest.approx(returns.min())
    assert (metrics.period.days, metrics.period.slices, metrics.period.days_a_year) == (7, 7, 252)
    assert (metrics.period.start_ns, metrics.period.end_ns) == (MONDAY_NS, end_of(6))


def test_figures_agree_with_those_of_the_result() -> None:
    rng = np.random.default_rng(4)
    recording = recording_of({"SPY": [100.0] * 500}, length_ns=3 * HOUR_NS)
    result = result_of(recording, (100_000 * np.exp(np.cumsum(rng.normal(0, 0.01, 500)))).tolist())
    metrics = build_metrics(result, recording)
    assert metrics.returns.total == pytest.approx(result.equity.total_return)
    assert metrics.returns.max_drawdown == pytest.approx(result.equity.max_drawdown)
    assert metrics.drawdown.depth == pytest.approx(result.equity.max_drawdown)
    assert metrics.returns.sharpe == pytest.approx(result.equity.sharpe)


def test_a_year_of_crypto_alone_has_365_days_and_says_so() -> None:
    values = [100_000.0, 101_000.0, 100_500.0]
    by_symbols = {}
    for symbols in (("BTC/USD", "ETH/USD"), ("BTC/USD", "SPY")):
        recording = recording_of({symbol: [10.0, 11.0, 12.0] for symbol in symbols}, length_ns=DAY_NS)
        by_symbols[symbols] = build_metrics(result_of(recording, values), recording)
    crypto, mixed = by_symbols.values()
    assert (crypto.period.days_a_year, mixed.period.days_a_year) == (365, 252)
    assert crypto.returns.sharpe == pytest.approx((mixed.returns.sharpe or 0) * (365 / 252) ** 0.5)
    assert "365 days a year (every symbol is a crypto pair)" in crypto.to_json()["period"]["annualisation"]
    assert "252 days a year (trading days)" in mixed.to_json()["period"]["annualisation"]


def test_the_deepest_drawdown_has_a_peak_a_trough_and_an_end() -> None:
    recording = recording_of({"SPY": [1.0] * 6}, length_ns=DAY_NS)
    drawdown = build_metrics(result_of(recording, [101e3, 99e3, 90e3, 100e3, 101e3, 95e3]), recording).drawdown
    assert drawdown.depth == pytest.approx(11 / 101)
    assert (drawdown.peak_ns, drawdown.trough_ns, drawdown.recovery_ns) == (end_of(0), end_of(2), end_of(4))
    assert drawdown.length_ns == 4 * DAY_NS


def test_a_drawdown_from_the_first_value_begins_with_the_first_bar_and_may_not_end() -> None:
    recording = recording_of({"SPY": [1.0] * 3}, length_ns=DAY_NS)
    drawdown = build_metrics(result_of(recording, [99e3, 98e3, 99e3]), recording).drawdown
    assert (drawdown.peak_ns, drawdown.trough_ns, drawdown.recovery_ns) == (MONDAY_NS, end_of(1), None)
    assert drawdown.length_ns == 3 * DAY_NS


def test_exposure_follows_positions_and_prices() -> None:
    recording = recording_of({"SPY": [100.0, 110.0, 120.0, 120.0], "IBM": [50.0] * 4})
    ends = recording.slice_ends().tolist()
    fills = [
        fill(ends[1], "buy", 100, 110.0),
        fill(ends[2], "sell", 200, 50.0, "IBM"),
        fill(ends[3], "sell", 100, 120.0),
        fill(ends[3], "buy", 200, 50.0, "IBM"),
    ]
    result = traded(recording, fills)
    series = build_series(result, recording)
    assert series.long == pytest.approx([0, 11_000 / 100_000, 12_000 / 101_000, 0])
    assert series.short == pytest.approx([0, 0, -10_000 / 101_000, 0])
    exposure = build_metrics(result, recording).exposure
    assert exposure.time_in_market == 0.5
    assert exposure.gross == pytest.approx((0.11 + 22 / 101) / 4)
    assert exposure.gross_max == pytest.approx(22 / 101)
    assert exposure.net == pytest.approx((0.11 + 2 / 101) / 4)
    assert exposure.traded_value == 11_000 + 10_000 + 12_000 + 10_000
    assert exposure.turnover == pytest.approx(43_000 / np.mean([100_000, 100_000, 101_000, 101_000]))


def test_a_symbol_that_begins_later_is_money_until_then() -> None:
    recording = recording_of({"SPY": [100.0, 110.0, 120.0, 130.0], "IBM": [50.0, 75.0]}, offsets={"IBM": 2})
    metrics = build_metrics(result_of(recording), recording)
    assert metrics.benchmark.symbols == pytest.approx({"SPY": 0.3, "IBM": 0.5})
    assert metrics.benchmark.basket.total == pytest.approx(0.4)
    assert build_series(result_of(recording), recording).basket == pytest.approx([100e3, 105e3, 110e3, 140e3])


def test_bars_outside_of_the_run_count_for_nothing() -> None:
    recording = recording_of({"SPY": [100.0, 110.0, 120.0, 130.0, 10.0]})
    result = result_of(recording)
    assert result.curve is not None
    part = EquityCurve(end_ns=result.curve.end_ns[1:4], value=result.curve.value[1:4])
    run = result_of(recording, curve=part, symbols=("SPY", "NONE"))
    metrics = build_metrics(run, recording)
    assert metrics.benchmark.symbols == {"SPY": pytest.approx(130 / 110 - 1), "NONE": None}


def test_alpha_and_beta_of_half_the_basket_are_nought_and_a_half() -> None:
    rng = np.random.default_rng(1)
    steps = rng.normal(0, 0.01, 60)
    closes = 100 * np.cumprod(1 + steps)
    recording = recording_of({"SPY": closes.tolist()}, length_ns=DAY_NS)
    first = 100_000.0
    values = first * np.cumprod(np.concatenate([[1.0], 1 + steps[1:] / 2]))
    benchmark = build_metrics(result_of(recording, values.tolist()), recording).benchmark
    assert benchmark.beta == pytest.approx(0.5)
    assert benchmark.alpha == pytest.approx(0.0, abs=1e-9)


def test_figures_of_trades() -> None:
    recording = recording_of({"SPY": [100.0] * 10})
    ends = recording.slice_ends().tolist()
    rows = [
        ("buy", 100.0),
        ("sell", 110.0),
        ("sell", 100.0),
        ("buy", 96.0),
        ("buy", 100.0),
        ("sell", 98.0),
        ("buy", 99.0),
    ]
    fills = [fill(ends[i], side, 10, price, commission=1.0) for i, (side, price) in enumerate(rows)]
    metrics = build_metrics(traded(recording, fills), recording)
    trades = metrics.trades
    assert (trades.closed, trades.open, trades.long, trades.short, trades.won) == (3, 1, 2, 1, 2)
    assert trades.win_rate == pytest.approx(2 / 3)
    assert trades.profit_factor == pytest.approx((98 + 38) / 22)
    assert (trades.average_win, trades.average_loss, trades.best, trades.worst) == (68, -22, 98, -22)
    assert trades.expectancy == pytest.approx(114 / 3)
    assert trades.average_return == pytest.approx((0.098 + 0.038 - 0.022) / 3)
    assert trades.average_holding_ns == MINUTE_NS
    assert trades.realised == pytest.approx(113)
    assert trades.unrealised == pytest.approx(10)
    assert trades.unexplained == pytest.approx(0, abs=1e-6)
    assert metrics.costs.commission == 7
    assert metrics.costs.of_traded_value == pytest.approx(7 / (1000 + 1100 + 1000 + 960 + 1000 + 980 + 990))
    assert metrics.costs.of_start == pytest.approx(7e-5)


def test_what_no_trade_accounts_for_is_told() -> None:
    recording = recording_of({"SPY": [100.0] * 3})
    metrics = build_metrics(result_of(recording, [100_000.0, 100_000.0, 100_250.0]), recording)
    assert metrics.trades.unexplained == pytest.approx(250)


def test_months_and_years_begin_with_the_value_before_them() -> None:
    recording = recording_of({"SPY": [1.0] * 400}, length_ns=DAY_NS)
    values = 100_000.0 + 100.0 * np.arange(1, 401)
    built = build_metrics(result_of(recording, values.tolist()), recording).to_json()
    assert next(iter(built["monthly"])) == "2024-01"
    assert next(reversed(built["monthly"])) == "2025-02"
    assert built["monthly"]["2024-01"] == pytest.approx(0.031)
    assert built["monthly"]["2024-02"] == pytest.approx(106_000 / 103_100 - 1)
    assert built["yearly"] == pytest.approx({"2024": 0.366, "2025": 140_000 / 136_600 - 1})
    growth = np.prod([1 + value for value in built["monthly"].values()])
    assert growth == pytest.approx(1.4)


def undefined(metrics: Any) -> set[str]:
    return {name for name, value in _fields(metrics.returns) if value is None}


def _fields(group: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(group, name)) for name in group.__struct_fields__]


RATIOS = {"annual", "volatility", "sharpe", "sortino", "calmar", "best_day", "worst_day"}


def test_one_day_gives_no_figure_by_the_year() -> None:
    recording = recording_of({"SPY": [100.0, 101.0]})
    metrics = build_metrics(result_of(recording, [100_000.0, 101_000.0]), recording)
    assert undefined(metrics) == RATIOS
    assert (metrics.benchmark.alpha, metrics.benchmark.beta) == (None, None)


def test_a_value_that_never_changes_gives_no_ratio() -> None:
    recording = recording_of({"SPY": [100.0] * 5}, length_ns=DAY_NS)
    metrics = build_metrics(result_of(recording), recording)
    assert undefined(metrics) == {"sharpe", "sortino", "calmar"}
    assert metrics.returns.volatility == 0
    assert metrics.benchmark.beta is None


def test_equal_gains_give_no_sharpe_ratio() -> None:
    recording = recording_of({"SPY": [100.0] * 30}, length_ns=DAY_NS)
    values = 100_000.0 * 2.0 ** np.arange(1, 31)
    assert build_metrics(result_of(recording, values.tolist()), recording).returns.sharpe is None


def test_an_account_below_nothing_has_no_ratios_and_no_month() -> None:
    recording = recording_of({"SPY": [100.0] * 4}, length_ns=DAY_NS)
    metrics = build_metrics(result_of(recording, [50_000.0, -10_000.0, 20_000.0, -5.0]), recording)
    assert undefined(metrics) == RATIOS
    assert metrics.returns.max_drawdown == pytest.approx(1.1)
    assert [each.value for each in metrics.months] == [None]
    assert metrics.exposure.gross == 0


def test_a_run_without_bars_or_trades_has_figures() -> None:
    recording = recording_of({"SPY": [100.0]})
    for run in (result_of(recording, []), result_of(recording, [], curve=None)):
        metrics = build_metrics(run, recording)
        assert metrics.returns.total == 0
        assert metrics.exposure.time_in_market is None
        assert (metrics.trades.win_rate, metrics.trades.profit_factor, metrics.trades.best) == (None, None, None)
        assert (metrics.period.start_ns, metrics.period.days, metrics.months) == (None, 0, [])
        json.dumps(metrics.to_json(), allow_nan=False)


MONEY = st.integers(-(10**10), 10**10).map(lambda cents: cents / 100)
CLOSES = st.floats(1e-6, 1e6)


@given(
    st.lists(st.tuples(MONEY, CLOSES), max_size=12),
    MONEY,
    st.sampled_from([MINUTE_NS, HOUR_NS, DAY_NS, 30 * DAY_NS]),
    st.lists(st.tuples(st.integers(0, 14), st.booleans(), st.floats(1e-9, 1e9), CLOSES), max_size=6),
)
def test_no_figure_is_ever_infinite_or_not_a_number(
    rows: list[tuple[float, float]], start: float, length_ns: int, trades: list[tuple[int, bool, float, float]]
) -> None:
    recording = recording_of({"SPY": [close for _, close in rows]}, length_ns=length_ns)
    fills = [fill(end_of(at, length_ns), "buy" if is_buy else "sell", qty, price) for at, is_buy, qty, price in trades]
    result = result_of(recording, [value for value, _ in rows], fills, start=start)
    unfit: list[str] = []
    json.loads(json.dumps(build_metrics(result, recording).to_json()), parse_constant=unfit.append)
    assert unfit == []


def _plain_series(recording: Recording, fills: list[dict[str, Any]], ends: list[int]) -> list[float]:
    values = []
    for end_ns in ends:
        held = sum(
            each["qty"] * (1 if each["side"] == "buy" else -1) for each in fills if parse_time(each["time"]) <= end_ns
        )
        columns = recording.columns("SPY")
        closes = [
            close
            for at, close in zip(columns["ts_event_ns"], columns["close"], strict=True)
            if at + recording.length_ns <= end_ns
        ]
        values.append(held * closes[-1] if closes else 0.0)
    return values


@given(st.lists(st.tuples(st.integers(0, 29), st.booleans(), st.integers(1, 100)), max_size=15))
def test_columns_equal_a_loop_over_bars(rows: list[tuple[int, bool, int]]) -> None:
    recording = recording_of({"SPY": (100 + np.arange(30.0)).tolist(), "IBM": [7.0] * 20}, offsets={"IBM": 20})
    ends = recording.slice_ends().tolist()
    fills = [fill(ends[at], "buy" if is_buy else "sell", qty, 1.0) for at, is_buy, qty in rows]
    series = build_series(result_of(recording, fills=fills), recording)
    assert (series.long + series.short) * 100_000 == pytest.approx(_plain_series(recording, fills, ends))
