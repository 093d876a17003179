"""An order's life as a strategy hears it, with real HTTP and a real stream."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import backtrader as bt
import orjson
import pytest

from dry_work.broker.books_reader import read_books
from dry_work.broker.own_books import build_orders
from dry_work.wire.alpaca_rest import encode_error

from .conftest import build_broker
from .scripted_venue import ScriptedVenue, foreign_request, wait_until
from .stepping import buy, run, seen, settle

FULL = ["Submitted", "Accepted", "Completed"]


def test_a_fill_in_three_parts_gives_one_trade_and_one_completion(venue: ScriptedVenue, broker: Any) -> None:
    def fill() -> None:
        order = venue.wait_submit(1)
        seen(
            venue,
            broker,
            venue.build_event("new", order),
            venue.build_event("partial_fill", order, qty="0.1", price="10"),
            venue.build_event("partial_fill", order, qty="0.2", price="11"),
            venue.build_event("fill", order, qty="0.3", price="12"),
        )

    strategy = run(broker, {1: buy(size=0.6)}, {2: fill})
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Partial", "Partial", "Completed"]
    assert [len(clone.executed.getpending()) for clone in strategy.clones] == [0, 0, 1, 1, 1]
    assert order.executed.size == pytest.approx(0.6)
    assert order.executed.price == pytest.approx((0.1 * 10 + 0.2 * 11 + 0.3 * 12) / 0.6)
    assert order.executed.remsize == 0
    assert not order.alive()
    assert [trade.size for trade in strategy.trades] == [pytest.approx(0.1)]  # one opening
    assert strategy._trades[strategy.data][0][-1].size == pytest.approx(0.6)
    assert broker.getposition(strategy.data).size == 0.6
    assert broker.getcash() == pytest.approx(100_000 - 6.8)


def test_executed_bits_are_what_backbroker_computes(venue: ScriptedVenue, journal: Any) -> None:
    broker = build_broker(venue, journal, rules="backtrader")  # which knows nothing of orders through zero
    broker.setcommission(commission=0.01)

    def fill(number: int, qty: str, price: str) -> Any:
        def script() -> None:
            order = venue.wait_submit(number)
            seen(venue, broker, venue.build_event("new", order), venue.build_event("fill", order, qty=qty, price=price))

        return script

    strategy = run(
        broker,
        {1: buy(size=10), 2: lambda s: s.sell(size=15), 3: lambda s: s.close()},
        {2: fill(1, "10", "20"), 3: fill(2, "15", "22"), 4: fill(3, "5", "21")},
    )
    reference = bt.brokers.BackBroker(commission=0.0)
    reference.setcommission(commission=0.01)
    reference.setcash(100_000)
    bits = [bit for order in strategy.orders for bit in order.executed.exbits]
    for bit, size, price in zip(bits, (10, -15, 5), (20.0, 22.0, 21.0), strict=True):
        position = reference.positions[strategy.data]
        before = position.price
        after, average, opened, closed = position.update(size, price)
        comminfo = reference.getcommissioninfo(strategy.data)
        assert (bit.size, bit.price, bit.opened, bit.closed) == (size, price, opened, closed)
        assert (bit.psize, bit.pprice) == (after, average)
        assert bit.pnl == comminfo.profitandloss(-closed, before, price)
        assert bit.closedvalue == (comminfo.getvaluesize(-closed, before) if closed else 0.0)
        assert bit.openedvalue == (comminfo.getvaluesize(opened, price) if opened else 0.0)
        assert bit.comm == pytest.approx(abs(size) * price * 0.01)
    closed_trades = [trade for trade in strategy.trades if trade.isclosed]
    assert [trade.pnl for trade in closed_trades] == [20.0, 5.0]
    assert [trade.pnlcomm for trade in closed_trades] == [pytest.approx(20 - 2 - 2.2), pytest.approx(5 - 1.1 - 1.05)]
    assert bits[0].dt == pytest.approx(bt.date2num(dt.datetime(2024, 6, 11, 13, 31)))


@pytest.mark.parametrize(
    ("code", "message", "status"),
    [
        (40310000, "insufficient buying power", "Margin"),
        (40310000, "account is not allowed to short", "Rejected"),
        (None, "the symbol is halted", "Rejected"),
        (None, "", "Rejected"),
    ],
)
def test_an_order_rejected_after_its_submit(
    venue: ScriptedVenue, broker: Any, code: int | None, message: str, status: str
) -> None:
    def reject() -> None:
        order = venue.wait_submit(1)
        seen(venue, broker, venue.build_event("rejected", order, code=code, message=message))

    strategy = run(broker, {1: buy(size=1)}, {2: reject})
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", status]
    assert order.info.reject_reason == (message or "the venue gave no reason")
    assert order.info.reject_code == code


@pytest.mark.parametrize(
    ("http_status", "code", "message", "status"),
    [
        (403, 40310000, "insufficient buying power", "Margin"),
        (403, 40310000, "insufficient qty available for order (requested: 1, available: 0)", "Rejected"),
        (422, 42210000, "invalid symbol", "Rejected"),
    ],
)
def test_an_order_refused_at_its_submit(
    venue: ScriptedVenue, broker: Any, http_status: int, code: int, message: str, status: str
) -> None:
    venue.on_submit = lambda request, number: (http_status, encode_error(code, message))
    strategy = run(broker, {1: buy(size=1)}, {3: lambda: settle(broker)}, bars=5)
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", status]
    assert (order.info.reject_reason, order.info.reject_code) == (message, code)
    assert len(venue.submits) == 1


@pytest.mark.parametrize("event", ["fill", "canceled", "expired", "rejected"])
def test_how_an_order_ended_is_in_the_journal(venue: ScriptedVenue, broker: Any, journal: Any, event: str) -> None:
    def end() -> None:
        order = venue.wait_submit(1)
        fill = {"qty": "1", "price": "10"} if event == "fill" else {}
        seen(venue, broker, venue.build_event("new", order), venue.build_event(event, order, **fill))

    strategy = run(broker, {1: buy(size=1)}, {2: end})
    [order] = strategy.orders
    assert not order.alive()
    [found] = build_orders(read_books(journal.path))
    assert not found.is_open
    assert [row["status"] for row in broker.results()[0]] == ["filled" if event == "fill" else event]


def test_events_that_come_before_the_answer_to_the_submit(venue: ScriptedVenue, broker: Any) -> None:
    async def fill_first(request: Any, number: int) -> None:
        await venue.tell(venue.build_event("new", request))
        await venue.tell(venue.build_event("fill", request, qty="3", price="12.5"))

    venue.on_submit = fill_first
    strategy = run(broker, {1: buy(size=3)}, {2: lambda: settle(broker)}, bars=4)
    [order] = strategy.orders
    assert strategy.statuses(order) == FULL
    assert broker.getposition(strategy.data).size == 3


def test_a_fill_told_twice_counts_once(venue: ScriptedVenue, broker: Any) -> None:
    def fill() -> None:
        order = venue.wait_submit(1)
        events = [venue.build_event("new", order), venue.build_event("fill", order, qty="2", price="10")]
        seen(venue, broker, *events, *events)

    strategy = run(broker, {1: buy(size=2)}, {2: fill})
    assert strategy.statuses(strategy.orders[0]) == FULL
    assert broker.getcash() == 99_980
    assert len(broker.results()[1]) == 1


def test_a_part_that_was_not_told_is_found_in_the_total(venue: ScriptedVenue, broker: Any) -> None:
    def fill() -> None:
        order = venue.wait_submit(1)
        lost = venue.build_event("partial_fill", order, qty="2", price="10")
        last = venue.build_event("fill", order, qty="4", price="13")
        seen(venue, broker, last)
        seen(venue, broker, lost)  # and then it comes after all

    strategy = run(broker, {1: buy(size=6)}, {2: fill})
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Partial", "Completed"]
    assert order.executed.size == 6
    assert order.executed.price == pytest.approx(12)
    assert broker.getcash() == 100_000 - 72


def test_an_unknown_event_is_settled_by_asking(venue: ScriptedVenue, broker: Any) -> None:
    def strange() -> None:
        order = venue.wait_submit(1)
        wait_until(lambda: order.client_order_id in venue.orders, "the order is taken")
        seen(venue, broker, venue.build_event("trade_flipped", order, status="canceled"))

    strategy = run(
        broker,
        {1: buy(size=2)},
        {2: strange, 4: lambda: settle(broker)},
    )
    assert strategy.statuses(strategy.orders[0])[-1] == "Canceled"
    assert broker.counters["unknown event trade_flipped"] == 1


def test_an_unknown_status_changes_nothing(venue: ScriptedVenue, broker: Any) -> None:
    def strange() -> None:
        order = venue.wait_submit(1)
        wait_until(lambda: order.client_order_id in venue.orders, "the order is taken")
        seen(venue, broker, venue.build_event("brand_new", order, status="brand_new"))

    strategy = run(
        broker,
        {1: buy(size=2)},
        {2: strange, 4: lambda: settle(broker)},
    )
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted"]
    assert order.alive()
    assert broker.counters["unknown status brand_new"] == 1
    assert broker.failure is None


def test_fills_of_a_gap_in_the_stream_are_fetched_and_count_once(venue: ScriptedVenue, broker: Any) -> None:
    late: list[Any] = []

    def lose() -> None:
        order = venue.wait_submit(1)
        wait_until(lambda: order.client_order_id in venue.orders, "the order is taken")
        seen(venue, broker, venue.build_event("new", order))
        late.append(venue.build_event("fill", order, qty="5", price="20"))
        venue.drop_streams()
        wait_until(lambda: venue.streams == 2, "the stream is back")
        wait_until(lambda: broker._link.gateway.resyncs_done >= 1, "the order was looked up")

    strategy = run(broker, {1: buy(size=5)}, {2: lose, 4: lambda: seen(venue, broker, late[0])})
    [order] = strategy.orders
    assert strategy.statuses(order) == FULL
    assert broker.getcash() == 99_900
    assert [fill["qty"] for fill in broker.results()[1]] == [5.0]


def test_an_event_that_cannot_be_read_is_made_up_for(venue: ScriptedVenue, broker: Any) -> None:
    def garble() -> None:
        order = venue.wait_submit(1)
        wait_until(lambda: order.client_order_id in venue.orders, "the order is taken")
        venue.build_event("fill", order, qty="5", price="20")
        venue.send_frame(orjson.dumps({"stream": "trade_updates", "data": {"event": "fill", "order": {"id": 7}}}))
        wait_until(lambda: broker._link.gateway.resyncs_done >= 1, "the order was looked up")

    strategy = run(broker, {1: buy(size=5)}, {2: garble})
    assert strategy.statuses(strategy.orders[0]) == FULL
    assert broker.counters["unreadable trade updates"] == 1


def test_an_overdue_event_is_looked_for(venue: ScriptedVenue, broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.broker.venue_link.EVENT_PATIENCE_S", 0.1)

    def lose() -> None:
        order = venue.wait_submit(1)
        wait_until(lambda: order.client_order_id in venue.orders, "the order is taken")
        lost = venue.build_event("fill", order, qty="5", price="20")
        assert not broker.has_seen(lost.event_id)
        wait_until(lambda: broker.has_seen(lost.event_id), "the event was made up for")

    strategy = run(broker, {1: buy(size=5)}, {2: lose})
    assert strategy.statuses(strategy.orders[0]) == FULL


def test_a_fill_of_somebody_elses_order_moves_the_account(venue: ScriptedVenue, broker: Any) -> None:
    request = foreign_request("AAPL")
    strategy = run(
        broker,
        {},
        {2: lambda: seen(venue, broker, venue.build_event("fill", request, qty="1", price="50", position_qty="1"))},
    )
    assert strategy.told == []
    assert broker.getcash() == 99_950
    assert broker.position_of("aapl") == 1
    assert broker.results() == ([], [])


def test_the_venues_word_on_a_position_counts_fees_in_kind(venue: ScriptedVenue, broker: Any) -> None:
    def fill() -> None:
        order = venue.wait_submit(1)
        seen(venue, broker, venue.build_event("fill", order, qty="2", price="100", position_qty="1.995"))

    strategy = run(broker, {1: buy(size=2)}, {2: fill}, symbols=("BTC/USD",))
    assert strategy.orders[0].executed.size == 2
    assert broker.getposition(strategy.data).size == 1.995
    assert broker.position_of("BTCUSD") == 1.995


def test_results_are_as_the_command_line_prints_them(venue: ScriptedVenue, broker: Any) -> None:
    def fill() -> None:
        order = venue.wait_submit(1)
        seen(venue, broker, venue.build_event("new", order), venue.build_event("fill", order, qty="0.5", price="10.25"))

    run(
        broker,
        {
            1: buy(size=0.5, exectype=bt.Order.StopLimit, price=10.5, plimit=11.0),
            2: buy(size=1, exectype=bt.Order.StopTrail),
        },
        {2: fill},
    )
    assert broker.order_count == 2
    assert broker.results() == (
        [
            {"client_order_id": "dw-tester-s-1", "symbol": "AAPL", "side": "buy", "type": "stop_limit", "qty": 0.5,
             "limit_price": 11.0, "stop_price": 10.5, "status": "filled", "submitted_at": "2024-06-11T13:31:00Z"},
            {"client_order_id": "dw-tester-s-2", "symbol": "AAPL", "side": "buy", "type": "trailing_stop", "qty": 1.0,
             "limit_price": None, "stop_price": None, "status": "rejected", "submitted_at": "2024-06-11T13:32:00Z"},
        ],
        [
            {"time": "2024-06-11T13:32:00Z", "symbol": "AAPL", "side": "buy", "qty": 0.5, "price": 10.25,
             "commission": 0.0, "client_order_id": "dw-tester-s-1"},
        ],
    )  # fmt: skip


def test_money_travels_as_text(venue: ScriptedVenue, broker: Any) -> None:
    run(broker, {1: buy(size=0.1 + 0.2, exectype=bt.Order.Limit, price=10.1)}, {2: lambda: venue.wait_submit(1)})
    assert orjson.loads(venue.bodies[0]) == {
        "symbol": "AAPL", "side": "buy", "type": "limit", "time_in_force": "day", "qty": "0.3", "limit_price": "10.1",
        "client_order_id": "dw-tester-s-1",
    }  # fmt: skip
    assert venue.submits[0].qty == Decimal("0.3")
