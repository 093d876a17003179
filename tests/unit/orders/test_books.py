"""Cash and positions follow the fills, each once, whatever their order and however often they are told."""

from __future__ import annotations

from decimal import Decimal

import backtrader as bt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.orders.books import Books, Fill
from dry_work.orders.model import OrderType, Side, TimeInForce, VenueOrder, VenuePosition

D = Decimal


def fill(
    number: int, qty: str, price: str, *, order: str = "o", symbol: str = "AAPL", total: str | None = None
) -> Fill:
    return Fill(
        execution_id=f"x{number}",
        client_order_id=order,
        symbol=symbol,
        side=Side.SELL if qty.startswith("-") else Side.BUY,
        qty=abs(D(qty)),
        price=D(price),
        ts_event_ns=number,
        filled_qty=None if total is None else D(total),
    )


def venue_order(filled: str, average: str | None, *, name: str = "o", side: Side = Side.BUY) -> VenueOrder:
    return VenueOrder(
        id="v", client_order_id=name, symbol="AAPL", side=side, type=OrderType.MARKET, time_in_force=TimeInForce.DAY,
        status="new", qty=D(10), filled_qty=D(filled), filled_avg_price=None if average is None else D(average),
    )  # fmt: skip


AMOUNTS = st.decimals("0.000000001", "10000", places=9)
PRICES = st.decimals("0.0001", "70000", places=4)
EXECUTIONS = st.lists(
    st.tuples(st.sampled_from(("AAPL", "BTC/USD")), st.sampled_from(list(Side)), AMOUNTS, PRICES), max_size=12
)


@given(EXECUTIONS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_any_order_and_any_repetition_give_the_same_account(executions, random, repeats) -> None:
    fills = [
        fill(n, f"{'-' if side is Side.SELL else ''}{qty}", f"{price}", order=f"o{n % 3}", symbol=symbol)
        for n, (symbol, side, qty, price) in enumerate(executions)
    ]
    straight = Books(cash=D(100_000))
    for one in fills:
        straight.apply(one)
    told = fills * (1 + repeats)
    random.shuffle(told)
    mixed = Books(cash=D(100_000))
    for one in told:
        mixed.apply(one)
    assert mixed.cash == straight.cash
    assert {s: mixed.position(s).qty for s in mixed.symbols} == {s: straight.position(s).qty for s in straight.symbols}
    assert mixed.duplicates == len(told) - len(fills)
    # What was paid is what is held: nothing appears and nothing is lost.
    assert straight.cash == 100_000 - sum((f.change * f.price for f in fills), D(0))
    for symbol in ("AAPL", "BTC/USD"):
        assert straight.position(symbol).qty == sum((f.change for f in fills if f.symbol == symbol), D(0))


@given(st.lists(st.tuples(st.sampled_from(list(Side)), st.integers(1, 50), PRICES), min_size=1, max_size=12))
def test_positions_split_fills_as_backtrader_does(executions) -> None:
    books, position = Books(), bt.Position()
    for n, (side, qty, price) in enumerate(executions):
        change = books.apply(
            Fill(
                execution_id=str(n),
                client_order_id="o",
                symbol="AAPL",
                side=side,
                qty=D(qty),
                price=price,
                ts_event_ns=n,
            )
        )
        assert change is not None
        size = qty if side is Side.BUY else -qty
        after, average, opened, closed = position.update(size, float(price))
        assert (change.qty_after, change.opened, change.closed) == (after, opened, closed)
        assert float(change.price_after) == pytest.approx(average, rel=1e-9)


def test_tenths_leave_no_residue() -> None:
    books = Books()
    for n, qty in enumerate(("0.1", "0.2", "-0.3")):
        change = books.apply(fill(n, qty, "10"))
    assert change is not None
    assert change.qty_after == 0
    assert change.closed == D("-0.3")
    assert books.symbols == ()
    assert books.cash == 0


def test_a_fill_through_zero_closes_and_opens() -> None:
    books = Books(positions=[VenuePosition(symbol="AAPL", qty=D(3), avg_entry_price=D(7))])
    change = books.apply(fill(1, "-5", "8"))
    assert change is not None
    assert (change.closed, change.opened, change.price_before, change.price_after) == (D(-3), D(-2), D(7), D(8))
    assert books.position("AAPL").qty == -2


def test_the_total_finds_what_no_event_told() -> None:
    books = Books()
    books.apply(fill(1, "2", "10", total="2"))
    missing = books.missing_fill(venue_order("6", "11"), 99)
    assert missing is not None
    assert (missing.qty, missing.price, missing.ts_event_ns) == (D(4), D("11.5"), 99)
    assert books.apply(missing) is not None
    assert books.cash == -66
    assert books.missing_fill(venue_order("6", "11"), 99) is None


def test_an_event_that_a_total_covers_is_not_applied_again() -> None:
    books = Books()
    missing = books.missing_fill(venue_order("6", "11"), 1)
    assert missing is not None
    books.apply(missing)
    assert books.apply(fill(1, "2", "10", total="2")) is None
    assert books.apply(fill(2, "4", "11.5", total="6")) is None
    assert books.apply(fill(3, "1", "12", total="7")) is not None
    assert books.filled_qty("o") == 7


def test_a_total_is_older_than_an_event_that_came_first() -> None:
    books = Books()
    books.apply(fill(1, "2", "10", total="2"))
    books.apply(fill(2, "4", "11.5", total="6"))
    assert books.missing_fill(venue_order("2", "10"), 1) is None
    assert books.missing_fill(venue_order("0", None), 1) is None


def test_a_gap_in_front_of_an_event_is_found_with_it() -> None:
    books = Books()
    last = fill(2, "4", "11.5", total="6")
    missing = books.missing_fill(venue_order("6", "11"), 5, without=last)
    assert missing is not None
    assert (missing.qty, missing.price) == (D(2), D(10))
    books.apply(missing)
    assert books.apply(last) is not None
    assert books.apply(fill(1, "2", "10", total="2")) is None  # the one that was missing comes after all
    assert (books.position("AAPL").qty, books.cash) == (6, -66)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 99)), min_size=1, max_size=6), st.data())
