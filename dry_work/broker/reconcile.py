"""An order of an earlier process against the venue's word on it: what to do, as typed actions. Pure.

The order's life is one sequence, whoever has seen which part of it: submitted, accepted, its executions, the
replacements that stood, its end. What the strategy knows is its beginning; the rest is told in order, once. Nothing is
made up: an execution is the journal's or the venue's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import msgspec
from msgspec.structs import replace

from dry_work.broker.actions import (
    Accept,
    Announce,
    AwaitOrder,
    AwaitReplacement,
    Bind,
    CancelAgain,
    Complete,
    EndOrder,
    HaltSymbol,
    KeepRest,
    OrderAction,
    RefuseReplacement,
    RememberFill,
    SendOrder,
    SendReplacement,
    SendRest,
    Stand,
    TakeFill,
    WriteEnd,
)
from dry_work.broker.past_orders import PastOrder, PastPart
from dry_work.broker.placed import request_of
from dry_work.orders.books import ZERO, Books, Fill, position_key
from dry_work.orders.lifecycle import Effect, Phase, status_effect
from dry_work.orders.model import Execution, OrderStatus, VenueOrder

AGE_NS = 60_000_000_000  # what could not be sent for so long is not sent any more: prices have moved on

_ENDS = {
    Effect.CANCEL: Phase.CANCELED,
    Effect.EXPIRE: Phase.EXPIRED,
    Effect.REJECT: Phase.REJECTED,
    Effect.LACK_FUNDS: Phase.MARGIN,
}
VANISHED = "the venue does not know the order any more"
NOT_SENT = "the order never reached the venue, and it is too late to send it now"
REST_NOT_SENT = "its second part was not sent: the first was filled while nobody traded"


class VenueAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the venue says of an order."""

    orders: tuple[VenueOrder, ...] = ()  # that stood or stand for it, the oldest first; none: it knows none
    rest: VenueOrder | None = None  # its second part
    pending: VenueOrder | None = None  # a replacement that has yet to take its place
    is_answered: bool = True


def reconcile_order(
    past: PastOrder,
    answer: VenueAnswer,
    *,
    executions: Mapping[str, Sequence[Execution]],
    wall_ns: int,
    venue_ns: int,
    head: VenueAnswer | None = None,
) -> list[OrderAction | HaltSymbol]:
    """Return what to do so that the order goes on as if nobody had been away.

    Args:
        answer: the venue's word on it.
        executions: of the account, by the venue's order id; only what is listed can be told one by one.
        wall_ns: time of the machine, in which intents are written down.
        venue_ns: time of the venue.
        head: of an exit, the venue's word on the order that it went out with.
    """
    return _Sequence(past, answer, executions, wall_ns, venue_ns, head).build()


