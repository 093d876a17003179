from __future__ import annotations

import json

import pytest
from rich.console import Console

from dry_work.engine.result import RunResult, build_curve, build_tables, fill_value, measure_equity

DAY_NS = 86_400_000_000_000


def test_figures_of_a_known_curve() -> None:
    points = [
        (1 * DAY_NS, 110.0),  # ends at midnight: the first day
        (1 * DAY_NS + 1, 99.0),
        (2 * DAY_NS, 104.5),
        (3 * DAY_NS, 115.0),
    ]
    figures = measure_equity(100.0, build_curve(points))
    assert figures.start == 100.0
    assert figures.end == 115.0
    assert figures.total_return == pytest.approx(0.15)
    assert figures.max_drawdown == pytest.approx(0.1)
    returns = [0.1, 104.5 / 110 - 1, 115 / 104.5 - 1]
    mean = sum(returns) / 3
    spread = (sum((value - mean) ** 2 for value in returns) / 2) ** 0.5
    assert figures.sharpe == pytest.approx(mean / spread * 252**0.5)


def test_sharpe_is_not_defined_within_one_day() -> None:
    assert measure_equity(100.0, build_curve([(10, 101.0), (20, 102.0)])).sharpe is None


def test_sharpe_is_not_defined_without_variation() -> None:
    assert measure_equity(100.0, build_curve([(DAY_NS, 100.0), (2 * DAY_NS, 100.0)])).sharpe is None


def test_a_run_without_bars_has_the_equity_it_began_with() -> None:
    figures = measure_equity(100.0, build_curve([]))
    assert (figures.end, figures.total_return, figures.max_drawdown) == (100.0, 0.0, 0.0)


def make_result(**changes: object) -> RunResult:
    fields: dict[str, object] = {
        "mode": "local",
        "engine": "live",
        "agent": "agents.sma_cross:SmaCross",
        "params": {"fast": 10, "ratio": float("nan")},
        "symbols": ("SPY", "BTC/USD"),
        "bars": {"SPY": 390, "BTC/USD": 0},
        "orders": [{"client_order_id": "dw-local-a-1", "symbol": "SPY", "status": "filled"}],
        "fills": [{"time": "2013-10-07T13:31:00Z", "symbol": "SPY", "side": "buy", "qty": 3.0, "price": 166.5}],
        "positions": {"SPY": 3.0},
        "equity": measure_equity(100.0, build_curve([])),
        "seconds": 1.23456,
        "notes": ["2 duplicate bars dropped"],
    }
    return RunResult(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_json_object_has_the_documented_keys_and_no_nan() -> None:
    found = json.loads(json.dumps(make_result().to_json(), allow_nan=False))
    assert list(found) == [
        "mode", "engine", "agent", "params", "symbols", "bars", "orders", "fills", "positions", "equity", "fingerprint",
        "assumptions", "completeness", "seconds",
    ]  # fmt: skip
    assert list(found["equity"]) == ["start", "end", "return", "max_drawdown", "sharpe"]
    assert found["params"] == {"fast": 10, "ratio": None}
    assert found["seconds"] == 1.235


def test_the_text_for_people_names_what_happened() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in build_tables(make_result()):
        console.print(part)
    text = console.export_text()
    console.file.close()
    for expected in ("390 of 2 symbols", "1 (1 filled)", "SPY", "BTC/USD", "166.50", "note: 2 duplicate bars dropped"):
        assert expected in text


def test_what_was_paid_for_options_is_a_hundred_times_their_price() -> None:
    assert fill_value({"symbol": "SPY", "qty": 2.0, "price": 5.0}) == 10.0
    assert fill_value({"symbol": "SPY240621C00550000", "qty": 2.0, "price": 5.0}) == 1_000.0
