"""From where to where a stream of trade events is asked for. Pure.

Events have two ids: a ULID, which begins with the time in milliseconds, and its count, as the older streams tell it.
Both grow with every event of any account.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from dry_work.clock import DAY_NS
from dry_work.exchange.identifiers import decode_ulid, encode_ulid
from dry_work.exchange.order_rules import RefusedError
from dry_work.orders.model import TradeEvent
from dry_work.wire.alpaca_rest import CODE_REQUEST
from dry_work.wire.pubsub import parse_time

_MILLISECOND_NS = 1_000_000
_DATE_LENGTH = len("2024-06-11")
_LAST_COUNT = (1 << 80) - 1
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}-?", re.ASCII)  # with a dash: an event that nobody knows
_FAMILIES = ("", "_id", "_ulid")


class EventRange(msgspec.Struct, frozen=True, kw_only=True):
    """A range of events. Without a beginning nothing of the past belongs to it; without an end it goes on for ever."""

    after: str | None = None  # the ULID of the last event before the range
    until: str | None = None  # the ULID of the last event that may be in it
    after_count: int | None = None  # the same as counts
    until_count: int | None = None

    @property
    def has_history(self) -> bool:
        """Whether events of the past are asked for."""
        return self.after is not None or self.after_count is not None

    def begins_by(self, event_id: str) -> bool:
        """Tell whether an event is not before the range."""
        if self.after_count is not None and read_count(event_id) <= self.after_count:
            return False
        return self.after is None or event_id > self.after

    def reaches(self, event_id: str) -> bool:
        """Tell whether an event is not behind the range."""
        if self.until_count is not None and read_count(event_id) > self.until_count:
            return False
        return self.until is None or event_id <= self.until

    def is_over(self, last_event_id: str, now_ns: int) -> bool:
        """Tell whether no event belongs to the range any more, after the last one of any account."""
        if self.until_count is not None:
            return bool(last_event_id) and read_count(last_event_id) >= self.until_count
        if self.until is None:
            return False
        return last_event_id >= self.until or decode_ulid(self.until[:26])[0] < now_ns // _MILLISECOND_NS

    def is_ahead_of(self, last_event_id: str) -> bool:
        """Tell whether the range begins behind an event that has not been, as after a loss of the exchange's state."""
        if self.after_count is not None:
            return self.after_count > (read_count(last_event_id) if last_event_id else 0)
        # what begins with a time alone has the count 0
        return self.after is not None and decode_ulid(self.after[:26])[1] > 0 and self.after[:26] > last_event_id


def read_count(event_id: str) -> int:
    """Return the count of an event, which is its id in the older streams."""
    return decode_ulid(event_id[:26])[1]


def select_events(events: Iterable[TradeEvent], asked: EventRange) -> list[TradeEvent]:
    """Return those of `events`, the newest of which comes first, that are in a range, the oldest first."""
    found: list[TradeEvent] = []
    for event in events:
        if not asked.begins_by(event.event_id):
            break
        if asked.reaches(event.event_id):
            found.append(event)
    return found[::-1]


def parse_range(query: Mapping[str, str], *, counts: bool) -> EventRange:
    """Read `since`, `until`, `since_id`, `until_id`, and with `counts` `since_ulid`, `until_ulid` of a query.

    Args:
        counts: ids are counts, as in the older streams.

    Raises:
        RefusedError: 422, for what cannot be read, an end without a beginning, or two kinds of either.
    """
    families = _FAMILIES if counts else _FAMILIES[:2]
    begins = [f"since{family}" for family in families if query.get(f"since{family}")]
    ends = [f"until{family}" for family in families if query.get(f"until{family}")]
    if len(begins) > 1:
        raise _refuse(f"{' and '.join(begins)} cannot be used at the same time")
    for end in ends:
        begin = end.replace("until", "since")
        if begin not in begins:
            raise _refuse(f"{begin} is required if {end} is specified")
    if not begins:
        return EventRange()
    begin, end_text = begins[0], query.get(ends[0]) if ends else None
    begin_text = query[begin]
    if begin == "since":
        since_ns = _read_time("since", begin_text)
        until = None
        if end_text is not None:
            until_ns = _read_time("until", end_text)
            if len(end_text.strip()) == _DATE_LENGTH:  # a date alone is the whole day
                until_ns += DAY_NS - 1
            until = _build_ulid(until_ns // _MILLISECOND_NS, _LAST_COUNT)
        return EventRange(after=_build_ulid(-(-since_ns // _MILLISECOND_NS), 0), until=until)
    if begin == "since_id" and counts:
        return EventRange(
            after_count=_read_count("since_id", begin_text),
            until_count=None if end_text is None else _read_count("until_id", end_text),
        )
    return EventRange(
        after=_read_ulid(begin, begin_text), until=None if end_text is None else _read_ulid(ends[0], end_text)
    )


def _read_time(name: str, text: str) -> int:
    try:
        return parse_time(text)
    except ValueError:
        raise _refuse(f"invalid {name}: {text[:40]}; expected a date or an RFC 3339 time") from None


def _build_ulid(time_ms: int, count: int) -> str:
    return encode_ulid(min(max(time_ms, 0), (1 << 48) - 1), count)


def _read_count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _refuse(f"invalid {name}: {text[:40]}; expected an integer")
    return int(text)


def _read_ulid(name: str, text: str) -> str:
    text = text.upper()
    if _ULID.fullmatch(text) is None:
        raise _refuse(f"invalid {name}: {text[:40]}; expected a ULID")
    return text


def _refuse(message: str) -> RefusedError:
    return RefusedError(422, CODE_REQUEST, message)
