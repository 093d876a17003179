"""The bus: who gets what, and what a reader that comes back gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dry_work.hub.bus import Bus
from dry_work.hub.events import ALL, HubEvent, Topic
from dry_work.hub.queues import ClientQueue, Overflow

SPY: Topic = ("stocks", "trades", "SPY")
IBM: Topic = ("stocks", "trades", "IBM")
EVERY: Topic = ("stocks", "trades", ALL)


def make_queue() -> ClientQueue:
    return ClientQueue(1_000, Overflow.DROP_OLDEST, on_ready=lambda: None)


def publish(bus: Bus, symbol: str, channel: str = "trades", feed: str = "stocks") -> HubEvent:
    return bus.publish(feed, channel, symbol, {"S": symbol}, ts_recv_ns=1)


def offsets(queue: ClientQueue) -> list[int]:
    return [event.offset for event in queue.take()]


def test_a_reader_gets_what_it_asked_for_and_once() -> None:
    bus, queue = Bus("e"), make_queue()
    bus.attach(queue, [SPY, EVERY, SPY])
    publish(bus, "SPY")
    publish(bus, "IBM")
    publish(bus, "SPY", "quotes")
    publish(bus, "SPY", feed="crypto")
    assert offsets(queue) == [1, 2]


def test_a_bar_of_an_option_goes_to_those_alone_who_named_it() -> None:
    option = "AAPL240315C00172500"
    bus, every, named = Bus("e"), make_queue(), make_queue()
    bus.attach(every, [("stocks", "bars", ALL)])
    bus.attach(named, [("stocks", "bars", option)])
    for symbol in ("SPY", option):
        publish(bus, symbol, "bars")
    publish(bus, option, feed="options")  # a trade of it is among all trades of options
    assert (offsets(every), offsets(named)) == ([1], [2])
    found = bus.replay("stocks", [("stocks", "bars", ALL)], epoch="e", offset=0)
    assert [event.symbol for event in found.events] == ["SPY"]
    assert [event.symbol for event in bus.latest([("stocks", "bars", ALL)])] == ["SPY"]
    assert [event.symbol for event in bus.latest([("stocks", "bars", option)])] == [option]
    assert [event.symbol for event in bus.latest([("options", "trades", ALL)])] == [option]


def test_a_reader_that_left_gets_nothing_more() -> None:
    bus, queue = Bus("e"), make_queue()
    bus.attach(queue, [SPY, IBM])
    bus.detach(queue, [SPY])
    publish(bus, "SPY")
    publish(bus, "IBM")
    assert offsets(queue) == [2]
    bus.detach(queue)
    bus.detach(queue)
    publish(bus, "IBM")
    assert not queue.take()
    assert bus.readers == 0


def test_news_of_several_symbols_comes_once_to_each_reader() -> None:
    bus, one, both, every = Bus("e"), make_queue(), make_queue(), make_queue()
    bus.attach(one, [("news", "news", "IBM")])
    bus.attach(both, [("news", "news", "SPY"), ("news", "news", "IBM")])
    bus.attach(every, [("news", "news", ALL)])
    bus.publish("news", "news", "SPY", {}, ts_recv_ns=1, symbols=("SPY", "IBM"))
    assert [offsets(queue) for queue in (one, both, every)] == [[1], [1], [1]]


def test_a_queue_may_leave_while_an_event_is_handed_out() -> None:
    bus = Bus("e")
    leaver = ClientQueue(5, Overflow.CLOSE, on_ready=lambda: bus.detach(leaver))
    stayer = make_queue()
    bus.attach(leaver, [SPY])
    bus.attach(stayer, [SPY])
    publish(bus, "SPY")
    publish(bus, "SPY")
    assert offsets(stayer) == [1, 2]


def test_an_event_is_encoded_once_for_each_form() -> None:
    calls: list[str] = []
    event = publish(Bus("e"), "SPY")
    other = publish(Bus("e"), "IBM")

    def encode(event: HubEvent) -> bytes:
        calls.append(event.symbol)
        return event.symbol.encode()

    assert event.encode("json", encode) == event.encode("json", encode) == b"SPY"
    assert event.encode("msgpack", encode) == b"SPY"
    assert other.encode("json", encode) == b"IBM"
    assert calls == ["SPY", "SPY", "IBM"]


def test_the_last_event_of_each_symbol_is_a_snapshot() -> None:
    bus = Bus("e")
    for symbol in ("SPY", "IBM", "SPY"):
        publish(bus, symbol)
    assert [event.offset for event in bus.latest([EVERY])] == [2, 3]
    assert [event.offset for event in bus.latest([SPY, EVERY])] == [2, 3]
    assert bus.latest([("stocks", "quotes", "SPY")]) == []


def test_a_reader_of_another_epoch_or_ahead_of_this_one_has_not_recovered() -> None:
    bus = Bus("e")
    publish(bus, "SPY")
    assert not bus.replay("stocks", [EVERY], epoch="d", offset=0).recovered
    assert not bus.replay("stocks", [EVERY], epoch="e", offset=2).recovered
    assert bus.replay("stocks", [EVERY], epoch="e", offset=1).recovered


def test_a_reader_of_another_epoch_gets_every_order_update_of_this_one_and_is_told_that_some_may_be_missing() -> None:
    bus = Bus("e", order_history=2)
    for number in range(3):
        bus.publish("orders.paper", "orders", "SPY", {"event": "new"}, ts_recv_ns=1, event_id=f"id{number}")
    replay = bus.replay("orders.paper", [("orders.paper", "orders", "*")], epoch="another", offset=77)
    assert (replay.recovered, [event.event_id for event in replay.events]) == (False, ["id1", "id2"])


@given(
    symbols=st.lists(st.sampled_from(["SPY", "IBM"]), max_size=40),
    offset=st.integers(0, 40),
    history=st.integers(1, 30),
    topics=st.sets(st.sampled_from([SPY, IBM, EVERY]), min_size=1),
)
def test_a_replay_gives_exactly_what_was_missed_or_says_that_it_does_not(
    symbols: list[str], offset: int, history: int, topics: set[Topic]
) -> None:
    bus = Bus("e", data_history=history)
    for symbol in symbols:
        publish(bus, symbol)
    missed = [
        number
        for number, symbol in enumerate(symbols, 1)
        if number > offset and (EVERY in topics or ("stocks", "trades", symbol) in topics)
    ]
    replay = bus.replay("stocks", topics, epoch="e", offset=offset)
    found = [event.offset for event in replay.events]
    assert replay.recovered == (len(symbols) - history <= offset <= len(symbols))
    if replay.recovered:
        assert found == missed
    else:
        assert not found or found == [number for number in missed if number > len(symbols) - history]
