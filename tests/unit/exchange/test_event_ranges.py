"""From where to where trade events are asked for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dry_work.exchange.event_ranges import EventRange, parse_range, read_count, select_events
from dry_work.exchange.identifiers import EventIds, decode_ulid, encode_ulid
from dry_work.exchange.order_rules import RefusedError
from dry_work.orders.model import OrderType, Side, TimeInForce, TradeEvent, VenueOrder

SECOND_NS = 1_000_000_000
NOON_NS = int(datetime(2024, 6, 11, 12, tzinfo=UTC).timestamp()) * SECOND_NS
ORDER = VenueOrder(
    id="1", client_order_id="c", symbol="SPY", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.DAY,
    status="new",
)  # fmt: skip


def build_events() -> list[TradeEvent]:
    """Return three events at noon and three a minute later."""
    ids = EventIds()
    times = [NOON_NS] * 3 + [NOON_NS + 60 * SECOND_NS] * 3
    return [
        TradeEvent(event=str(number), event_id=ids.take(time_ns), ts_event_ns=time_ns, order=ORDER)
        for number, time_ns in enumerate(times, start=1)
    ]


EVENTS = build_events()
IDS = [event.event_id for event in EVENTS]


def select(query: dict[str, str], *, counts: bool = False) -> str:
    asked = parse_range(query, counts=counts)
    return "".join(event.event for event in select_events(reversed(EVENTS), asked))


def test_a_ulid_is_read_as_it_was_written() -> None:
    for time_ms, count in ((0, 0), (1_718_112_600_000, 77), ((1 << 48) - 1, (1 << 80) - 1)):
        assert decode_ulid(encode_ulid(time_ms, count)) == (time_ms, count)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"since_id": IDS[1]}, "3456"),
        ({"since_id": IDS[1].lower()}, "3456"),
        ({"since_id": IDS[1], "until_id": IDS[3]}, "34"),
        ({"since_id": IDS[1] + "-"}, "3456"),  # an event that nobody knows came behind it
        ({"since_id": IDS[5]}, ""),
        ({"since": "2024-06-11T12:00:00Z"}, "123456"),
        ({"since": "2024-06-11T12:00:00.0001Z"}, "456"),
        ({"since": "2024-06-11T14:00:00+02:00", "until": "2024-06-11T12:00:59Z"}, "123"),
        ({"since": "2024-06-11T12:00:30Z", "until": "2024-06-11T12:01:00Z"}, "456"),
        ({"since": "2024-06-11", "until": "2024-06-11"}, "123456"),  # whole days
        ({"since": "2024-06-12"}, ""),
        ({"since": "2024-06-10", "until": "2024-06-10"}, ""),
    ],
)
def test_a_cursor_selects_what_is_behind_it_up_to_the_bound(query: dict[str, str], told: str) -> None:
    assert select(query) == told
    assert parse_range(query, counts=False).has_history


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"since_id": "0"}, "123456"),
        ({"since_id": "2", "until_id": "4"}, "34"),
        ({"since_ulid": IDS[1], "until_ulid": IDS[3]}, "34"),
        ({"since": "2024-06-11T12:00:30Z"}, "456"),
    ],
)
def test_the_older_streams_count_their_events(query: dict[str, str], told: str) -> None:
    assert select(query, counts=True) == told


def test_without_a_cursor_there_is_no_past_and_no_end() -> None:
    asked = parse_range({}, counts=False)
    assert asked == EventRange()
    assert not asked.has_history
    assert all(asked.reaches(event_id) for event_id in IDS)
    assert not asked.is_over(IDS[-1], 1 << 62)


@pytest.mark.parametrize(
    ("query", "counts", "message"),
    [
        ({"until": "2024-06-11"}, False, "since is required if until is specified"),
        ({"until_id": IDS[0]}, False, "since_id is required if until_id is specified"),
        ({"since": "2024-06-11", "until_id": IDS[0]}, False, "since_id is required if until_id is specified"),
        ({"since_id": IDS[0], "until": "2024-06-11"}, False, "since is required if until is specified"),
        ({"since": "2024-06-11", "since_id": IDS[0]}, False, "since and since_id cannot be used at the same time"),
        ({"since_id": "1", "since_ulid": IDS[0]}, True, "since_id and since_ulid cannot be used at the same time"),
        ({"since": "yesterday"}, False, "invalid since: yesterday; expected a date or an RFC 3339 time"),
        ({"since": "2024-06-11", "until": "x"}, False, "invalid until: x; expected a date or an RFC 3339 time"),
        ({"since_id": "7"}, False, "invalid since_id: 7; expected a ULID"),
        ({"since_id": IDS[0]}, True, f"invalid since_id: {IDS[0]}; expected an integer"),
        ({"since_id": "1", "until_id": "-1"}, True, "invalid until_id: -1; expected an integer"),
        ({"since_id": "8" + IDS[0][1:]}, False, f"invalid since_id: 8{IDS[0][1:]}; expected a ULID"),
    ],
)  # fmt: skip
def test_a_cursor_that_breaks_the_rules_is_refused(query: dict[str, str], counts: bool, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_range(query, counts=counts)
    assert (refused.value.http_status, refused.value.message) == (422, message)


@pytest.mark.parametrize(
    ("query", "counts"),
    [
        ({"since_id": IDS[0], "until_id": IDS[3]}, False),
        ({"since_id": "1", "until_id": "4"}, True),
    ],
)
def test_a_range_of_ids_is_over_with_its_last_event_or_one_behind_it(query: dict[str, str], counts: bool) -> None:
    asked = parse_range(query, counts=counts)
    over = [asked.is_over(event.event_id, event.ts_event_ns) for event in EVENTS]
    assert over == [False, False, False, True, True, True]
    assert not asked.is_over("", NOON_NS)


def test_a_range_of_ids_is_over_when_their_time_has_passed() -> None:
    asked = parse_range({"since_id": IDS[0], "until_id": IDS[2] + "-"}, counts=False)
    assert not asked.is_over(IDS[2], NOON_NS)
    assert asked.is_over(IDS[2], NOON_NS + SECOND_NS)


def test_a_range_of_times_is_over_when_its_last_moment_has_passed() -> None:
    asked = parse_range({"since": "2024-06-11T11:00:00Z", "until": "2024-06-11T12:00:00Z"}, counts=False)
    assert not asked.is_over(IDS[2], NOON_NS)
    assert asked.is_over(IDS[2], NOON_NS + 60 * SECOND_NS)


def test_a_cursor_that_nobody_has_given_is_ahead() -> None:
    for query, counts in (({"since_id": IDS[4]}, False), ({"since_id": "5"}, True)):
        asked = parse_range(query, counts=counts)
        assert [asked.is_ahead_of(last) for last in ("", IDS[3], IDS[4], IDS[5])] == [True, True, False, False]
    assert not parse_range({"since": "2030-01-01"}, counts=False).is_ahead_of(IDS[5])
    assert not EventRange().is_ahead_of("")


def test_the_count_of_an_event_is_read_from_its_id() -> None:
    assert [read_count(event_id) for event_id in IDS] == [1, 2, 3, 4, 5, 6]
    assert read_count(IDS[2] + "-") == 3