def test_events_and_totals_in_any_mixture_fill_an_order_once(parts, data) -> None:
    totals, events, qty, value = [], [], D(0), D(0)
    for n, (size, price) in enumerate(parts):
        qty, value = qty + size, value + size * price
        events.append(fill(n, str(size), str(price), total=str(qty)))
        totals.append((qty, value))
    told = [("event", event) for event in events] + [("total", total) for total in totals]
    told = data.draw(st.permutations(told))
    kept = data.draw(st.integers(0, len(told)))
    books = Books()
    # The final total always comes: after a reconnect the order is looked up.
    for kind, what in [*told[:kept], ("total", totals[-1]), *told[kept:]]:
        if kind == "event":
            books.apply(what)
        else:
            missing = books.missing_fill(venue_order(str(what[0]), str(what[1] / what[0])), 1)
            if missing is not None:
                books.apply(missing)
    assert books.position("AAPL").qty == qty
    assert books.filled_qty("o") == qty
    assert float(books.cash) == pytest.approx(-float(value), abs=1e-9)


def test_a_snapshot_replaces_and_says_what_changed() -> None:
    books = Books(cash=D(5), positions=[VenuePosition(symbol="AAPL", qty=D(3), avg_entry_price=D(7))])
    changed = books.reset(
        D(9),
        [
            VenuePosition(symbol="AAPL", qty=D(3), avg_entry_price=D(7)),
            VenuePosition(symbol="IBM", qty=D(-1), avg_entry_price=D(2)),
        ],
    )
    assert changed == {"IBM"}
    assert books.cash == 9
    assert books.reset(D(9), []) == {"AAPL", "IBM"}


def test_the_venue_has_the_last_word_on_a_quantity() -> None:
    books = Books()
    books.apply(fill(1, "1", "100", symbol="BTC/USD"))
    assert books.adopt_qty("BTC/USD", D("0.9975"))
    assert not books.adopt_qty("BTC/USD", D("0.9975"))
    assert books.position("BTC/USD").qty == D("0.9975")
    assert books.position("BTC/USD").price == 100


def test_a_contract_of_an_option_moves_cash_by_a_hundred_times_its_price() -> None:
    books = Books(cash=D(10_000))
    option = "AAPL240315C00172500"
    books.apply(fill(1, "2", "1.25", symbol=option))
    assert books.cash == D(9_750)
    books.apply(fill(2, "-2", "1.50", order="p", symbol=option))
    assert (books.cash, books.position(option).qty) == (D(10_050), D(0))
