"""What goes to many clients alike is put together once, and counted for each of them."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dry_work.hub.events import HubEvent
from dry_work.hub.sinks.dialects import DataDialect, Dialect, OrderDialect
from dry_work.hub.sinks.shared_frames import MOST_BATCHES, MOST_EVENTS, SharedFrames
from dry_work.wire.alpaca_stream import StreamCodec


def make_event(offset: int, channel: str = "trades") -> HubEvent:
    item = {"T": channel[0], "S": "SPY", "i": offset}
    return HubEvent(
        feed="stocks", channel=channel, symbol="SPY", item=item, epoch="e", offset=offset, ts_recv_ns=0, event_id="x"
    )


def make_dialect(codec: StreamCodec = StreamCodec.JSON, *, tells_position: bool = False) -> DataDialect:
    return DataDialect("stocks", codec, admits=lambda _: True, tells_position=tells_position)


class Calls(DataDialect):
    """Counts how often it encodes."""

    calls = 0

    def encode(self, events: object) -> list[bytes]:
        Calls.calls += 1
        return super().encode(events)  # type: ignore[arg-type]


def test_the_same_events_are_put_together_once_for_clients_of_one_form() -> None:
    shared, events = SharedFrames(), (make_event(1), make_event(2, "quotes"))
    Calls.calls = 0
    found = [shared.encode(Calls("stocks", StreamCodec.JSON, admits=lambda _: True), events) for _ in range(5)]
    assert Calls.calls == 1
    assert all(frames is found[0] for frames in found)
    assert [item["i"] for item in json.loads(found[0][0])] == [1, 2]
    expected = {("stocks", "trades"): 5, ("stocks", "quotes"): 5}
    assert shared.read_counts() == shared.read_counts() == expected
    shared.encode(Calls("stocks", StreamCodec.JSON, admits=lambda _: True), events)
    assert Calls.calls == 2, "frames do not outlive their round"


def test_each_form_has_frames_of_its_own() -> None:
    shared, events = SharedFrames(), (make_event(1),)
    dialects: list[Dialect] = [
        make_dialect(),
        make_dialect(StreamCodec.MSGPACK),
        make_dialect(tells_position=True),
        make_dialect(StreamCodec.MSGPACK, tells_position=True),
        OrderDialect("orders.paper", is_stream=True, admits=lambda _: True),
        OrderDialect("orders.paper", is_stream=True, admits=lambda _: True, is_hub_aware=True),
    ]
    for _ in range(2):
        for dialect in dialects[:-1]:
            assert shared.encode(dialect, events) == dialect.encode(events)
    numbered = [json.loads(shared.encode(dialects[-1], events)[0])["seq"] for _ in range(2)]
    assert numbered == [1, 2], "frames with a number of the client are not shared"
    assert shared.read_counts() == {("stocks", "trades"): 12}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=60))
def test_every_client_gets_its_events_and_every_one_is_counted(takes: list[tuple[int, int, bool]]) -> None:
    shared = SharedFrames()
    events = [make_event(number, ("trades", "quotes", "bars")[number % 3]) for number in range(7)]
    expected: Counter[tuple[str, str]] = Counter()
    for first, count, ends_round in takes:
        chosen = tuple(events[first : first + count])
        assert shared.encode(make_dialect(), chosen) == make_dialect().encode(chosen)
        expected.update((event.feed, event.channel) for event in chosen)
        if ends_round:
            shared.end_round()
    assert shared.read_counts() == expected


def test_what_is_held_for_others_is_bounded() -> None:
    shared = SharedFrames()
    many = tuple(make_event(number) for number in range(MOST_EVENTS + 1))
    assert shared.encode(make_dialect(), many) == make_dialect().encode(many)
    assert not shared._batches
    for event in many:
        shared.encode(make_dialect(), (event,))
        assert len(shared._batches) <= MOST_BATCHES
    assert shared.read_counts() == {("stocks", "trades"): 2 * len(many)}


def test_bars_of_options_are_for_clients_that_know_the_hub_and_of_stocks_nothing_else_is() -> None:
    option = "SPY240621C00550000"
    asked = json.dumps({"action": "subscribe", "bars": ["SPY", option]})
    plain, aware = make_dialect(), make_dialect(tells_position=True)
    for dialect in (plain, aware):
        dialect.is_authenticated = True
    assert json.loads(plain.take(asked).frames[0])[0]["code"] == 400
    assert aware.take(asked).added == (("stocks", "bars", "SPY"), ("stocks", "bars", option))
    refused = aware.take(json.dumps({"action": "subscribe", "trades": [option]}))
    assert json.loads(refused.frames[0])[0]["code"] == 400
