"""What an order went through: which slice it follows from, its stages, its line."""

from __future__ import annotations

import pytest

from dry_work.engine.order_lines import is_refused_here, judge_risk
from dry_work.observability import order_trails
from dry_work.observability.order_trails import OrderTrails, SliceTimes, describe_trail, measure_slice

MS = 1_000_000


def slice_at(began_ms: int, *, hub_ns: int = 0, received_ns: int = 0) -> SliceTimes:
    return SliceTimes(
        end_ns=1,
        number=began_ms,
        began_ns=began_ms * MS,
        done_ns=(began_ms + 5) * MS,
        hub_ns=hub_ns,
        received_ns=received_ns,
    )


def send(trails: OrderTrails, name: str, placed_ms: int) -> None:
    trails.note_sent(
        name, placed_ns=placed_ms * MS, sent_ns=(placed_ms + 2) * MS, answered_ns=(placed_ms + 9) * MS, is_passed=True
    )


def tell(trails: OrderTrails, name: str, at_ms: int, *, filled: bool = False, over: bool = False) -> list[str]:
    return trails.note_told(name, now_ns=at_ms * MS, is_accepted=True, is_filled=filled, is_over=over)


def test_a_line_has_every_time_and_the_milliseconds_between() -> None:
    trails = OrderTrails()
    trails.note_slice(slice_at(100, hub_ns=80 * MS, received_ns=90 * MS))
    send(trails, "a", 103)
    assert tell(trails, "a", 120) == ["acknowledgement"]
    assert tell(trails, "a", 130, filled=True) == ["fill"]
    assert tell(trails, "a", 150, filled=True, over=True) == []
    line = describe_trail(trails.find("a"), own_time=False)
    assert line == {
        "bar_end_ns": 1, "slice": 100, "hub_ns": 80 * MS, "received_ns": 90 * MS, "began_ns": 100 * MS,
        "placed_ns": 103 * MS, "sent_ns": 105 * MS, "answered_ns": 112 * MS, "accepted_ns": 120 * MS,
        "first_fill_ns": 130 * MS, "last_fill_ns": 150 * MS, "ended_ns": 150 * MS,
        "venue_ms": 80.0, "arrival_ms": 90.0, "transport_ms": 10.0, "barrier_ms": 10.0, "next_ms": 3.0,
        "queue_ms": 2.0, "request_ms": 7.0, "acknowledgement_ms": 8.0, "fill_ms": 18.0, "last_fill_ms": 20.0,
        "total_ms": 60.0,
    }  # fmt: skip


def test_an_order_follows_from_the_last_slice_before_it() -> None:
    trails = OrderTrails()
    for began_ms in (100, 200, 300):
        trails.note_slice(slice_at(began_ms))
    found = {}
    for name, placed_ms in (("early", 50), ("in next", 202), ("in a notification", 299)):
        send(trails, name, placed_ms)
        times = trails.find(name).slice
        found[name] = times.number if times is not None else None
    assert found == {"early": None, "in next": 200, "in a notification": 200}


def test_an_order_that_was_not_sent_has_no_stages() -> None:
    trails = OrderTrails()
    trails.note_slice(slice_at(100))
    assert tell(trails, "a", 120, over=True) == []
    assert describe_trail(trails.find("a"), own_time=False) == {"accepted_ns": 120 * MS, "ended_ns": 120 * MS}


def test_a_simulated_market_tells_nothing_of_the_way_to_the_hub() -> None:
    times = slice_at(100, hub_ns=80 * MS, received_ns=90 * MS)
    assert set(measure_slice(times, own_time=True)) == {"transport", "barrier", "next"}
    assert set(measure_slice(slice_at(100), own_time=False)) == {"next"}


def test_orders_that_never_end_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_trails, "KEPT_ORDERS", 3)
    trails = OrderTrails()
    for number in range(10):
        send(trails, str(number), 100)
    assert list(trails._trails) == ["7", "8", "9"]


@pytest.mark.parametrize(
    ("code", "passed", "gate", "said"),
    [
        ("risk_order_value", False, True, "order_value"),
        ("risk_halted", True, True, "halted"),
        ("", True, True, "passed"),
        ("40310000", True, True, "passed"),
        ("", True, False, "off"),
        ("no_bar_yet", False, True, ""),
    ],
)
def test_what_the_gate_said(code: str, passed: bool, gate: bool, said: str) -> None:
    assert judge_risk(code, is_passed=passed, gate=gate) == said


def test_which_orders_were_never_sent() -> None:
    assert [is_refused_here(code) for code in ("risk_halted", "no_bar_yet", "", "40310000")] == [
        True, True, False, False,
    ]  # fmt: skip
