"""What the venue's words mean for an order: one table from event or status to effect, one from phase to phases. Pure.

An event or status has an *effect*; the effect takes the order from its *phase* through the phases that are to be
notified, in order. Phases have the names and the meaning of Backtrader's order states. What is in neither table is
never guessed: its effect is `ASK`, which asks the venue for the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from dry_work.orders.model import OrderStatus

CODE_FORBIDDEN = 40310000  # Alpaca's code for funds, holdings and permissions
_FUNDS = ("buying power", "insufficient balance")


class Phase(StrEnum):
    """Where an order is, in Backtrader's words."""

    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    PARTIAL = "partial"
    COMPLETED = "completed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    MARGIN = "margin"
    REJECTED = "rejected"

    @property
    def is_open(self) -> bool:
        """Tell whether the order can still be filled."""
        return self in _OPEN


_OPEN = frozenset({Phase.SUBMITTED, Phase.ACCEPTED, Phase.PARTIAL})


class Effect(StrEnum):
    """What an event or status does to an order."""

    NOTHING = "nothing"
    WARN = "warn"  # nothing, but somebody should know
    ACCEPT = "accept"
    PARTIAL_FILL = "partial_fill"  # some of it was executed
    FILL = "fill"  # the rest of it was executed
    CANCEL = "cancel"
    EXPIRE = "expire"
    REJECT = "reject"
    LACK_FUNDS = "lack_funds"
    TAKE_BACK = "take_back"  # an execution is no more
    CORRECT = "correct"  # another execution stands in the place of one
    ASK = "ask"  # look the order up at the venue


EVENT_EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {
        "new": Effect.ACCEPT,
        "accepted": Effect.ACCEPT,
        "pending_new": Effect.ACCEPT,
        "held": Effect.ACCEPT,
        "accepted_for_bidding": Effect.ACCEPT,
        "partial_fill": Effect.PARTIAL_FILL,
        "fill": Effect.FILL,
        "canceled": Effect.CANCEL,
        "expired": Effect.EXPIRE,
        "rejected": Effect.REJECT,
        "replaced": Effect.CANCEL,  # unless it is known which order has taken its place
        "done_for_day": Effect.NOTHING,
        "restated": Effect.NOTHING,  # an exit became smaller with the fill of the other
        "pending_cancel": Effect.NOTHING,
        "pending_replace": Effect.NOTHING,
        "pending_review": Effect.NOTHING,
        "order_cancel_rejected": Effect.NOTHING,
        "order_replace_rejected": Effect.NOTHING,
        "trade_bust": Effect.TAKE_BACK,
        "trade_correct": Effect.CORRECT,
        "stopped": Effect.WARN,
        "suspended": Effect.WARN,
        "calculated": Effect.WARN,
    }
)

# Of an order that was looked up, or of the answer to its submit. What was executed is seen in its quantities.
STATUS_EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {
        OrderStatus.NEW: Effect.ACCEPT,
        OrderStatus.ACCEPTED: Effect.ACCEPT,
        OrderStatus.HELD: Effect.ACCEPT,
        OrderStatus.ACCEPTED_FOR_BIDDING: Effect.ACCEPT,
        OrderStatus.PARTIALLY_FILLED: Effect.ACCEPT,
        OrderStatus.PENDING_NEW: Effect.NOTHING,
        OrderStatus.PENDING_REVIEW: Effect.NOTHING,
        OrderStatus.PENDING_CANCEL: Effect.NOTHING,
        OrderStatus.PENDING_REPLACE: Effect.NOTHING,
        OrderStatus.DONE_FOR_DAY: Effect.NOTHING,
        OrderStatus.STOPPED: Effect.WARN,
        OrderStatus.SUSPENDED: Effect.WARN,
        OrderStatus.CALCULATED: Effect.WARN,
        OrderStatus.FILLED: Effect.FILL,
        OrderStatus.CANCELED: Effect.CANCEL,
        OrderStatus.REPLACED: Effect.CANCEL,
        OrderStatus.EXPIRED: Effect.EXPIRE,
        OrderStatus.REJECTED: Effect.REJECT,
    }
)

