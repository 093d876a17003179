"""The trade_updates stream: when it listens, what it does when it is lost, how it ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dry_work.alpaca.streams import TradeUpdates
from dry_work.broker.account import AccountCache, AccountState
from dry_work.errors import BrokerUnavailableError, VenueAuthError
from dry_work.orders.model import AccountSnapshot

from .scripted_venue import ScriptedVenue, foreign_request, wait_until


class Listener:
    def __init__(self, url: str) -> None:
        self.events: list[Any] = []
        self.listening: list[int] = []
        self.unreadable: list[Any] = []
        self.failures: list[BaseException] = []
        self.stream = TradeUpdates(
            url, api_key="KEY", secret_key="SECRET", on_event=self.events.append, on_listening=self.listening.append,
            on_unreadable=self.unreadable.append, on_failure=self.failures.append, rng=random.Random(1),
        )  # fmt: skip
        self.stream.start()


@pytest.fixture
def listener(venue: ScriptedVenue) -> Iterator[Listener]:
    listener = Listener(f"ws://127.0.0.1:{venue.port}/stream")
    yield listener
    listener.stream.stop()
    listener.stream.stop()
    assert listener.failures == []


def test_events_come_in_order_and_are_values(venue: ScriptedVenue, listener: Listener) -> None:
    listener.stream.wait_listening(60.0)
    sent = [venue.build_event("new", foreign_request("AAPL")) for _ in range(50)]
    for event in sent:
        venue.send(event)
    wait_until(lambda: len(listener.events) == 50, "all events")
    assert [event.event_id for event in listener.events] == [event.event_id for event in sent]
    assert listener.events[0].order.symbol == "AAPL"


@pytest.mark.parametrize("how", ["closed by the venue", "asked for"])
def test_a_lost_connection_comes_back_and_is_told(venue: ScriptedVenue, listener: Listener, how: str) -> None:
    listener.stream.wait_listening(60.0)
    if how == "asked for":
        listener.stream.reconnect()
    else:
        venue.drop_streams()
    wait_until(lambda: listener.listening == [1, 2], "the second connection")
    sent = venue.build_event("new", foreign_request("AAPL"))
    venue.send(sent)
    wait_until(lambda: listener.events, "an event")
    assert [event.event_id for event in listener.events] == [sent.event_id]


def test_refused_credentials_are_told(venue: ScriptedVenue, listener: Listener) -> None:
    listener.stream.wait_listening(60.0)
    venue.credentials_are_good = False
    venue.drop_streams()
    wait_until(lambda: isinstance(listener.stream._error, VenueAuthError), "the refusal")
    with pytest.raises(VenueAuthError, match="refused the credentials"):
        listener.stream.wait_listening(60.0)


def test_a_message_that_cannot_be_read_does_not_end_the_stream(venue: ScriptedVenue, listener: Listener) -> None:
    listener.stream.wait_listening(60.0)
    for frame in (b"{", b"[]", b'{"stream":"trade_updates"}', b'{"stream":"trade_updates","data":{"event":1}}'):
        venue.send_frame(frame)
    venue.send_frame(b'{"stream":"other"}')
    venue.send(venue.build_event("new", foreign_request("AAPL")))
    wait_until(lambda: listener.events, "an event")
    assert len(listener.unreadable) == 4
    assert listener.listening == [1]


def test_a_stream_that_waits_for_its_next_try_stops_at_once(venue: ScriptedVenue) -> None:
    before = set(threading.enumerate())
    listener = Listener("ws://127.0.0.1:1/stream")
    with pytest.raises(BrokerUnavailableError, match="was not listening after"):
        listener.stream.wait_listening(0.2)
    listener.stream.stop(60.0)
    assert set(threading.enumerate()) <= before


def build_state(received: int, *, blocked: bool = False) -> AccountState:
    from decimal import Decimal

    account = AccountSnapshot(
        id="a", account_number="", cash=Decimal(1), equity=Decimal(1), buying_power=Decimal(1), trading_blocked=blocked
    )
    return AccountState(account, (), (), received)


def test_failures_in_a_row_halt_trading_and_a_success_ends_that() -> None:
    cache = AccountCache(max_failures=2)
    cache.note_failure(BrokerUnavailableError("gone"))
    assert not cache.halted
    cache.note_failure(BrokerUnavailableError("gone"))
    assert cache.halted == "the account cannot be refreshed: gone"
    cache.note_success(build_state(0))
    assert not cache.halted
    cache.note_failure(VenueAuthError("no"))
    assert cache.halted
    cache.note_success(build_state(0, blocked=True))
    assert "blocked" in cache.halted


def test_a_snapshot_counts_only_without_a_fill_since() -> None:
    cache = AccountCache()
    state = build_state(cache.fills_received)
    assert cache.may_replace(state)
    cache.fills_received += 1
    assert not cache.may_replace(state)
