"""What has to be done so that our books and a strategy's knowledge agree with the venue; see `reconcile`."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from dry_work.broker.journal_books import MarkCause
from dry_work.broker.past_orders import PastPart
from dry_work.orders.books import Fill
from dry_work.orders.lifecycle import Phase
from dry_work.orders.model import VenueOrder


class OrderAction(msgspec.Struct, frozen=True, kw_only=True):
    """Something of one order. `at_ns` is the venue's time of it, 0 for the beginning, it never goes back in one."""

    name: str  # client order id that the order was submitted with
    at_ns: int = 0


class RememberFill(OrderAction, frozen=True, kw_only=True):
    """The strategy knows of this fill."""

    fill: Fill
    is_journalled: bool


class Announce(OrderAction, frozen=True, kw_only=True):
    """The strategy is to hear that it was submitted."""


class Accept(OrderAction, frozen=True, kw_only=True):
    """The venue has it."""


class TakeFill(OrderAction, frozen=True, kw_only=True):
    """The strategy does not know of this fill; a negative quantity takes another back."""

    fill: Fill
    completes: bool = False


class Complete(OrderAction, frozen=True, kw_only=True):
    """All is executed, and all executions are known."""


class Stand(OrderAction, frozen=True, kw_only=True):
    """A replacement has taken its place."""

    part: PastPart
    is_told: bool


class AwaitReplacement(OrderAction, frozen=True, kw_only=True):
    """The venue has a replacement that has yet to take its place."""

    part: PastPart


class SendReplacement(OrderAction, frozen=True, kw_only=True):
    """A replacement that did not reach the venue is to be asked for now."""

    part: PastPart


class RefuseReplacement(OrderAction, frozen=True, kw_only=True):
    """A replacement was not made, and the strategy waits for an answer."""

    part: PastPart
    reason: str
    code: int | None = None


class Bind(OrderAction, frozen=True, kw_only=True):
    """This order of the venue stands for it now."""

    order: VenueOrder


class SendOrder(OrderAction, frozen=True, kw_only=True):
    """It did not reach the venue and is to be sent now, with what goes out with it."""


class KeepRest(OrderAction, frozen=True, kw_only=True):
    """Its second part follows when the first is filled."""

    part: PastPart


class SendRest(OrderAction, frozen=True, kw_only=True):
    """Its first part is filled: the second is to be sent now."""

    part: PastPart


class CancelAgain(OrderAction, frozen=True, kw_only=True):
    """The strategy has asked for its cancellation, which may not have reached the venue."""


class AwaitOrder(OrderAction, frozen=True, kw_only=True):
    """The venue did not answer what became of it."""


class EndOrder(OrderAction, frozen=True, kw_only=True):
    """It has ended without being filled."""

    phase: Phase
    reason: str = ""
    code: int | None = None


class WriteEnd(OrderAction, frozen=True, kw_only=True):
    """It has ended, which the strategy knows and the journal does not."""

    phase: Phase


# Of symbols


class HaltSymbol(msgspec.Struct, frozen=True, kw_only=True):
    """What the venue says of a symbol is not explained: no new orders but those that shrink its position."""

    symbol: str  # without a slash
    cause: str  # what it is about: position, or a client order id
    reason: str


class MarkForeign(msgspec.Struct, frozen=True, kw_only=True):
    """An order of the account that is not this agent's, new or with new executions."""

    order: VenueOrder
    owner: str  # in words
    is_new: bool


class MarkPosition(msgspec.Struct, frozen=True, kw_only=True):
    """A position has changed by other than the agent's orders."""

    symbol: str
    before: Decimal
    after: Decimal
    price: Decimal
    cause: MarkCause
    detail: str = ""


SymbolAction = HaltSymbol | MarkForeign | MarkPosition
