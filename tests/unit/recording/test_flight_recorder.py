"""The flight recorder keeps every turn in which something happens, says what is lost, and gives everything back."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dry_work.broker.account import AccountState
from dry_work.broker.flight import STOP, TROUBLE, WALL_CLOCK, BooksView, Decision, Told
from dry_work.broker.journal import JournalSession
from dry_work.broker.outcomes import CancelRefused, OrderRefused, OrderTaken
from dry_work.clock import MINUTE_NS, ManualClock
from dry_work.errors import BrokerUnavailableError, InsufficientFundsError, RateLimitedError, RiskRefusedError
from dry_work.market.messages import Bar, BarNote, News, PriceBands, Slice, TradingStatus
from dry_work.orders.model import (
    AccountSnapshot,
    OrderRequest,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    TradeEvent,
    VenueOrder,
)
from dry_work.ports import SourceFailed, SourceStatus
from dry_work.recording.flight_frames import FinishRecord, SessionFacts, decode_answer, encode, encode_answer
from dry_work.recording.flight_log import FlightReader, Turn
from dry_work.recording.flight_recorder import FlightRecorder
from dry_work.recording.recorder import PendingFrame, RecordedMessage, Recorder

NOW_NS = 1_718_112_600_000_000_000
FACTS = SessionFacts(
    dry_work="1", python="3", backtrader="1", started_ns=NOW_NS, mode="local", agent="a.py:A", class_name="A",
    params={}, all_params={},
)  # fmt: skip
ORDER = VenueOrder(
    id="v1", client_order_id="dw-a-s-1", symbol="SPY", side=Side.BUY, type=OrderType.LIMIT,
    time_in_force=TimeInForce.GTC, status=OrderStatus.NEW, qty=Decimal("1.5"), limit_price=Decimal("10.10"),
)  # fmt: skip
REQUEST = OrderRequest(
    client_order_id="dw-a-s-1", symbol="SPY", side=Side.BUY, type=OrderType.LIMIT, time_in_force=TimeInForce.GTC,
    qty=Decimal("1.5"), limit_price=Decimal("10.10"),
)  # fmt: skip
ACCOUNT = AccountState(
    AccountSnapshot(id="i", account_number="n", cash=Decimal(5), equity=Decimal(6), buying_power=Decimal(7)),
    (), (ORDER,), 3, (ORDER,), frozenset({"SPY"}),
)  # fmt: skip


class Desk:
    """A recorder, its flight and the clock of both."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock = ManualClock(NOW_NS)
        self.recorder = Recorder(folder, writer="test", **options)
        self.flight = FlightRecorder(self.recorder, self.clock)
        self.books = BooksView(Decimal(5))
        self.flight.follow(lambda: self.books)

    def read(self) -> tuple[FlightReader, list[Turn]]:
        self.recorder.stop()
        assert self.recorder.folder is not None
        reader = FlightReader(self.recorder.folder)
        return reader, list(reader.turns())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    found = Desk(tmp_path)
    found.recorder.start()
    found.flight.begin_session(FACTS)
    return found


def _give(value: Any) -> Any:
    return value


def make_slice(number: int = 1) -> Slice:
    bar = Bar(symbol="SPY", ts_event_ns=NOW_NS, open=1.0, high=2.0, low=0.1, close=1.5, volume=3.0, extra={"x": 0.5})
    return Slice(end_ns=NOW_NS + MINUTE_NS, bars=(bar,), number=number, event_id="e")


def test_what_passes_comes_back_in_its_turn(desk: Desk) -> None:
    flight = desk.flight
    answers = [
        ("connect", (ACCOUNT, 17)),
        ("session", JournalSession("s", 5, 0)),
        ("increments", {"BTC/USD": Decimal("0.01")}),
        ("history", None),
    ]
    for name, value in answers:
        assert flight.answer(name, partial(_give, value)) == value
    flight.end_turn()
    event = TradeEvent(
        event="fill", event_id="e1", ts_event_ns=NOW_NS, order=ORDER, price=Decimal("1.5"), qty=Decimal(1)
    )
    items = [event, OrderTaken("dw-a-s-1", ORDER, (("leg", ORDER),)), ACCOUNT]
    inbox: deque[Any] = deque()
    flight.begin(make_slice())
    for item in items[:2]:
        flight.arrive(item)
        inbox.append(item)
        desk.clock.advance(1.0)
    flight.begin_next(inbox)
    assert [flight.take(inbox), flight.take(inbox)] == items[:2]
    flight.begin_next(inbox)
    inbox.append(items[2])
    assert flight.take(inbox) == ACCOUNT
    assert [flight.read(WALL_CLOCK, at) for at in (NOW_NS + 1, NOW_NS + 1)] == [NOW_NS + 1] * 2
    assert [flight.read(STOP, value) for value in (False, False, True)] == [False, False, True]
    flight.decide(Decision(kind="submit", client_order_id="dw-a-s-1", number=1, request=REQUEST, at_ns=9))
    flight.tell(Told("dw-a-s-1", "Submitted", 0.0, "SPY", 1.5))
    flight.note_value(12.5)
    flight.note_state("{}")
    flight.end_turn()
    flight.finish(FinishRecord(reason="done", orders=1))
    flight.finish(FinishRecord(reason="again"))
    reader, turns = desk.read()
    assert reader.finish == FinishRecord(reason="done", orders=1)
    assert reader.is_complete
    assert reader.facts == FACTS
    start, turn, end = turns
    assert [start.record.kind, turn.record.kind, end.record.kind] == ["start", "turn", "end"]
    assert list(start.answers) == answers
    assert turn.event == make_slice()
    assert [item.value for item in turn.items] == items
    assert [item.recv_ns for item in turn.items] == [NOW_NS, NOW_NS + 1_000_000_000, 0]
    record = turn.record
    assert record.takes == (2, 1)
    assert record.clocks == {WALL_CLOCK: (NOW_NS + 1, NOW_NS + 1)}
    assert [(each.name, each.number, each.value) for each in record.readings] == [(STOP, 1, False), (STOP, 3, True)]
    assert record.decisions[0].request == REQUEST
    assert record.told == (Told("dw-a-s-1", "Submitted", 0.0, "SPY", 1.5),)
    assert (record.value, len(record.state)) == (12.5, 16)


