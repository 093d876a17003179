"""What is to be done with an order of an earlier process: its life is told once, whoever has seen which part of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dry_work.broker import actions as act
from dry_work.broker.differences import explain, find_differences, find_foreign, mark_position
from dry_work.broker.past_orders import PastOrder, PastPart
from dry_work.broker.placed import place_from_request
from dry_work.broker.reconcile import AGE_NS, VenueAnswer, complete_fills, reconcile_order
from dry_work.broker.told import ToldOrder, ToldRecord, encode_told, parse_told
from dry_work.orders.books import Books, Fill, HeldPosition, undo
from dry_work.orders.lifecycle import Phase, next_phases, status_effect
from dry_work.orders.model import Execution, OrderRequest, OrderType, Side, TimeInForce, VenueOrder

NAME = "dw-a-s-1"
WALL_NS = 10**18
ENDS = {"canceled": Phase.CANCELED, "expired": Phase.EXPIRED, "rejected": Phase.REJECTED}


def request_for(qty: int) -> OrderRequest:
    return OrderRequest(
        client_order_id=NAME, symbol="AAPL", side=Side.BUY, type=OrderType.LIMIT, time_in_force=TimeInForce.GTC,
        qty=Decimal(qty), limit_price=Decimal(10),
    )  # fmt: skip


def venue_order(qty: int, fills: list[tuple[int, int]], status: str, **changes: Any) -> VenueOrder:
    filled = sum(part for part, _ in fills)
    value = sum(part * price for part, price in fills)
    order = VenueOrder(
        id="v1", client_order_id=NAME, symbol="AAPL", side=Side.BUY, type=OrderType.LIMIT,
        time_in_force=TimeInForce.GTC, status=status, qty=Decimal(qty), limit_price=Decimal(10),
        filled_qty=Decimal(filled), filled_avg_price=Decimal(value) / filled if filled else None,
        created_ns=1, updated_ns=100 + len(fills),
    )  # fmt: skip
    return replace(order, **changes)


def fill_for(number: int, fills: list[tuple[int, int]]) -> Fill:
    qty, price = fills[number]
    return Fill(
        execution_id=f"x{number}", client_order_id=NAME, symbol="AAPL", side=Side.BUY, qty=Decimal(qty),
        price=Decimal(price), ts_event_ns=100 + number,
        filled_qty=Decimal(sum(part for part, _ in fills[: number + 1])),
    )  # fmt: skip


def list_executions(fills: list[tuple[int, int]]) -> dict[str, list[Execution]]:
    rows = [fill_for(number, fills) for number in range(len(fills))]
    return {
        "v1": [
            Execution(
                execution_id=row.execution_id, order_id="v1", qty=row.qty, price=row.price,
                ts_event_ns=row.ts_event_ns, filled_qty=row.filled_qty,
            )
            for row in rows
        ]
    }  # fmt: skip


@st.composite
def lives(draw: st.DrawFn) -> dict[str, Any]:
    """An order's life at the venue, and how much of it the journal and the strategy know."""
    fills = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(8, 12)), max_size=5))
    total = sum(part for part, _ in fills)
    is_filled = bool(fills) and draw(st.booleans())
    qty = total if is_filled else total + draw(st.integers(1, 5))
    open_word = "partially_filled" if fills else "new"
    status = "filled" if is_filled else draw(st.sampled_from([open_word, *ENDS]))
    journalled = draw(st.integers(0, len(fills)))
    told = draw(st.integers(0, len(fills)))
    phase: Phase | None = Phase.PARTIAL if told else draw(st.sampled_from([None, Phase.SUBMITTED, Phase.ACCEPTED]))
    if told == len(fills) and is_filled:
        phase = draw(st.sampled_from([Phase.COMPLETED, Phase.PARTIAL])) if told < len(fills) else Phase.COMPLETED
    return {
        "fills": fills, "qty": qty, "status": status, "journalled": journalled, "told": told, "phase": phase,
        "listed": draw(st.booleans()),
    }  # fmt: skip