_ENDS: Mapping[Effect, tuple[Phase, ...]] = MappingProxyType(
    {
        Effect.CANCEL: (Phase.CANCELED,),
        Effect.EXPIRE: (Phase.EXPIRED,),
        Effect.REJECT: (Phase.REJECTED,),
        Effect.LACK_FUNDS: (Phase.MARGIN,),
    }
)

# Phases to go through, by phase and effect. Strategies count on Accepted before the first fill; what is not listed
# changes nothing.
TRANSITIONS: Mapping[Phase, Mapping[Effect, tuple[Phase, ...]]] = MappingProxyType(
    {
        Phase.SUBMITTED: {
            Effect.ACCEPT: (Phase.ACCEPTED,),
            Effect.PARTIAL_FILL: (Phase.ACCEPTED, Phase.PARTIAL),
            Effect.FILL: (Phase.ACCEPTED, Phase.COMPLETED),
            **_ENDS,
        },
        Phase.ACCEPTED: {
            Effect.PARTIAL_FILL: (Phase.PARTIAL,),
            Effect.FILL: (Phase.COMPLETED,),
            **_ENDS,
        },
        Phase.PARTIAL: {
            Effect.PARTIAL_FILL: (Phase.PARTIAL,),
            Effect.FILL: (Phase.COMPLETED,),
            **_ENDS,
        },
        # A fill that comes behind the end was executed all the same: it is told, and the end stays.
        **{
            phase: {Effect.PARTIAL_FILL: (phase,), Effect.FILL: (phase,)}
            for phase in (Phase.COMPLETED, Phase.CANCELED, Phase.EXPIRED, Phase.MARGIN, Phase.REJECTED)
        },
    }
)

_STATUS_WORDS: Mapping[Phase, OrderStatus] = MappingProxyType(
    {
        Phase.SUBMITTED: OrderStatus.PENDING_NEW,
        Phase.ACCEPTED: OrderStatus.NEW,
        Phase.PARTIAL: OrderStatus.PARTIALLY_FILLED,
        Phase.COMPLETED: OrderStatus.FILLED,
        Phase.CANCELED: OrderStatus.CANCELED,
        Phase.EXPIRED: OrderStatus.EXPIRED,
        Phase.MARGIN: OrderStatus.REJECTED,
        Phase.REJECTED: OrderStatus.REJECTED,
    }
)


def event_effect(event: str, *, code: int | None = None, reason: str = "") -> Effect:
    """Return what a trade event does; `code` and `reason` say why an order was rejected."""
    return _with_funds(EVENT_EFFECTS.get(event, Effect.ASK), code, reason)


def status_effect(status: str, *, reason: str = "") -> Effect:
    """Return what the status of an order, as the venue answered it, says; `ASK` for one that is unknown."""
    return _with_funds(STATUS_EFFECTS.get(status, Effect.ASK), None, reason)


def next_phases(phase: Phase, effect: Effect) -> tuple[Phase, ...]:
    """Return the phases that the effect takes an order through, in order; empty when nothing is to be told."""
    return TRANSITIONS[phase].get(effect, ())


def is_lack_of_funds(code: int | None, reason: str) -> bool:
    """Tell whether a refusal is for lack of buying power; the code alone also stands for holdings and permissions."""
    if code not in (None, CODE_FORBIDDEN):
        return False
    return any(word in reason.lower() for word in _FUNDS) or (code == CODE_FORBIDDEN and not reason)


def status_word(phase: Phase) -> OrderStatus:
    """Return a phase in Alpaca's words."""
    return _STATUS_WORDS[phase]


def _with_funds(effect: Effect, code: int | None, reason: str) -> Effect:
    return Effect.LACK_FUNDS if effect is Effect.REJECT and is_lack_of_funds(code, reason) else effect
