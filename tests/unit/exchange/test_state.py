"""The log of commands and what is made of it again: killed at any moment, the exchange goes on where it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.errors import CodecError, ConfigError
from dry_work.exchange.account import AccountSettings
from dry_work.exchange.alpaca_matcher import Matching
from dry_work.exchange.commands import (
    FORMAT,
    Advance,
    Bust,
    Cancel,
    CancelAll,
    ChangeSettings,
    ClosePosition,
    Command,
    CountOrder,
    DeleteWatchlist,
    Leave,
    LogHeader,
    OpenAccount,
    Register,
    Replace,
    Report,
    Revise,
    SetWatchlist,
    Submit,
    decode_log,
    encode_line,
)
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.state import ExchangeState
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.timeframes import MINUTE
from dry_work.exchange.venue import RuleSet
from dry_work.feeds.recorded_ticks import TickRecording
from dry_work.market.calendar import SessionCalendar
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side, StopLoss, TimeInForce
from dry_work.wire.alpaca_rest import Replacement

from .conftest import START_NS, build_recording

RECORDING = build_recording({"SPY": 8, "IBM": 6, "BTC/USD": 8})
CALENDAR = SessionCalendar()
HEADER = LogHeader(format=FORMAT, fingerprint=RECORDING.fingerprint, rules="alpaca", cash=Decimal(5000))
KEYS = ("k1", "k2")


def build_state(rules: RuleSet, write: Callable[[Command, bool], None] | None = None, **options: Any) -> ExchangeState:
    return ExchangeState(
        RECORDING,
        tables=MarketTables(RECORDING, TickRecording({})),
        rules=rules,
        cash=Decimal(5000),
        expected=1,
        calendar=CALENDAR,
        write=write,
        **options,
    )


def describe(state: ExchangeState) -> dict[str, Any]:
    """Return all that can be seen of a state."""
    accounts = {}
    for key_id, record in state.accounts.items():
        accounts[key_id] = {
            "account": state.venue.account(key_id),
            "orders": state.venue.orders(key_id),
            "positions": state.venue.positions(key_id),
            "settings": state.venue.settings(key_id),
            "nested": [state.venue.order(key_id, order.id, nested=True) for order in state.venue.orders(key_id)],
            "held": [state.venue.held_qty(key_id, symbol) for symbol in RECORDING.symbols],
            "power": state.venue.non_marginable_buying_power(key_id),
            "equity": record.equity.last_by(MINUTE, 0, state.end_ns),
            "events": list(record.events),
            "fills": list(record.fills),
            "watchlists": list(record.watchlists.values()),
        }
    lockstep = state.lockstep
    return {
        "accounts": accounts,
        "now": state.venue.now_ns,
        "event id": state.venue.last_event_id,
        "current": state.current,
        "upcoming": state.upcoming_ns(),
        "lockstep": (lockstep.number, lockstep.is_open, lockstep.registered, lockstep.wanted()),
        "owing": lockstep.owing(),
        "missing": lockstep.missing_orders(),
        "counts": (state.order_count, state.fill_count),
        "bars": [state._tables.last_bars(symbol, MINUTE, state.end_ns, 9) for symbol in RECORDING.symbols],
    }


class Trader:
    """Gives a state commands that are chosen by numbers."""

    def __init__(self, state: ExchangeState) -> None:
        self.state = state

    def act(self, what: int, which: int, amount: int) -> None:
        actions = (
            self.advance, self.advance, self.submit, self.submit, self.submit, self.cancel, self.replace, self.close,
            self.manage,
        )  # fmt: skip
        with contextlib.suppress(RefusedError):
            actions[what % len(actions)](which, amount)

    def key(self, which: int) -> str:
        key_id = KEYS[which % len(KEYS)]
        if key_id not in self.state.accounts:
            self.state.execute(OpenAccount(key_id=key_id))
        return key_id

    def advance(self, which: int, amount: int) -> None:
        if self.state.lockstep.is_open:
            self.state.close_slice()
        if self.state.upcoming_ns() is not None:
            self.state.advance()

    def submit(self, which: int, amount: int) -> None:
        kind = list(OrderType)[amount % 5]
        order_class = OrderClass.SIMPLE if which % 4 else list(OrderClass)[amount % 4]
        if order_class is OrderClass.OCO:
            kind = OrderType.LIMIT
        limit = Decimal(98 + amount % 9) if kind in (OrderType.LIMIT, OrderType.STOP_LIMIT) else None
        stop = Decimal(99 + which % 7) if kind in (OrderType.STOP, OrderType.STOP_LIMIT) else None
        has_profit = order_class in (OrderClass.BRACKET, OrderClass.OCO) or (
            order_class is OrderClass.OTO and which % 3
        )
        has_loss = order_class is not OrderClass.SIMPLE and not (order_class is OrderClass.OTO and has_profit)
        by_value = kind is OrderType.MARKET and order_class is OrderClass.SIMPLE and amount % 7 == 0
        buys = which % 2 == 1
        request = OrderRequest(
            client_order_id="" if which % 3 else f"c{which % 4}",
            symbol=RECORDING.symbols[amount % 3],
            side=Side.BUY if buys else Side.SELL,
            type=kind,
            time_in_force=list(TimeInForce)[which % 2 or (amount % 6 if amount % 5 == 0 else 0)],
            qty=None if by_value else Decimal(1 + amount % 30) / (4 if which % 5 == 0 else 1),
            notional=Decimal(10 + amount) if by_value else None,
            limit_price=None if order_class is OrderClass.OCO else limit,
            stop_price=stop,
            trail_price=Decimal(1 + amount % 3) if kind is OrderType.TRAILING_STOP and which % 2 else None,
            trail_percent=Decimal(1 + amount % 3) if kind is OrderType.TRAILING_STOP and not which % 2 else None,
            order_class=order_class,
            take_profit=Decimal(108 if buys == (order_class is not OrderClass.OCO) else 92) if has_profit else None,
            stop_loss=StopLoss(Decimal(96 if buys == (order_class is not OrderClass.OCO) else 104))
            if has_loss
            else None,
        )
        self.state.execute(Submit(key_id=self.key(which), request=request))

    def order_id(self, which: int, amount: int) -> str:
        orders = self.state.venue.orders(self.key(which))
        return orders[amount % len(orders)].id if orders else "none"

    def cancel(self, which: int, amount: int) -> None:
        key_id = self.key(which)
        if amount % 4 == 0:
            self.state.execute(CancelAll(key_id=key_id))
        else:
            self.state.execute(Cancel(key_id=key_id, order_id=self.order_id(which, amount)))

    def replace(self, which: int, amount: int) -> None:
        changes = (
            Replacement(qty=Decimal(1 + amount % 9), limit_price=Decimal(100) if which % 3 else None),
            Replacement(limit_price=Decimal(107)),
            Replacement(stop_price=Decimal(97)),
            Replacement(trail=Decimal(4)),
        )
        change = changes[which % 4]
        order_id = self.order_id(which, amount)
        self.state.execute(Replace(key_id=self.key(which), order_id=order_id, change=change))

    def close(self, which: int, amount: int) -> None:
        symbol = RECORDING.symbols[amount % 3]
        percentage = Decimal(50) if which % 3 == 0 else None
        self.state.execute(ClosePosition(key_id=self.key(which), symbol=symbol, percentage=percentage))

    def manage(self, which: int, amount: int) -> None:
        key_id, consumer, state = self.key(which), f"consumer {which % 2}", self.state
        watchlists = list(state.accounts[key_id].watchlists)
        known = watchlists[amount % len(watchlists)] if watchlists else ""
        number = max(state.lockstep.number, 1)
        fills = state.accounts[key_id].fills
        execution_id = fills[amount % len(fills)].execution_id if fills else "none"
        commands: tuple[Command, ...] = (
            Register(consumer=consumer, key_id=key_id, symbols=("SPY",), resume=amount % 3 == 0),
            Report(consumer=consumer, key_id=key_id, number=number, orders=amount % 3),
            Leave(consumer=consumer),
            Bust(key_id=key_id, execution_id=execution_id),
            CountOrder(key_id=key_id),
            ChangeSettings(key_id=key_id, settings=AccountSettings(no_shorting=which % 2 == 0)),
            SetWatchlist(key_id=key_id, name=f"list {amount}", symbols=("SPY",), watchlist_id=known),
            SetWatchlist(key_id=key_id, name=f"list {amount}", symbols=("SPY", "IBM")),
            DeleteWatchlist(key_id=key_id, watchlist_id=known),
            Revise(symbol="SPY", start_ns=START_NS + MINUTE_NS * (which % 8), values={"close": 100.0 + amount % 3}),
        )
        state.execute(commands[amount % len(commands)])


@settings(max_examples=60, deadline=None)
@given(
    rules=st.sampled_from(["alpaca", "backtrader"]),
    races=st.booleans(),
    matching=st.sampled_from(["bars", "volume", "ticks"]),
    actions=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 59), st.integers(0, 99)), min_size=5, max_size=60),
    data=st.data(),
)
def test_killed_at_any_byte_of_its_log_the_state_is_that_of_the_commands_before(
    rules: RuleSet, races: bool, matching: Matching, actions: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    options: dict[str, Any] = {"changes_in_flight": races and rules == "alpaca"}
    if rules == "alpaca":
        options["matching"] = matching
    log = [encode_line(HEADER)]
    state = build_state(rules, lambda command, _: log.append(encode_line(command)), **options)
    seen = {1: describe(state)}  # by the number of lines
    trader = Trader(state)
    for action in actions:
        trader.act(*action)
        seen[len(log)] = describe(state)
    whole = b"".join(log)
    cut = data.draw(st.integers(0, len(whole)))
    header, commands, used = decode_log(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert used == sum(map(len, log[:complete]))
    assert commands == decode_log(whole)[1][: max(complete - 1, 0)]
    if header is None:
        assert complete == 0
        return
    # An action may be more than one command; the state after each action is known.
    known = max(lines for lines in seen if lines <= complete)
    again = build_state(rules, **options)
    again.replay(commands[: known - 1])
    assert describe(again) == seen[known]
    # What the cut left out can be done again, and the end is the same.
    again.replay(decode_log(whole)[1][known - 1 :])
    assert describe(again) == describe(state)


def test_events_are_not_told_again_when_commands_are_replayed() -> None:
    told: list[str] = []
    written: list[Command] = []
    state = build_state("alpaca", lambda command, _: written.append(command), tell=lambda key, e: told.append(e.event))
    trader = Trader(state)
    trader.advance(0, 0)
    request = OrderRequest(
        client_order_id="x", symbol="SPY", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.DAY,
        qty=Decimal(1),
    )  # fmt: skip
    state.execute(OpenAccount(key_id="k"))
    state.execute(Submit(key_id="k", request=request))
    assert told == ["pending_new", "new"]
    again = build_state("alpaca", tell=lambda key, e: told.append(e.event))
    again.replay(written)
    assert told == ["pending_new", "new"]
    again.close_slice()
    again.advance()
    assert told == ["pending_new", "new", "fill"]


def test_nothing_is_carried_out_that_cannot_be_written_down() -> None:
    def refuse(command: Command, relied_on: bool) -> None:
        raise OSError("no space left")

    state = build_state("alpaca", refuse)
    before = describe(state)
    for attempt in (lambda: state.execute(OpenAccount(key_id="k")), state.advance):
        with pytest.raises(OSError, match="no space"):
            attempt()
    assert describe(state) == before


def test_a_slice_that_is_not_in_the_recording_is_refused() -> None:
    state = build_state("alpaca")
    with pytest.raises(ConfigError, match=r"line 2: slice 1 ended at 5 ns, here slice 1 at"):
        state.replay([Advance(number=1, end_ns=5)])


def test_commands_that_make_other_events_now_are_refused() -> None:
    written: list[Command] = []
    state = build_state("alpaca", lambda command, _: written.append(command))
    state.advance()
    written[0] = Advance(number=1, end_ns=START_NS + MINUTE_NS, event_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    with pytest.raises(ConfigError, match="another version of the program"):
        build_state("alpaca").replay(written)


def build_log() -> list[bytes]:
    commands: list[Command] = [OpenAccount(key_id=f"key {number}") for number in range(4)]
    return [encode_line(HEADER), *map(encode_line, commands)]


def test_a_line_that_was_cut_off_is_dropped_with_what_is_behind_it() -> None:
    lines = build_log()
    whole = b"".join(lines)
    for tail in (b"12", lines[-1][:-1], lines[-1].replace(b"key", b"kez"), b"\0" * 100, b"\0" * 50 + b"\n"):
        header, commands, used = decode_log(whole + tail)
        assert header == HEADER
        assert len(commands) == 4
        assert used == len(whole)


def test_damage_within_the_log_is_named_and_not_passed_over() -> None:
    lines = build_log()
    lines[2] = lines[2].replace(b"key", b"kez")
    with pytest.raises(CodecError, match="line 3 is damaged"):
        decode_log(b"".join(lines))


def test_a_log_without_or_with_two_headers_is_no_log() -> None:
    lines = build_log()
    with pytest.raises(CodecError, match="line 1 is no header"):
        decode_log(b"".join(lines[1:]))
    with pytest.raises(CodecError, match="line 6 is a second header"):
        decode_log(b"".join([*lines, lines[0]]))
    assert decode_log(b"") == (None, [], 0)


def test_only_the_missed_events_are_given_and_none_when_some_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from dry_work.exchange import state as module

    monkeypatch.setattr(module, "_EVENTS_KEPT", 3)
    state = build_state("alpaca")
    state.execute(OpenAccount(key_id="k"))
    record = state.accounts["k"]
    assert record.events_after("") == []
    for _ in range(2):  # pending_new and new each
        request = OrderRequest(
            client_order_id="", symbol="BTC/USD", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.GTC,
            qty=Decimal(1),
        )  # fmt: skip
        state.execute(Submit(key_id="k", request=request))
    events = list(record.events)
    assert len(events) == 3
    assert record.events_after(events[0].event_id) == events[1:]
    assert record.events_after(record.last_event_id) == []
    assert record.events_after("") is None