@given(life=lives())
@settings(max_examples=300, deadline=None)
def test_what_is_told_before_and_after_is_the_whole_life_once(life: dict[str, Any]) -> None:
    fills, told, phase = life["fills"], life["told"], life["phase"]
    order = venue_order(life["qty"], fills, life["status"])
    past = PastOrder(
        name=NAME, session="s", placed=place_from_request(request_for(life["qty"]), placed_ns=1),
        first=PastPart(name=NAME, request=request_for(life["qty"]), number=1, outcome="accepted", order_ids=("v1",)),
        fills=tuple(fill_for(number, fills) for number in range(life["journalled"])),
        told=ToldOrder(phase=phase, filled=Decimal(sum(part for part, _ in fills[:told]))),
    )  # fmt: skip
    executions = list_executions(fills) if life["listed"] else {}
    found = reconcile_order(
        past, VenueAnswer(orders=(order,)), executions=executions, wall_ns=WALL_NS, venue_ns=WALL_NS
    )
    assert [action.at_ns for action in found] == sorted(action.at_ns for action in found)  # type: ignore[union-attr]
    remembered = [action.fill for action in found if isinstance(action, act.RememberFill)]
    taken = [action for action in found if isinstance(action, act.TakeFill)]
    # All that the venue has executed is there once, and the strategy hears of what it does not know.
    assert (
        sum((fill.qty for fill in remembered), Decimal(0)) + sum((action.fill.qty for action in taken), Decimal(0))
        == order.filled_qty
    )
    books = Books()
    for fill in (*remembered, *(action.fill for action in taken)):
        books.apply(fill)
    assert books.duplicates == 0
    assert abs(books.cash + sum(part * price for part, price in fills)) < Decimal("1e-20")
    if life["listed"] or life["journalled"] >= told:
        assert sum((fill.qty for fill in remembered), Decimal(0)) == past.told.filled
    if life["listed"]:
        assert [action.fill.execution_id for action in taken] == [f"x{n}" for n in range(told, len(fills))]
    # The phases that it goes through end where the venue has it, and never twice in one.
    now, ended = phase, 0
    for action in found:
        if isinstance(action, act.Announce):
            assert now is None
            now = Phase.SUBMITTED
        elif isinstance(action, act.Accept):
            assert now is Phase.SUBMITTED
            now = Phase.ACCEPTED
        elif isinstance(action, act.TakeFill):
            assert now is not None
            now = Phase.COMPLETED if action.completes else Phase.PARTIAL
        elif isinstance(action, act.Complete):
            now = Phase.COMPLETED
        elif isinstance(action, act.EndOrder):
            ended += 1
            now = action.phase
    expected = {
        "filled": Phase.COMPLETED, "new": Phase.ACCEPTED, "partially_filled": Phase.PARTIAL, **ENDS,
    }[life["status"]]  # fmt: skip
    assert now is expected
    assert ended <= 1


@given(
    outcome=st.sampled_from(["", "unknown"]), age_s=st.integers(0, 200), cancel_asked=st.booleans(),
    phase=st.sampled_from([None, Phase.SUBMITTED]),
)  # fmt: skip
def test_an_order_that_never_arrived_is_sent_while_it_is_young_and_otherwise_ended(
    outcome: str, age_s: int, cancel_asked: bool, phase: Phase | None
) -> None:
    past = PastOrder(
        name=NAME, session="s", placed=place_from_request(request_for(5), placed_ns=1),
        first=PastPart(
            name=NAME, request=request_for(5), number=1, outcome=outcome, intended_ns=WALL_NS - age_s * 10**9
        ),
        told=ToldOrder(phase=phase, cancel_asked=cancel_asked),
    )  # fmt: skip
    found = reconcile_order(past, VenueAnswer(), executions={}, wall_ns=WALL_NS, venue_ns=1)
    kinds = [type(action) for action in found]
    assert kinds[: kinds.index(act.Announce) + 1 if phase is None else 0] == [act.Announce] * (phase is None)
    is_sent = age_s * 10**9 < AGE_NS and not cancel_asked
    assert (act.SendOrder in kinds) is is_sent
    assert (act.EndOrder in kinds) is not is_sent
    assert not any(isinstance(action, act.HaltSymbol) for action in found)


