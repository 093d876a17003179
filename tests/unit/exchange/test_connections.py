"""How many sessions an account may have."""

from __future__ import annotations

from dry_work.clock import ManualClock
from dry_work.exchange.connections import ConnectionSlots


def test_a_slot_is_of_one_key_and_endpoint() -> None:
    slots = ConnectionSlots(1, stale_s=0.0, clock=ManualClock())
    assert slots.take("a", "/v2/iex")
    assert not slots.take("a", "/v2/iex")
    assert not slots.is_free("a", "/v2/iex")
    assert slots.take("a", "/v2/sip")
    assert slots.take("b", "/v2/iex")
    slots.release("a", "/v2/iex", clean=True)
    assert slots.take("a", "/v2/iex")


def test_a_lost_session_holds_its_slot_for_a_while_and_a_closed_one_does_not() -> None:
    clock = ManualClock()
    slots = ConnectionSlots(2, stale_s=90.0, clock=clock)
    assert slots.take("a", "x")
    assert slots.take("a", "x")
    slots.release("a", "x", clean=False)
    slots.release("a", "x", clean=True)
    assert slots.take("a", "x")
    assert not slots.take("a", "x")
    clock.advance(89.9)
    assert not slots.take("a", "x")
    clock.advance(0.2)
    assert slots.take("a", "x")


def test_without_a_limit_every_session_is_allowed_and_nothing_is_remembered() -> None:
    slots = ConnectionSlots(None, stale_s=90.0, clock=ManualClock())
    for _ in range(3):
        assert slots.take("a", "x")
        slots.release("a", "x", clean=False)
    assert slots.is_free("a", "x")
