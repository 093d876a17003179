"""Trade events of the Broker API at a real server of server-sent events."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dry_work.alpaca.broker_events import BrokerTradeEvents, find_cursor
from dry_work.alpaca.streams import SliceMark
from dry_work.errors import BrokerUnavailableError, VenueAuthError

from .event_server import ACCOUNT, DEADLINE_S, OTHER, EventServer, build_data, build_ulid, wait_until


class Listener:
    def __init__(self, url: str, **options: Any) -> None:
        self.events: list[Any] = []
        self.listening: list[int] = []
        self.unreadable: list[Any] = []
        self.failures: list[BaseException] = []
        options.setdefault("longest_wait_s", 0.5)
        self.stream = BrokerTradeEvents(
            f"{url}/v2/events/trades", api_key="KEY", secret_key="SECRET", account_id=ACCOUNT.upper(),
            on_event=self.events.append, on_listening=self.listening.append, on_unreadable=self.unreadable.append,
            on_failure=self.failures.append, rng=random.Random(1), **options,
        )  # fmt: skip
        self.stream.start()

    @property
    def ids(self) -> list[str]:
        return [event.event_id for event in self.events]


@pytest.fixture
def server() -> Iterator[EventServer]:
    server = EventServer()
    yield server
    server.stop()


@pytest.fixture
def listen(server: EventServer) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(**options: Any) -> Listener:
        made.append(Listener(server.url, **options))
        return made[-1]

    yield make
    for listener in made:
        listener.stream.stop()
        listener.stream.stop()
        assert listener.failures == []
    assert not [thread for thread in threading.enumerate() if thread.name == BrokerTradeEvents.name]


def test_events_of_the_account_come_in_order_and_those_of_others_do_not(
    server: EventServer, listen: Callable[..., Listener]
) -> None:
    listener = listen()
    listener.stream.wait_listening(DEADLINE_S)
    ids = [build_ulid(number, 0) for number in range(50)]
    server.send(
        *(build_data(name, account_id=OTHER if number % 5 == 0 else ACCOUNT) for number, name in enumerate(ids))
    )
    wait_until(lambda: len(listener.events) == 40, "all events")
    assert listener.ids == [name for number, name in enumerate(ids) if number % 5]
    assert (listener.events[0].order.symbol, listener.events[0].event) == ("SPY", "new")
    assert listener.stream.position == ids[-1]
    assert listener.stream.counters["other accounts"] == 10
    assert server.requests == [("/v2/events/trades", {}, "KEY:SECRET")]
    assert "SECRET" not in repr(listener.stream)


def test_after_a_loss_it_goes_on_behind_what_it_has_and_takes_nothing_twice(
    server: EventServer, listen: Callable[..., Listener]
) -> None:
    listener = listen()
    listener.stream.wait_listening(DEADLINE_S)
    ids = [build_ulid(1, 5), build_ulid(2, 9), build_ulid(2, 3)]  # two of one millisecond, in no order
    server.send(*map(build_data, ids))
    wait_until(lambda: len(listener.events) == 3, "the events before the loss")
    server.end_stream()
    wait_until(lambda: listener.listening == [1, 2], "the second connection")
    assert server.requests[1][1] == {"since_id": ids[0]}
    late = [build_ulid(2, 4), build_ulid(7, 0)]
    server.send(*map(build_data, [*ids, *late]))
    wait_until(lambda: len(listener.events) == 5, "what came meanwhile")
    assert listener.ids == [*ids, *late]
    assert listener.stream.counters["duplicates"] == 3
    assert not listener.stream.resumed  # so that open orders are looked up as well


def test_without_a_cursor_nothing_of_the_past_is_asked_for(
    server: EventServer, listen: Callable[..., Listener]
) -> None:
    listener = listen()
    listener.stream.wait_listening(DEADLINE_S)
    listener.stream.reconnect()
    wait_until(lambda: listener.listening == [1, 2], "the second connection")
    assert [query for _, query, _ in server.requests] == [{}, {}]


def test_a_cursor_that_is_refused_is_dropped(server: EventServer, listen: Callable[..., Listener]) -> None:
    listener = listen()
    listener.stream.wait_listening(DEADLINE_S)
    server.send(build_data(build_ulid(1, 0)))
    wait_until(lambda: listener.events, "an event")
    server.refusals.append((422, {}))
    server.end_stream()
    wait_until(lambda: listener.listening == [1, 2], "the connection without a cursor")
    assert [query for _, query, _ in server.requests] == [{}, {"since_id": build_ulid(1, 0)}, {}]


def test_refused_credentials_are_told_with_what_to_do(server: EventServer, listen: Callable[..., Listener]) -> None:
    server.refusals.append((401, {}))
    listener = listen()
    with pytest.raises(VenueAuthError, match="or unset ALPACA_ACCOUNT_ID to trade with a key's own account") as caught:
        listener.stream.wait_listening(DEADLINE_S)
    assert caught.value.http_status == 401
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("status", [404, 410])
def test_the_older_stream_is_taken_where_there_is_no_newer_one(
    server: EventServer, listen: Callable[..., Listener], status: int
) -> None:
    server.refuse_path["/v2/events/trades"] = status
    listener = listen()
    listener.stream.wait_listening(DEADLINE_S)
    server.send(*map(build_data, [9, 10, 10, 100]))
    wait_until(lambda: len(listener.events) == 3, "the events")
    assert listener.ids == sorted(listener.ids)  # as text, which the broker compares
    server.end_stream()
    wait_until(lambda: listener.listening == [1, 2], "the second connection")
    assert [(path, query) for path, query, _ in server.requests] == [
        ("/v2/events/trades", {}), ("/v1/events/trades", {}), ("/v1/events/trades", {"since_id": "100"}),
    ]  # fmt: skip
    server.send(build_data("x"))
    wait_until(lambda: listener.unreadable, "the id that is no integer")


def test_a_server_without_any_stream_is_told(server: EventServer, listen: Callable[..., Listener]) -> None:
    server.refuse_path.update({"/v1/events/trades": 404, "/v2/events/trades": 404})
    listener = listen(longest_wait_s=0.5)
    with pytest.raises(BrokerUnavailableError, match="was not listening after 2 s"):
        listener.stream.wait_listening(2.0)
    wait_until(lambda: "is ALPACA_URL right?" in str(listener.stream._error), "the reason")
    wait_until(lambda: len({path for path, *_ in server.requests[2:]}) == 2, "both are tried again")


def test_a_page_that_is_no_event_stream_is_not_listened_to(
    server: EventServer, listen: Callable[..., Listener]
) -> None:
    server.content_type = "text/html"
    listener = listen()
    wait_until(lambda: "answers with text/html" in str(listener.stream._error), "the reason")
    assert listener.listening == []


def test_a_silent_stream_is_connected_again_and_a_heartbeat_is_a_sign_of_life(
    server: EventServer, listen: Callable[..., Listener]
) -> None:
    listener = listen(silence_s=0.3)
    listener.stream.wait_listening(DEADLINE_S)
    wait_until(lambda: len(listener.listening) >= 2, "the second connection")
    patient = listen(silence_s=60.0)
    patient.stream.wait_listening(DEADLINE_S)
    wait_until(lambda: patient.stream.counters["comments"] == 1, "the heartbeat")
    assert patient.listening == [1]


def test_bytes_that_make_no_line_are_no_sign_of_life(server: EventServer, listen: Callable[..., Listener]) -> None:
    server.greeting = b"\n"
    listener = listen(silence_s=0.5)
    listener.stream.wait_listening(DEADLINE_S)
    stop = threading.Event()

    def drip() -> None:
        with contextlib.suppress(ConnectionError):  # when the client has given it up
            while not stop.wait(0.02):
                server.send_bytes(b":")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        wait_until(lambda: len(listener.listening) >= 2, "the second connection")
    finally:
        stop.set()
        thread.join(DEADLINE_S)
    assert listener.listening[:2] == [1, 2]


def test_what_the_venue_says_it_left_out_is_fetched(server: EventServer, listen: Callable[..., Listener]) -> None:
    listener = listen()
    listener.stream.wait_listening(DEADLINE_S)
    server.send(build_data(build_ulid(1, 0)))
    server.send_bytes(b": you are reading too slowly, dropped 3 messages\n\n")
    wait_until(lambda: listener.listening == [1, 2], "the second connection")
    assert server.requests[1][1] == {"since_id": build_ulid(1, 0)}
    assert listener.stream.counters["gaps"] == 1


def test_a_venue_that_asks_to_wait_is_waited_for(server: EventServer, listen: Callable[..., Listener]) -> None:
    server.refusals.append((429, {"Retry-After": "1"}))
    listener = listen(longest_wait_s=0.5)
    listener.stream.wait_listening(DEADLINE_S)
    assert len(server.requests) == 2


def test_what_cannot_be_read_is_told_and_does_not_end_the_stream(
    server: EventServer, listen: Callable[..., Listener]
) -> None:
    listener = listen()
    listener.stream.wait_listening(DEADLINE_S)
    no_account = json.loads(build_data(build_ulid(1, 0)))
    del no_account["account_id"]
    no_order = {**no_account, "account_id": ACCOUNT, "order": {}}
    server.send("{", "[]", json.dumps(no_account), json.dumps(no_order), build_data(""), build_data(build_ulid(2, 0)))
    wait_until(lambda: listener.events, "an event")
    assert len(listener.unreadable) == 5
    assert listener.ids == [build_ulid(2, 0)]


def test_slices_are_asked_for_and_told(server: EventServer, listen: Callable[..., Listener]) -> None:
    server.greeting = b':heartbeat\n\nevent: listening\ndata: {"event_id":"E7","resumed":false}\n\n'
    marks: list[SliceMark] = []
    listener = listen(on_slice=marks.append)
    listener.stream.wait_listening(DEADLINE_S)
    assert server.requests[0][1] == {"slices": "true", "id": ACCOUNT}
    assert (listener.stream.position, listener.stream.resumed) == ("E7", False)
    server.send_bytes(b'event: slices\ndata: {"slice":1,"event_id":"E8","account_event_id":"E7"}\n\n')
    wait_until(lambda: marks, "the slice")
    assert marks == [SliceMark(event_id="E8", account_event_id="E7")]
    server.greeting = server.greeting.replace(b"false", b"true")
    server.end_stream()
    wait_until(lambda: listener.listening == [1, 2], "the second connection")
    assert listener.stream.resumed


def test_a_cursor_is_behind_the_last_event_of_an_earlier_millisecond() -> None:
    first, second, third = build_ulid(1, 0), build_ulid(2, 5), build_ulid(2, 3)
    assert find_cursor([]) is None
    assert find_cursor([second, third]) == third
    assert find_cursor([first, second, third]) == first
    assert find_cursor(["00000000000000000009", "00000000000000000010"]) == "00000000000000000010"
    assert find_cursor(["an opaque id"]) == "an opaque id"
