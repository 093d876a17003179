"""The framing of server-sent events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.alpaca.sse import EventParser, ServerComment, ServerEvent
from dry_work.errors import CodecError

STREAM = (
    b"\xef\xbb\xbf:heartbeat\n\n"
    b'data: {"a":1}\r\n\r\n'
    b"id: 01H\revent: trade\rdata: one\rdata:two\r\r"
    b"event: nothing\n\n"
    b": you are reading too slowly, dropped 3 messages\n"
    b"retry: 5\nunknown\ndata\n\n"
    b"data: caf\xc3\xa9 \xe2\x80\xa8 line\n\n"
    b"data: not complete\n"
)
FOUND = [
    ServerComment("heartbeat"),
    ServerEvent('{"a":1}'),
    ServerEvent("one\ntwo", "trade", "01H"),
    ServerComment("you are reading too slowly, dropped 3 messages"),
    ServerEvent(""),
    ServerEvent("café \u2028 line"),
]


def test_events_and_comments_are_read() -> None:
    assert EventParser().feed(STREAM) == FOUND


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_it_does_not_matter_where_the_stream_is_cut(cuts: list[int]) -> None:
    parser = EventParser()
    places = [0, *sorted(cuts), len(STREAM)]
    found = [item for start, end in itertools.pairwise(places) for item in parser.feed(STREAM[start:end])]
    assert found == FOUND


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    parser = EventParser()
    byte_by_byte = [item for index in range(len(data)) for item in parser.feed(data[index : index + 1])]
    assert EventParser().feed(data) == byte_by_byte


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(CodecError, match="a line of the stream is longer than 100 bytes"):
        EventParser(longest_bytes=100).feed(b"data: " + b"x" * 100)
    with pytest.raises(CodecError, match="an event is longer than 100 bytes"):
        EventParser(longest_bytes=100).feed((b"data: " + b"x" * 40 + b"\n") * 3)


def test_bytes_without_an_end_of_line_are_no_line() -> None:
    parser = EventParser()
    parser.feed(b":" * 50)
    assert parser.lines == 0
    parser.feed(b"\n")
    assert parser.lines == 1