class _Sequence:
    """Builds the actions of one order."""

    def __init__(
        self,
        past: PastOrder,
        answer: VenueAnswer,
        executions: Mapping[str, Sequence[Execution]],
        wall_ns: int,
        venue_ns: int,
        head: VenueAnswer | None,
    ) -> None:
        self._past = past
        self._answer = answer
        self._executions = executions
        self._wall_ns = wall_ns
        self._venue_ns = venue_ns
        self._head = head
        self._chain = (*answer.orders, *((answer.rest,) if answer.rest is not None else ()))
        self._actions: list[OrderAction | HaltSymbol] = []
        self._at_ns = 0

    def build(self) -> list[OrderAction | HaltSymbol]:
        past, told = self._past, self._past.told
        if told.phase is None:
            self._add(Announce(name=past.name))
        if self._chain and told.phase in (None, Phase.SUBMITTED):
            self._add(Accept(name=past.name))
        self._take_life()
        is_over = told.phase is not None and not told.phase.is_open
        if self._chain:
            self._add(Bind(name=past.name, order=self._chain[-1]))
        if past.is_told and past.ended is None:
            self._write_end()
        if not is_over:
            self._settle_replacements()
            self._settle_end()
        return self._actions

    def _add(self, action: OrderAction, at_ns: int = 0) -> None:
        self._at_ns = max(self._at_ns, at_ns)
        self._actions.append(replace(action, at_ns=self._at_ns))

    # Executions and replacements, in their order

    def _take_life(self) -> None:
        past = self._past
        journalled = name_fills(past.fills, self._chain)
        known = {fill.execution_id for fill in journalled}
        missed = [fill for order in self._chain for fill in complete_fills(order, journalled, self._executions)]
        fills = [*journalled, *missed]
        told_count = len(fills) if past.is_told else _count_told(fills, past.told.filled)
        for fill in fills[:told_count]:
            self._add(RememberFill(name=past.name, fill=fill, is_journalled=fill.execution_id in known))
        news = fills[told_count:]
        last = news[-1] if news else None
        is_filled = self._is_filled()
        places = {order.client_order_id: place for place, order in enumerate(self._chain)}
        news.sort(key=lambda fill: places.get(fill.client_order_id, -1))  # stable: else as they are
        told_standing = self._told_place()
        for place in range(-1, len(self._chain)):
            if place > 0 and self._chain[place] is not self._answer.rest:
                part = self._part_of(self._chain[place])
                self._add(
                    Stand(name=past.name, part=part, is_told=place <= told_standing), part_time(self._chain, place)
                )
            for fill in news:
                if places.get(fill.client_order_id, -1) == place:
                    completes = is_filled and fill is last
                    self._add(TakeFill(name=past.name, fill=fill, completes=completes), fill.ts_event_ns)
        if is_filled and last is None:
            self._add(Complete(name=past.name))

    def _is_filled(self) -> bool:
        """Tell whether the venue, or else the journal, has it as filled, with its second part."""
        past, told = self._past, self._past.told
        if told.phase is not None and not told.phase.is_open:
            return False
        if not self._chain:
            return past.ended is Phase.COMPLETED
        if self._chain[-1].status != OrderStatus.FILLED:
            return False
        return past.remainder is None or self._answer.rest is not None

    def _told_place(self) -> int:
        """Return the place in the chain of the replacement that the strategy knows of."""
        standing = self._past.told.standing
        return next((n for n, order in enumerate(self._chain) if order.client_order_id == standing), 0)

    def _part_of(self, order: VenueOrder) -> PastPart:
        """Return the replacement that an order of the venue is, also when somebody else has asked for it."""
        for part in self._past.replacements:
            if part.name == order.client_order_id:
                return part
        return PastPart(
            name=order.client_order_id, request=request_of(order), number=0, outcome="accepted", order_ids=(order.id,)
        )

    # Replacements without an outcome

    def _settle_replacements(self) -> None:
        past, told = self._past, self._past.told
        stood = {order.client_order_id for order in self._chain}
        parts = [part for part in past.replacements if part.name not in stood]
        if not parts:
            return
        last = parts[-1]
        pending = self._answer.pending
        is_open = self._chain and status_effect(self._chain[-1].status) not in (Effect.FILL, *_ENDS)
        if pending is not None and pending.client_order_id == last.name and is_open:
            self._add(AwaitReplacement(name=past.name, part=last))
            return
        was_asked = told.replacing == last.name or told.phase is None or not last.outcome
        if last.outcome == "refused":
            if told.replacing == last.name:
                self._add(RefuseReplacement(name=past.name, part=last, reason=last.message, code=last.code))
        elif was_asked and is_open and self._is_young(last) and last.change is not None and not last.is_accepted:
            self._add(SendReplacement(name=past.name, part=last))
        elif told.replacing == last.name:
            reason = "the replacement never reached the venue"
            if pending is not None and pending.client_order_id == last.name:
                reason = pending.reject_reason or f"the new order is {pending.status}"
            self._add(RefuseReplacement(name=past.name, part=last, reason=reason))

    def _is_young(self, part: PastPart) -> bool:
        return self._wall_ns - part.intended_ns < AGE_NS

    # The end

    def _settle_end(self) -> None:
        past = self._past
        if not self._answer.is_answered:
            self._add(AwaitOrder(name=past.name))
        elif self._chain:
            self._settle_known(self._chain[-1])
        elif past.ended is Phase.COMPLETED:
            pass
        elif past.ended is not None:
            self._add(EndOrder(name=past.name, phase=past.ended, reason=past.first.message, code=past.first.code))
        elif past.is_known_to_venue or (self._head is not None and self._head.orders and past.first.is_accepted):
            self._add(EndOrder(name=past.name, phase=Phase.CANCELED, reason=VANISHED))
            reason = f"{VANISHED}: {past.name}"
            self._actions.append(HaltSymbol(symbol=position_key(past.symbol), cause=past.name, reason=reason))
        elif past.is_refused_here:
            self._add(EndOrder(name=past.name, phase=Phase.REJECTED))
        elif self._head is not None:
            self._settle_unknown_exit(self._head)
        elif self._is_young(past.first) and not past.told.cancel_asked:
            self._add(SendOrder(name=past.name))
        else:
            phase = Phase.CANCELED if past.told.cancel_asked else Phase.REJECTED
            self._add(EndOrder(name=past.name, phase=phase, reason="" if past.told.cancel_asked else NOT_SENT))

    def _write_end(self) -> None:
        effect = status_effect(self._chain[-1].status) if self._chain else Effect.CANCEL
        phase = Phase.COMPLETED if effect is Effect.FILL else _ENDS.get(effect)
        if phase is not None and self._answer.is_answered:
            self._add(WriteEnd(name=self._past.name, phase=phase))

    def _settle_unknown_exit(self, head: VenueAnswer) -> None:
        """An exit of which nothing is known: it goes with the order that it went out with."""
        past = self._past
        if head.orders:
            self._add(AwaitOrder(name=past.name))  # the venue has the order, and so its exits
        elif not self._is_young(past.first):
            self._add(EndOrder(name=past.name, phase=Phase.REJECTED, reason=NOT_SENT))

    def _settle_known(self, order: VenueOrder) -> None:
        past = self._past
        effect = status_effect(order.status, reason=order.reject_reason)
        ends_ns = order.canceled_ns or order.expired_ns or order.failed_ns or order.updated_ns
        rest = past.remainder
        if rest is not None and self._answer.rest is None:
            if effect is Effect.FILL:
                self._settle_rest(rest, order)
                return
            if effect not in _ENDS:
                self._add(KeepRest(name=past.name, part=rest))
        if effect in _ENDS:
            self._add(EndOrder(name=past.name, phase=_ENDS[effect], reason=order.reject_reason), ends_ns)
        elif effect is not Effect.FILL and past.told.cancel_asked:
            self._add(CancelAgain(name=past.name))

    def _settle_rest(self, rest: PastPart, order: VenueOrder) -> None:
        """The first part is filled, and the venue has no second."""
        past = self._past
        filled_ns = order.filled_ns or order.updated_ns
        if rest.outcome == "refused":
            self._add(EndOrder(name=past.name, phase=Phase.REJECTED, reason=rest.message, code=rest.code), filled_ns)
        elif past.told.cancel_asked:
            self._add(EndOrder(name=past.name, phase=Phase.CANCELED), filled_ns)
        elif self._venue_ns - filled_ns < AGE_NS:
            self._add(SendRest(name=past.name, part=rest), filled_ns)
        else:
            self._add(EndOrder(name=past.name, phase=Phase.CANCELED, reason=REST_NOT_SENT), filled_ns)