def test_turns_in_which_nothing_happens_are_left_out_but_for_some(desk: Desk) -> None:
    desk.flight.end_turn()
    for _ in range(600):  # an hour
        desk.clock.advance(6.0)
        desk.flight.begin_next(deque())
        desk.flight.read(WALL_CLOCK, desk.clock.time_ns())
        desk.flight.read(TROUBLE, "")
        desk.flight.end_turn()
    desk.flight.read(TROUBLE, "the venue is gone")
    desk.flight.end_turn()
    _, turns = desk.read()
    assert [turn.record.number for turn in turns] == list(range(len(turns)))
    # the start, the first reading, one for each quarter of an hour, and the change
    assert len(turns) == 1 + 1 + 4 + 1
    assert [(each.name, each.value) for turn in turns for each in turn.record.readings] == [
        (TROUBLE, ""),
        (TROUBLE, "the venue is gone"),
    ]


@pytest.mark.parametrize(
    "event",
    [
        make_slice(),
        News(symbols=("SPY",), headline="up"),
        SourceStatus(connected=False, detail="gone"),
        TradingStatus(symbol="SPY", ts_event_ns=5, code="H", message="Trading Halt", reason_code="T1"),
        PriceBands(symbol="SPY", ts_event_ns=5, upper=2.5, lower=1.5),
        BarNote(bar=make_slice().bars[0], is_revision=True, is_told=True),
        SourceFailed(error=ValueError("broken")),
    ],
    ids=lambda event: type(event).__name__,
)
def test_every_event_of_a_source_comes_back(desk: Desk, event: Any) -> None:
    desk.flight.begin(event)
    desk.flight.end_turn()
    _, [turn] = desk.read()
    if isinstance(event, SourceFailed):
        assert str(turn.event.error) == "ValueError: broken"
    else:
        assert turn.event == event


@pytest.mark.parametrize(
    "error",
    [
        BrokerUnavailableError("gone", http_status=503),
        InsufficientFundsError("poor", code=403, request_id="r"),
        RateLimitedError("slowly", retry_after_s=2.5),
        RiskRefusedError("no", reject_code="risk_halted"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_venue_come_back_in_their_type(desk: Desk, error: Any) -> None:
    name, found = decode_answer(encode(encode_answer("look up", error)))
    assert name == "look up"
    assert (type(found), str(found), vars(found)) == (
        type(error),
        str(error),
        {**dict.fromkeys(vars(found)), **vars(error)},
    )
    inbox: deque[Any] = deque([OrderRefused("a", error, is_fault=True), CancelRefused("b", error)])
    desk.flight.begin_next(inbox)
    desk.flight.take(inbox)
    desk.flight.take(inbox)
    desk.flight.end_turn()
    _, [turn] = desk.read()
    refused, canceled = (item.value for item in turn.items)
    assert (refused.client_order_id, refused.is_fault, type(refused.error)) == ("a", True, type(error))
    assert str(canceled.error) == str(error)


def test_frames_that_are_lost_end_what_can_be_replayed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, queue_messages=5)
    desk.recorder.start()
    flight = desk.flight
    flight.begin_session(FACTS)
    flight.end_turn()
    for number in range(300):  # quicker than anything can be written
        flight.begin(make_slice(number))
        flight.end_turn()
    assert "frames of the flight" in desk.recorder.describe_trouble()[0]
    flight.finish(FinishRecord(reason="done"))
    reader, turns = desk.read()
    assert (
        reader.problem.endswith("are missing: more came than could be written") or "is missing before" in reader.problem
    )
    assert not reader.is_complete
    assert [turn.record.number for turn in turns] == list(range(len(turns)))
    assert 0 < len(turns) < 300


def test_messages_and_frames_are_counted_apart(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.recorder.start()
    desk.flight.begin_session(FACTS)
    for number in range(3):
        desk.recorder.record(RecordedMessage("t", b"x", {}, publish_ns=number), venue_ns=0, recv_ns=0)
    desk.flight.end_turn()
    reader, turns = desk.read()
    assert len(turns) == 1
    assert reader.messages == 3
    assert desk.recorder.recorded == 3
    assert desk.recorder.counters() == {"recorded_messages": 3}


def test_a_recorder_that_was_not_started_takes_nothing_and_says_so(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writer="test")
    recorder.record_frames([PendingFrame(17, 0, 0, FACTS)])
    assert "1 frames of the flight" in recorder.describe_trouble()[0]
