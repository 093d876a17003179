"""The transition table, row by row."""

from __future__ import annotations

import pytest

from dry_work.orders.lifecycle import (
    EVENT_EFFECTS,
    STATUS_EFFECTS,
    TRANSITIONS,
    Effect,
    Phase,
    event_effect,
    is_lack_of_funds,
    next_phases,
    status_effect,
    status_word,
)
from dry_work.orders.model import TERMINAL, OrderStatus

ENDS = [phase for phase in Phase if not phase.is_open]


@pytest.mark.parametrize(
    ("phase", "events", "told"),
    [
        ("submitted", ["new", "fill"], ["accepted", "completed"]),
        ("submitted", ["accepted", "new", "partial_fill", "partial_fill", "fill"],
         ["accepted", "partial", "partial", "completed"]),
        ("submitted", ["fill"], ["accepted", "completed"]),
        ("submitted", ["partial_fill", "new", "canceled"], ["accepted", "partial", "canceled"]),
        ("submitted", ["pending_new", "new", "expired"], ["accepted", "expired"]),
        ("submitted", ["held", "done_for_day", "pending_cancel", "canceled"], ["accepted", "canceled"]),
        ("submitted", ["rejected"], ["rejected"]),
        ("submitted", ["new", "partial_fill", "rejected"], ["accepted", "partial", "rejected"]),
        ("submitted", ["new", "canceled", "canceled", "new"], ["accepted", "canceled"]),
        ("submitted", ["new", "pending_replace", "order_replace_rejected", "order_cancel_rejected", "fill"],
         ["accepted", "completed"]),
        ("submitted", ["new", "replaced"], ["accepted", "canceled"]),
        ("accepted", ["suspended", "stopped", "calculated"], []),
        ("accepted", ["trade_bust", "a_new_word"], []),
        ("canceled", ["partial_fill"], ["canceled"]),
        ("completed", ["partial_fill"], ["completed"]),
    ],
)  # fmt: skip
def test_a_sequence_of_events_is_told_as(phase: str, events: list[str], told: list[str]) -> None:
    at, found = Phase(phase), []
    for event in events:
        for following in next_phases(at, event_effect(event)):
            found.append(following.value)
            at = following
    assert found == told


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("effect", list(Effect))
def test_an_end_is_final_and_an_open_order_never_goes_back(phase: Phase, effect: Effect) -> None:
    phases = next_phases(phase, effect)
    if not phase.is_open:
        assert set(phases) <= {phase}
    assert Phase.SUBMITTED not in phases
    if phase is Phase.PARTIAL:
        assert Phase.ACCEPTED not in phases


def test_every_phase_has_its_row() -> None:
    assert set(TRANSITIONS) == set(Phase)


def test_every_status_of_alpaca_has_an_effect_and_the_final_ones_end_an_order() -> None:
    assert set(STATUS_EFFECTS) == {status.value for status in OrderStatus}
    for status in OrderStatus:
        ends = any(not phase.is_open for phase in next_phases(Phase.ACCEPTED, status_effect(status)))
        assert ends == (status in TERMINAL), status


@pytest.mark.parametrize("word", ["trade_flipped", "something_new", ""])
def test_an_unknown_word_is_asked_for_and_never_guessed(word: str) -> None:
    assert event_effect(word) is Effect.ASK
    assert status_effect(word) is Effect.ASK
    assert all(next_phases(phase, Effect.ASK) == () for phase in Phase)


@pytest.mark.parametrize(
    ("code", "reason", "lacks"),
    [
        (40310000, "insufficient buying power", True),
        (40310000, "insufficient balance for USD (requested: 5, available: 1)", True),
        (40310000, "", True),
        (40310000, "insufficient qty available for order (requested: 16, available: 0)", False),
        (40310000, "account is not allowed to short", False),
        (42210000, "insufficient buying power", False),
        (None, "insufficient buying power", True),
        (None, "", False),
    ],
)
def test_lack_of_funds_is_told_from_other_refusals(code: int | None, reason: str, lacks: bool) -> None:
    assert is_lack_of_funds(code, reason) is lacks
    assert event_effect("rejected", code=code, reason=reason) is (Effect.LACK_FUNDS if lacks else Effect.REJECT)


def test_events_and_statuses_of_one_name_agree() -> None:
    for name in EVENT_EFFECTS.keys() & STATUS_EFFECTS.keys() - {"pending_new"}:
        assert EVENT_EFFECTS[name] is STATUS_EFFECTS[name], name
    # The answer to a submit says `pending_new` before the simulated exchange has looked at the order.
    assert STATUS_EFFECTS["pending_new"] is Effect.NOTHING


def test_what_takes_an_execution_back_moves_no_phase_by_itself() -> None:
    assert event_effect("trade_bust") is Effect.TAKE_BACK
    assert event_effect("trade_correct") is Effect.CORRECT
    for effect in (Effect.TAKE_BACK, Effect.CORRECT):
        assert all(next_phases(phase, effect) == () for phase in Phase)


def test_phases_have_a_word_of_alpaca() -> None:
    assert {phase: status_word(phase).value for phase in ENDS} == {
        Phase.COMPLETED: "filled",
        Phase.CANCELED: "canceled",
        Phase.EXPIRED: "expired",
        Phase.MARGIN: "rejected",
        Phase.REJECTED: "rejected",
    }
    assert [status_word(p).value for p in (Phase.SUBMITTED, Phase.ACCEPTED, Phase.PARTIAL)] == [
        "pending_new", "new", "partially_filled",
    ]  # fmt: skip