# Executions


def name_fills(fills: Iterable[Fill], chain: Sequence[VenueOrder]) -> list[Fill]:
    """Return fills under the names of the venue's orders that they belong to, as far as that can be told."""
    names = {order.client_order_id for order in chain}
    left = {order.client_order_id: order.filled_qty for order in chain}
    named: list[Fill] = []
    for fill in fills:
        name = fill.client_order_id
        if chain and name not in names:
            name = next((n for n, qty in left.items() if qty >= fill.qty), chain[-1].client_order_id)
        if name in left:
            left[name] -= fill.qty
        named.append(replace(fill, client_order_id=name))
    return named


def complete_fills(
    order: VenueOrder, known: Iterable[Fill], executions: Mapping[str, Sequence[Execution]]
) -> list[Fill]:
    """Return what has to be added to the known fills of an order of the venue so that they are its total.

    One by one where the executions are listed and are its total, else as one fill; with a negative quantity when the
    venue has taken some back.
    """
    mine = [fill for fill in known if fill.client_order_id == order.client_order_id]
    books = Books()
    for fill in mine:
        books.restore(fill)
    total = books.filled_qty(order.client_order_id)
    at_ns = order.filled_ns or order.updated_ns
    listed = sorted(executions.get(order.id, ()), key=lambda execution: execution.ts_event_ns)
    if order.filled_qty < total:
        back = _find_taken_back(mine, listed, total - order.filled_qty)
        surplus = books.surplus_fill(order, order.updated_ns, execution_id=back)
        return [] if surplus is None else [surplus]
    if order.filled_qty == total:
        return []
    ids = {fill.execution_id for fill in mine}
    missed = [
        execution
        for execution in listed
        if execution.execution_id not in ids and (execution.filled_qty is None or execution.filled_qty > total)
    ]
    if total + sum((execution.qty for execution in missed), ZERO) == order.filled_qty:
        return [
            Fill(
                execution_id=execution.execution_id,
                client_order_id=order.client_order_id,
                symbol=order.symbol,
                side=order.side,
                qty=execution.qty,
                price=execution.price,
                ts_event_ns=execution.ts_event_ns,
                filled_qty=execution.filled_qty,
            )
            for execution in missed
        ]
    found = books.missing_fill(order, at_ns)
    return [] if found is None else [found]


def _find_taken_back(known: Iterable[Fill], listed: Sequence[Execution], qty: Decimal) -> str:
    """Return the id of the known execution of that quantity that is listed no more, empty when that is not clear."""
    ids = {execution.execution_id for execution in listed}
    gone = [fill for fill in known if fill.execution_id not in ids and fill.qty == qty]
    return gone[0].execution_id if len(gone) == 1 else ""


def _count_told(fills: Sequence[Fill], filled: Decimal) -> int:
    """Return how many of the fills make up what a strategy knows as filled."""
    if not filled and all(fill.qty > 0 for fill in fills):
        return 0
    total, exact, below = ZERO, -1, 0
    is_below = True
    for count, fill in enumerate(fills, start=1):
        total += fill.qty
        exact = count if total == filled else exact
        is_below = is_below and total <= filled
        below = count if is_below else below
    return exact if exact >= 0 else below


def part_time(chain: Sequence[VenueOrder], place: int) -> int:
    """Return when an order of the venue has taken the place of the one before it."""
    before = chain[place - 1]
    return before.replaced_ns or chain[place].created_ns