def test_nothing_is_decided_while_the_venue_does_not_answer() -> None:
    past = PastOrder(
        name=NAME, session="s", placed=place_from_request(request_for(5), placed_ns=1),
        first=PastPart(name=NAME, request=request_for(5), number=1), told=ToldOrder(phase=Phase.SUBMITTED),
    )  # fmt: skip
    found = reconcile_order(past, VenueAnswer(is_answered=False), executions={}, wall_ns=WALL_NS, venue_ns=WALL_NS)
    assert [type(action) for action in found] == [act.AwaitOrder]


@given(fills=st.lists(st.tuples(st.integers(1, 5), st.integers(8, 12)), min_size=1, max_size=5), data=st.data())
def test_what_was_taken_back_is_found_by_its_id_or_by_the_total(fills: list[tuple[int, int]], data: Any) -> None:
    gone = data.draw(st.integers(0, len(fills) - 1))
    left = [part for number, part in enumerate(fills) if number != gone]
    known = [fill_for(number, fills) for number in range(len(fills))]
    order = venue_order(30, left, "partially_filled")
    listed = {"v1": [row for row in list_executions(fills)["v1"] if row.execution_id != f"x{gone}"]}
    for executions in (listed, {}):
        [back] = complete_fills(order, known, executions)
        assert back.qty == -fills[gone][0]
        books = Books()
        for fill in (*known, back):
            books.apply(fill)
        assert books.filled_qty(NAME) == order.filled_qty
        value = sum(part * price for part, price in left)
        assert abs(books.cash + value) < Decimal("1e-20")
    assert complete_fills(order, known, listed)[0].previous_execution_id == f"x{gone}"


signed = st.integers(-6, 6).filter(bool)


@given(changes=st.lists(st.tuples(signed, st.integers(1, 9)), min_size=1, max_size=6))
def test_undoing_the_last_change_gives_the_quantity_and_where_it_can_be_told_the_price(
    changes: list[tuple[int, int]],
) -> None:
    def build(rows: list[tuple[int, int]]) -> Books:
        books = Books()
        for number, (qty, price) in enumerate(rows):
            side = Side.BUY if qty > 0 else Side.SELL
            books.apply(
                Fill(
                    execution_id=str(number), client_order_id="n", symbol="A", side=side, qty=Decimal(abs(qty)),
                    price=Decimal(price), ts_event_ns=number,
                )
            )  # fmt: skip
        return books

    before, after = build(changes[:-1]).position("A"), build(changes).position("A")
    qty, price = changes[-1]
    found = undo(after, Decimal(qty), Decimal(price))
    assert found.qty == before.qty
    if after.qty and (after.qty > 0) == (before.qty > 0) and before.qty:
        assert abs(found.price - before.price) < Decimal("1e-20")


# The account


def foreign(number: int, qty: int, **changes: Any) -> VenueOrder:
    order = venue_order(abs(qty), [(abs(qty), 10)], "filled", id=f"f{number}", client_order_id=f"by-hand-{number}")
    side = Side.BUY if qty > 0 else Side.SELL
    return replace(order, side=side, filled_ns=number, **changes)


@given(
    ours=st.dictionaries(st.sampled_from("ABC"), st.integers(-3, 3)),
    theirs=st.dictionaries(st.sampled_from("ABC"), st.integers(-3, 3)),
)
def test_differences_are_those_of_the_quantities(ours: dict[str, int], theirs: dict[str, int]) -> None:
    found = find_differences(
        {symbol: HeldPosition(Decimal(qty)) for symbol, qty in ours.items()},
        {symbol: HeldPosition(Decimal(qty)) for symbol, qty in theirs.items()},
    )
    for symbol in "ABC":
        assert found.get(symbol, 0) == theirs.get(symbol, 0) - ours.get(symbol, 0)
    assert all(found.values())


