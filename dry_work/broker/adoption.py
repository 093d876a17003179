"""Taking up the orders of earlier processes at the start: asked for, made into Backtrader's orders, brought up to date.

Main thread, before anything is traded; here the venue is waited for. What to do is decided in `reconcile`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import structlog
from msgspec.structs import replace

from dry_work.broker import actions as act
from dry_work.broker.account import AccountState
from dry_work.broker.books_reader import JournalBooks
from dry_work.broker.desk import OrderDesk
from dry_work.broker.entry import OrderEntry
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.gateway_tasks import SubmitTask
from dry_work.broker.journal import Intent, Journal
from dry_work.broker.order_changes import show_phase
from dry_work.broker.order_objects import build_past_order, restore_execution, take_back_execution
from dry_work.broker.outcomes import LegIntent, OrderLookedUp
from dry_work.broker.own_books import TAKEN_UP, expect_positions
from dry_work.broker.past_orders import PastOrder, list_past_orders, past_from_venue
from dry_work.broker.placed import encode_placed
from dry_work.broker.positions import PositionBook
from dry_work.broker.reconcile import VenueAnswer, reconcile_order
from dry_work.broker.tickets import PendingReplacement, Ticket, position_key, symbol_of
from dry_work.broker.told import ToldRecord
from dry_work.broker.venue_link import VenueLink
from dry_work.errors import BrokerError
from dry_work.feeds.base import line_time
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.groups import Role
from dry_work.orders.lifecycle import Effect, Phase
from dry_work.orders.model import Execution, OrderStatus, TimeInForce, VenueOrder

LOOKS = 5  # for a moment at which nothing happens between orders and positions

_EFFECTS = {
    Phase.CANCELED: Effect.CANCEL,
    Phase.EXPIRED: Effect.EXPIRE,
    Phase.REJECTED: Effect.REJECT,
    Phase.MARGIN: Effect.LACK_FUNDS,
}
_TOLD_BEFORE = {
    Phase.ACCEPTED: (Phase.SUBMITTED,),
    Phase.PARTIAL: (Phase.SUBMITTED, Phase.ACCEPTED),
}

_log = structlog.get_logger(__name__)


class Adoption:
    """Takes up the orders of one agent. `run` is called once.

    Args:
        books: what the journal says.
        record: what the strategy's state knows; None: it keeps none.
        commission_of: returns the commission scheme of a data.
        halt: takes symbols whose orders are not explained.
        seed: tells Backtrader's trades of the positions that the books have now.
        wall_ns: time of the machine.
        venue_ns: time of the venue.
    """

    def __init__(
        self,
        books: JournalBooks,
        record: ToldRecord | None,
        *,
        broker: Any,
        desk: OrderDesk,
        entry: OrderEntry,
        book: PositionBook,
        link: VenueLink,
        gateway: OrderGateway,
        agent: str,
        datas: Sequence[Any],
        commission_of: Callable[[Any], Any],
        halt: Callable[[act.HaltSymbol], None],
        seed: Callable[[], None],
        journal: Journal,
        wall_ns: int,
        venue_ns: int,
        counters: Counter[str],
    ) -> None:
        self._books = books
        self._broker = broker
        self._desk = desk
        self._entry = entry
        self._book = book
        self._link = link
        self._gateway = gateway
        self._agent = agent
        self._commission_of = commission_of
        self._halt = halt
        self._seed = seed
        self._journal = journal
        self._wall_ns = wall_ns
        self._venue_ns = venue_ns
        self._counters = counters
        self._by_name = {data._name: data for data in reversed(datas)}
        self._by_symbol = {position_key(symbol_of(data)): data for data in reversed(datas)}
        self._past = {past.name: past for past in list_past_orders(books, record, agent=agent)}
        self._tasks: dict[str, SubmitTask] = {}
        self._answers: dict[str, VenueAnswer] = {}
        self._is_reached = True

    def run(self, state: AccountState) -> AccountState:
        """Take up the orders; return the account as it is then, which the books hold.

        Args:
            state: of the account, fetched before.
        """
        self._find_unknown(state)
        self._past = {name: past for name, past in self._past.items() if self._has_data(past)}
        state = self._ask(state)
        self._book.take_snapshot(state)
        if not self._past:
            return state
        executions = self._fetch_executions()
        timeline: list[tuple[int, int, act.OrderAction]] = []
        tickets = {past.name: self._make_ticket(past) for past in self._past.values()}
        self._join_groups(tickets)
        for number, past in enumerate(self._past.values()):
            for action in reconcile_order(
                past,
                self._answers[past.name],
                executions=executions,
                wall_ns=self._wall_ns,
                venue_ns=self._venue_ns,
                head=self._answers.get(past.head) if past.head else None,
            ):
                if isinstance(action, act.HaltSymbol):
                    self._halt(action)
                elif isinstance(action, act.RememberFill):
                    self._remember(tickets[past.name], action)
                else:
                    timeline.append((action.at_ns, number, action))
        timeline.sort(key=lambda item: item[:2])  # stable: else as they were decided
        self._rewind(action for _, _, action in timeline if isinstance(action, act.TakeFill))
        self._seed()
        for _, _, action in timeline:
            self._apply(tickets[action.name], action)
        self._book.take_snapshot(state)
        self._counters["orders of an earlier run taken up"] += sum(t.phase.is_open for t in tickets.values())
        return state

    # Which orders, and what the venue says of them

    def _find_unknown(self, state: AccountState) -> None:
        """Add the open orders under our ids that only the venue knows."""
        known = {name for past in self._past.values() for name in _names(past)}
        journalled = {order.client_order_id for order in self._books.orders}
        sessions = {order.session for order in self._books.orders} | set(self._books.pruned_sessions)
        for order in state.open_orders:
            parts = parse_client_order_id(order.client_order_id)
            if parts is None or parts.agent != self._agent or parts.session.startswith("flat"):
                continue
            if order.client_order_id in known or order.client_order_id in journalled:
                continue
            if order.client_order_id in self._books.pruned:
                _log.warning(
                    "an order that had ended and was pruned is open at the venue", client_order_id=order.client_order_id
                )
                continue
            past = past_from_venue(order)
            assert past is not None
            self._past[past.name] = past
            if parts.session in sessions:
                reason = f"the venue has an order {past.name} that the journal does not know"
                self._halt(act.HaltSymbol(symbol=position_key(order.symbol), cause=past.name, reason=reason))
            else:
                _log.warning("an order of another journal is taken up", client_order_id=past.name)

    def _has_data(self, past: PastOrder) -> bool:
        if self._find_data(past) is not None:
            return True
        if past.told.phase is None or past.told.phase.is_open:
            _log.warning("an order has no data in this run and is left as it is", client_order_id=past.name)
            self._counters["open orders of an earlier run"] += 1
            self._desk.notices.carry(past.name, past.told)
        return False

    def _find_data(self, past: PastOrder) -> Any:
        data = self._by_name.get(past.placed.data)
        if data is not None and position_key(symbol_of(data)) == position_key(past.symbol):
            return data
        return self._by_symbol.get(position_key(past.symbol))

    def _ask(self, state: AccountState) -> AccountState:
        """Ask for all orders, at a moment at which nothing happens between orders and positions."""
        for past in self._past.values():
            task = self._tasks[past.name] = self._build_task(past)
            if not past.head:
                self._gateway.restore(task, {})
        if not self._past:
            return state
        for _ in range(LOOKS):
            before = state
            self._answers = self._look_up_all()
            state = self._link.fetch_state()
            if state.positions == before.positions and state.fills_received == before.fills_received:
                break
        return state

    def _build_task(self, past: PastOrder) -> SubmitTask:
        legs = [
            LegIntent(other.role, other.first.request, other.number, encode_placed(other.placed))
            for other in self._past.values()
            if other.head == past.name and other.role is not None
        ]
        if past.remainder is not None:
            legs.append(LegIntent(Role.REMAINDER, past.remainder.request, past.remainder.number))
        return SubmitTask(
            past.first.request,
            past.number,
            self._wall_ns,
            tuple(legs),
            is_intended=past.first.is_journalled,
            terms=encode_placed(past.placed),
        )

    def _look_up_all(self) -> dict[str, VenueAnswer]:
        answers: dict[str, VenueAnswer] = {}
        self._is_reached = True
        for past in self._past.values():
            if past.head:
                continue
            answer, legs = self._look_up(past)
            answers[past.name] = answer
            answers.update((name, VenueAnswer(orders=(leg,))) for name, leg in legs)
        for past in self._past.values():
            if past.name not in answers:
                head = answers.get(past.head)
                answers[past.name] = VenueAnswer(is_answered=head is None or head.is_answered)
        return answers

    def _look_up(self, past: PastOrder) -> tuple[VenueAnswer, tuple[tuple[str, VenueOrder], ...]]:
        is_told = past.ended is not None and not past.replacements and past.remainder is None and past.role is None
        if past.is_refused_here or is_told:
            return VenueAnswer(), ()
        try:
            if not self._is_reached:
                return VenueAnswer(is_answered=False), ()
            found = self._gateway.look_up_now(past.name)
            rest = pending = None
            if found.order is not None and past.remainder is not None and found.order.status == OrderStatus.FILLED:
                rest = self._gateway.look_up_now(past.remainder.name).order
            if found.order is not None and past.replacements:
                pending = self._look_up_pending(past, found)
        except BrokerError as error:
            self._is_reached = False  # one is waited for long enough
            _log.error("an order of an earlier run cannot be asked for", client_order_id=past.name, error=str(error))
            return VenueAnswer(is_answered=False), ()
        orders = () if found.order is None else (*found.before, found.order)
        return VenueAnswer(orders=orders, rest=rest, pending=pending), found.legs

    def _look_up_pending(self, past: PastOrder, found: OrderLookedUp) -> VenueOrder | None:
        last = past.replacements[-1].name
        stood = (*found.before, *((found.order,) if found.order is not None else ()))
        if any(order.client_order_id == last for order in stood):
            return None
        return self._gateway.look_up_now(last).order

    def _fetch_executions(self) -> Mapping[str, Sequence[Execution]]:
        """Return the executions of orders whose totals are not those of their fills, by the venue's order id."""
        since_ns: list[int] = []
        for name, answer in self._answers.items():
            orders = (*answer.orders, *((answer.rest,) if answer.rest is not None else ()))
            known = sum((fill.qty for fill in self._past[name].fills), Decimal(0)) if name in self._past else Decimal(0)
            if sum((order.filled_qty for order in orders), Decimal(0)) != known:
                since_ns += [order.created_ns for order in orders]
        found: dict[str, list[Execution]] = defaultdict(list)
        if since_ns:
            for execution in self._link.fetch_executions(since_ns=max(min(since_ns) - 1_000_000_000, 0)):
                found[execution.order_id].append(execution)
        return found

    # Tickets

    def _make_ticket(self, past: PastOrder) -> Ticket:
        placed, told, desk = past.placed, past.told, self._desk
        data = self._find_data(past)
        order = build_past_order(
            placed,
            data,
            name=past.name,
            owner=None,
            parent=_order_of(desk, placed.parent),
            oco=_order_of(desk, placed.oco),
            comminfo=self._commission_of(data),
        )
        request = past.first.request
        if past.remainder is not None and request.qty is not None and past.remainder.request.qty is not None:
            request = replace(request, qty=request.qty + past.remainder.request.qty)
        ticket = Ticket(
            order=order,
            client_order_id=past.name,
            symbol=past.symbol,
            terms=placed.terms,
            submitted_ns=placed.placed_ns,
            request=None if past.is_refused_here else request,
            phase=told.phase or Phase.SUBMITTED,
            is_sent=True,
            number=past.number,
            is_answered=past.first.is_journalled,
            saved=told.submit,
            told=None if told.phase is None else told,
            asked_replacement=told.replacing,
        )
        if told.phase is not None:
            for phase in (*_TOLD_BEFORE.get(told.phase, ()), told.phase):
                show_phase(order, phase, self._broker)
        ends_at_venue = placed.day and request.time_in_force is TimeInForce.DAY
        if placed.until is not None and placed.kind != "Market" and not ends_at_venue:
            ticket.valid = placed.until
        desk.add(ticket)
        for name in _names(past):
            desk.add_name(name, ticket)
        if ticket.phase.is_open:
            desk.open[past.name] = ticket
            desk.notices.note(ticket)
            if ticket.valid is not None:
                self._entry.next_valid = min(self._entry.next_valid, ticket.valid)
        return ticket

    def _join_groups(self, tickets: Mapping[str, Ticket]) -> None:
        groups: dict[str, list[Ticket]] = defaultdict(list)
        for past in self._past.values():
            if past.role is not None:
                groups[past.head or past.name].append(tickets[past.name])
        for head, members in groups.items():
            for ticket in members:
                role = self._past[ticket.client_order_id].role
                assert role is not None
                ticket.join(members, role)
                if ticket.client_order_id != head:
                    ticket.venue_name = ""  # the venue gives it one
            entry = next((ticket for ticket in members if ticket.role is Role.ENTRY), None)
            if entry is not None and entry.phase is Phase.COMPLETED:
                for ticket in members:
                    ticket.order.activate()

    def _remember(self, ticket: Ticket, action: act.RememberFill) -> None:
        fill, order = action.fill, ticket.order
        comminfo = self._commission_of(order.data)
        self._book.books.restore(replace(fill, symbol=position_key(fill.symbol)))
        ticket.filled += fill.qty
        if fill.qty < 0:
            take_back_execution(order, fill, comminfo)
        else:
            restore_execution(order, qty=fill.change, price=fill.price, time_ns=fill.ts_event_ns, comminfo=comminfo)
        if not action.is_journalled:
            self._desk.changes.write_down(fill, ticket)
        show_phase(order, ticket.phase, self._broker)

    def _rewind(self, taken: Iterable[act.TakeFill]) -> None:
        """Bring the books back to what they were before the fills that are about to be applied."""
        expected = expect_positions(self._books)
        for action in reversed(list(taken)):
            held = expected.get(position_key(action.fill.symbol))
            self._book.rewind(action.fill, price=held.price if held is not None else Decimal(0))

    # What is to be done

    def _apply(self, ticket: Ticket, action: act.OrderAction) -> None:
        desk, changes, order = self._desk, self._desk.changes, ticket.order
        if isinstance(action, act.Announce):
            show_phase(order, Phase.SUBMITTED, self._broker)
            desk.notices.notify(order, ticket)
        elif isinstance(action, act.Accept):
            changes.advance(ticket, Effect.ACCEPT)
        elif isinstance(action, act.TakeFill):
            self._counters["fills from before the start"] += 1
            if action.fill.qty < 0:
                changes.take_back(ticket, action.fill)
            else:
                changes.execute(ticket, action.fill, Effect.FILL if action.completes else Effect.PARTIAL_FILL)
        elif isinstance(action, act.Complete):
            changes.complete(ticket)
        elif isinstance(action, act.Stand):
            desk.replacements.show(ticket, action.part.request, is_told=action.is_told)
        elif isinstance(action, act.Bind):
            self._bind(ticket, action.order)
        elif isinstance(action, act.EndOrder):
            self._end(ticket, action)
        elif isinstance(action, act.WriteEnd):
            changes.write_end(ticket, action.phase)
        elif isinstance(action, act.AwaitReplacement | act.SendReplacement):
            self._replace(ticket, action)
        elif isinstance(action, act.RefuseReplacement):
            desk.replacements.tell_refusal(ticket, action.reason or "the venue refused the replacement", action.code)
        else:
            self._send(ticket, action)

    def _send(self, ticket: Ticket, action: act.OrderAction) -> None:
        task = self._tasks[ticket.client_order_id]
        if isinstance(action, act.SendOrder):
            rest = next((leg for leg in task.legs if leg.role is Role.REMAINDER), None)
            if rest is not None:
                ticket.remainder = Ticket.Remainder(rest.request, rest.number)
            _log.info("an order that was not sent before is sent now", client_order_id=ticket.client_order_id)
            self._gateway.submit(
                task.request, number=task.number, at_ns=self._wall_ns, legs=task.legs, is_intended=task.is_intended,
                terms=task.terms,
            )  # fmt: skip
        elif isinstance(action, act.KeepRest | act.SendRest):
            part = action.part
            ticket.remainder = Ticket.Remainder(part.request, part.number)
            if isinstance(action, act.SendRest):
                self._desk.changes.go_on(ticket)
        elif isinstance(action, act.CancelAgain):
            self._entry.ask_cancel(ticket)
        elif isinstance(action, act.AwaitOrder):
            name = ticket.client_order_id
            ticket.is_unresolved = self._past[name].first.outcome in ("", "unknown")
            reason = f"the venue did not say what became of {name}"
            self._halt(act.HaltSymbol(symbol=position_key(ticket.symbol), cause=name, reason=reason))
            self._gateway.look_up([ticket.sent_name])

    def _bind(self, ticket: Ticket, order: VenueOrder) -> None:
        past = self._past[ticket.client_order_id]
        ticket.is_answered = True
        self._write_down(past, order)
        if past.remainder is not None and order.client_order_id == past.remainder.name:
            ticket.sent_name = past.remainder.name
        self._desk.bind(ticket, order)
        if order.client_order_id != ticket.sent_name:
            self._gateway.assign(ticket.sent_name, order.id)

    def _write_down(self, past: PastOrder, order: VenueOrder) -> None:
        """Let the journal know that the venue has an order, if it does not yet."""
        parts = (past.first, *past.replacements, *((past.remainder,) if past.remainder is not None else ()))
        part = next((part for part in parts if part.name == order.client_order_id), past.first)
        is_new = part is past.first and not part.is_journalled
        if is_new:
            intent = Intent(request=part.request, number=part.number, terms=encode_placed(past.placed))
            self._journal.record_intents([intent], agent=self._agent, session=past.session, at_ns=self._wall_ns)
        if is_new or order.id not in part.order_ids:
            action = "replace" if part in past.replacements else "submit"
            self._journal.record_outcome(
                part.name,
                action=action,
                outcome="accepted",
                order_id=order.id,
                message=TAKEN_UP if is_new else "",
                at_ns=self._wall_ns,
            )

    def _replace(self, ticket: Ticket, action: act.AwaitReplacement | act.SendReplacement) -> None:
        part = action.part
        ticket.replacing = PendingReplacement(part.request)
        ticket.asked_replacement = part.name
        self._desk.add_name(part.name, ticket)
        if isinstance(action, act.SendReplacement) and part.change is not None:
            self._gateway.replace(
                ticket.sent_name,
                part.change,
                part.request,
                number=part.number,
                at_ns=self._wall_ns,
                is_intended=part.is_journalled,
            )

    def _end(self, ticket: Ticket, action: act.EndOrder) -> None:
        info = ticket.order.info
        reason = action.reason or str(info.get("reject_reason") or "")
        if action.phase is Phase.CANCELED and ticket.valid is not None and action.at_ns:
            ticket.is_expiring = line_time(action.at_ns) > ticket.valid
        if reason:
            ticket.order.addinfo(reject_reason=reason)
        code = action.code if action.code is not None else info.get("reject_code")
        self._desk.changes.advance(ticket, _EFFECTS[action.phase], reason=reason, code=code, at_ns=action.at_ns)


def _names(past: PastOrder) -> list[str]:
    rest = [] if past.remainder is None else [past.remainder.name]
    return [past.name, *(part.name for part in past.replacements), *rest]


def _order_of(desk: OrderDesk, name: str) -> Any:
    ticket = desk.tickets.get(name) if name else None
    return ticket.order if ticket is not None else None
