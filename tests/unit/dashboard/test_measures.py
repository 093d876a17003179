"""Limits in use, latencies, the published address, why nothing was traded."""

from __future__ import annotations

import stat
from decimal import Decimal
from pathlib import Path

import pytest

from dry_work.dashboard.address import NAME, publish_address, read_address, withdraw_address
from dry_work.dashboard.latency import StageTimes
from dry_work.dashboard.limits import measure_limits
from dry_work.dashboard.sessions import DecisionView
from dry_work.dashboard.snapshot import RiskView
from dry_work.dashboard.why import Waiting, describe_sent, explain_silence
from dry_work.orders.risk import LossMarks
from dry_work.orders.risk_limits import Bound, RiskLimits


def test_the_use_of_limits_follows_from_positions_equity_and_marks() -> None:
    limits = RiskLimits(position_value=Bound(Decimal("0.5"), is_share=True), gross_exposure=Bound(Decimal(90_000)))
    marks = LossMarks(day=1, day_equity=Decimal(100_000), peak=Decimal(110_000))
    found = {
        use.name: (use.used, use.allowed)
        for use in measure_limits(
            limits, equity=99_000.0, positions=[30_000.0, -20_000.0], orders_last_minute=7, marks=marks
        )
    }
    assert found == {
        "largest position": (30_000.0, 49_500.0),
        "gross exposure": (50_000.0, 90_000.0),
        "day loss": (1_000.0, 10_000.0),
        "drawdown": (11_000.0, 22_000.0),
        "orders in a minute": (7.0, 600.0),
    }


def test_limits_that_are_off_are_left_out() -> None:
    limits = RiskLimits(position_value=None, gross_exposure=None, day_loss=None, drawdown=None, orders_per_minute=0)
    assert measure_limits(limits, equity=1.0, positions=[], orders_last_minute=0, marks=None) == ()


def test_stages_tell_their_middle_and_their_tail() -> None:
    times = StageTimes(("a", "b"), kept=100)
    for number in range(150):
        times.add("a", float(number))
    (only,) = times.read()
    assert (only.stage, only.last_ms, only.count) == ("a", 149.0, 150)
    assert only.p50_ms == 99.0
    assert only.p99_ms == 148.0


def test_an_address_is_for_its_user_and_its_process(tmp_path: Path) -> None:
    publish_address(tmp_path, "http://127.0.0.1:1/#token=secret", pid=7)
    publish_address(tmp_path, "http://127.0.0.1:2/#token=secret", pid=8)
    assert read_address(tmp_path, pid=8) == "http://127.0.0.1:2/#token=secret"
    assert read_address(tmp_path, pid=7) == ""
    assert read_address(tmp_path, pid=None) == ""
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    (tmp_path / NAME).write_text("{")
    assert read_address(tmp_path, pid=8) == ""
    withdraw_address(tmp_path)
    withdraw_address(tmp_path)
    assert list(tmp_path.iterdir()) == []


ACTIVE = RiskView(state="active")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["next ran with new bars of 2 of 6 symbols", "Trading was allowed"]),
        ({"waiting": [Waiting(data="SPY", bars=3, needed=30)]}, ["prenext", "SPY has 3 of 30 bars"]),
        ({"risk": RiskView(state="halted", who="operator", reason="news")}, ["halted by operator: news"]),
        ({"risk": RiskView(state="active", trouble="the account cannot be refreshed")}, ["cannot be refreshed"]),
        ({"halted": {"SPY": "a trade by hand"}}, ["SPY (a trade by hand)"]),
        ({"open_orders": 2}, ["2 orders waited"]),
    ],
)
def test_silence_is_explained(given: dict[str, object], words: list[str]) -> None:
    base: dict[str, object] = {
        "bars": 2, "symbols": 6, "waiting": [], "risk": ACTIVE, "halted": {}, "open_orders": 0
    }  # fmt: skip
    text = explain_silence(**{**base, **given})  # type: ignore[arg-type]
    for word in words:
        assert word in text


def test_decisions_are_summed_up_with_the_first_refusal() -> None:
    taken = DecisionView(what="buy 1 SPY", symbol="SPY", verdict="taken")
    refused = DecisionView(what="buy 9 SPY", symbol="SPY", verdict="refused", reason="risk limit order_value")
    assert describe_sent([taken]) == "1 decision."
    assert describe_sent([taken, taken, refused]) == "2 decisions; 1 refused: risk limit order_value."