@given(changes=st.lists(signed, max_size=6), seen=st.integers(0, 6), own=st.integers(-3, 3), odd=st.integers(-2, 2))
def test_a_difference_is_explained_by_orders_or_not_at_all(changes: list[int], seen: int, own: int, odd: int) -> None:
    """The oldest orders were counted before; a missed fill of ours is one more reason; the rest is nobody's."""
    orders = [foreign(number, qty) for number, qty in enumerate(changes, start=1)]
    mine = venue_order(9, [(5, 10)], "partially_filled")
    new = changes[seen:]
    difference = Decimal(sum(new) + own + odd)
    found = explain(
        difference, [*reversed(orders), mine],
        our_total=lambda order: Decimal(5 - own) if order.client_order_id == NAME else None,
        seen={f"f{number}": Decimal(abs(qty)) for number, qty in enumerate(changes[:seen], start=1)},
        is_crypto=False,
    )  # fmt: skip
    assert [missed.change for missed in found.missed] == [own] * bool(own)
    told = sum((order.filled_qty * (1 if order.side is Side.BUY else -1) for order in found.foreign), Decimal(0))
    assert told + found.rest + own == difference
    if not odd:
        assert found.rest == 0
    # Never an order that was counted before.
    assert not {order.id for order in found.foreign} & {f"f{number}" for number in range(1, seen + 1)}
    marks = mark_position("A", found, before=Decimal(0), after=HeldPosition(difference), agent="a")
    positions = [mark for mark in marks if isinstance(mark, act.MarkPosition)]
    assert len(positions) == bool(difference - own)


def test_fees_in_coins_explain_what_is_missing_of_what_was_bought() -> None:
    bought = [foreign(1, 100)]
    for difference, is_explained in (("99.75", True), ("99.74", False), ("100.01", False)):
        found = explain(Decimal(difference), bought, our_total=lambda order: None, seen={}, is_crypto=True)
        assert (found.rest == 0) is is_explained
    assert explain(Decimal("99.75"), bought, our_total=lambda order: None, seen={}, is_crypto=False).rest == Decimal(
        "99.75"
    )


def test_an_order_that_is_not_ours_is_marked_until_it_was_seen() -> None:
    order = foreign(1, 5)
    mine = replace(order, id="m", client_order_id="dw-a-s-9")
    flat = replace(order, id="c", client_order_id="dw-a-flatxy_A-1")
    other = replace(order, id="o", client_order_id="dw-b-s-9")
    found = find_foreign([order, mine, flat, other], agent="a", is_ours=lambda order: False, seen={"f1": Decimal(0)})
    marks = [action.owner for action in found if isinstance(action, act.MarkForeign)]
    assert marks == ["agent a with another journal", "dry-work flatten", "agent b"]
    assert [action.cause for action in found if isinstance(action, act.HaltSymbol)] == ["dw-a-s-9"]
    assert find_foreign([order], agent="a", is_ours=lambda order: True, seen={}) == []


# What is kept


@given(
    phase=st.sampled_from([None, *Phase]), filled=st.decimals(0, 10**6, places=9), cancel_asked=st.booleans(),
    numbers=st.dictionaries(st.text(min_size=1), st.integers(0, 10**9)),
)  # fmt: skip
def test_what_was_told_comes_back_as_it_was_kept(
    phase: Phase | None, filled: Decimal, cancel_asked: bool, numbers: dict[str, int]
) -> None:
    import json

    told = ToldOrder(phase=phase, filled=filled, cancel_asked=cancel_asked, standing="x")
    record = ToldRecord(numbers=numbers, orders={NAME: told})
    assert parse_told(json.loads(json.dumps(encode_told(record)))) == record


def test_the_table_of_phases_agrees_with_what_is_ended_here() -> None:
    for word, phase in ENDS.items():
        assert next_phases(Phase.ACCEPTED, status_effect(word)) == (phase,)
