from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError, HubError
from dry_work.hub.core import (
    ConnectionEvent,
    ConnectionState,
    ErrorKind,
    SliceCollector,
    bar_topics,
    build_feeds,
    error_kind,
    handshake_kind,
    next_state,
    split_symbols,
    split_wishes,
    status_topics,
)
from dry_work.hub.events import OPTION_BARS
from dry_work.market.messages import Bar, PriceBands, TradingStatus, Watermark
from dry_work.wire.alpaca_stream import StreamWatermark

OPTION = "AAPL240315C00172500"


def bar(symbol: str, minute: int, revision: int = 0) -> Bar:
    return Bar(
        symbol=symbol,
        ts_event_ns=minute * MINUTE_NS,
        open=1.0,
        high=1.0,
        low=1.0,
        close=1.0,
        volume=1.0,
        revision=revision,
    )


def close(number: int) -> StreamWatermark:
    return StreamWatermark(slice=number, end_ns=(number + 1) * MINUTE_NS, event_id=f"e{number}", last=number == 5)


def mark(number: int, bars: int) -> Watermark:
    return Watermark(slice=number, end_ns=(number + 1) * MINUTE_NS, bars=bars, event_id=f"e{number}", last=number == 5)


# --- states


def walk(*events: ConnectionEvent) -> ConnectionState:
    state = ConnectionState.DISCONNECTED
    for event in events:
        state = next_state(state, event)
    return state


E, S = ConnectionEvent, ConnectionState


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([E.CONNECT], S.CONNECTING),
        ([E.CONNECT, E.SOCKET_OPEN], S.AUTHENTICATING),
        ([E.CONNECT, E.SOCKET_OPEN, E.AUTH_SUCCESS], S.CONNECTED),
        ([E.CONNECT, E.SOCKET_OPEN, E.AUTH_SUCCESS, E.SOCKET_CLOSED], S.RECONNECTING),
        ([E.CONNECT, E.SOCKET_OPEN, E.AUTH_SUCCESS, E.SOCKET_CLOSED, E.DELAY_ELAPSED], S.CONNECTING),
        ([E.CONNECT, E.SOCKET_OPEN, E.REFUSED], S.ERROR),
        ([E.CONNECT, E.SOCKET_CLOSED, E.ATTEMPTS_USED_UP], S.ERROR),
        ([E.CONNECT, E.REFUSED, E.RETRY], S.RECONNECTING),
    ],
)
def test_the_states_follow_the_connection(events: list[ConnectionEvent], state: ConnectionState) -> None:
    assert walk(*events) is state


@pytest.mark.parametrize(
    "events",
    [
        [E.AUTH_SUCCESS],
        [E.DELAY_ELAPSED],
        [E.CONNECT, E.AUTH_SUCCESS],
        [E.CONNECT, E.CONNECT],
        [E.CONNECT, E.SOCKET_OPEN, E.AUTH_SUCCESS, E.DELAY_ELAPSED],
        [E.CONNECT, E.REFUSED, E.DELAY_ELAPSED],
    ],
)
def test_an_event_out_of_place_is_an_error(events: list[ConnectionEvent]) -> None:
    with pytest.raises(HubError, match="cannot see"):
        walk(*events)


@settings(deadline=None)
@given(events=st.lists(st.sampled_from(ConnectionEvent), max_size=40))
def test_stop_leads_home_from_every_reachable_state(events: list[ConnectionEvent]) -> None:
    state = ConnectionState.DISCONNECTED
    for event in events:
        with contextlib.suppress(HubError):
            state = next_state(state, event)
    assert next_state(state, ConnectionEvent.STOP) is ConnectionState.DISCONNECTED


def test_connected_is_only_reached_through_authentication() -> None:
    for state in ConnectionState:
        for event in ConnectionEvent:
            try:
                after = next_state(state, event)
            except HubError:
                continue
            if after is S.CONNECTED:
                assert (state, event) == (S.AUTHENTICATING, E.AUTH_SUCCESS)


# --- errors


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        (ErrorKind.FATAL, [402, 406, 409, 411]),
        (ErrorKind.LOST, [401, 404, 407, 500]),
        (ErrorKind.NOTED, [400, 403, 405, 410, 408, 999]),
    ],
)
def test_error_codes_have_their_kind(kind: ErrorKind, codes: list[int]) -> None:
    assert {error_kind(code) for code in codes} == {kind}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, ErrorKind.FATAL) for status in (401, 403, 404)),
        *((status, ErrorKind.LOST) for status in (302, 408, 429, 500, 503)),
    ],
)
def test_a_refused_handshake_has_its_kind(status: int, kind: ErrorKind) -> None:
    assert handshake_kind(status) is kind


# --- feeds


def test_each_feed_has_its_endpoint_and_topic() -> None:
    stocks, crypto, options, news = build_feeds(stock_feed="sip", market_topic="m", crypto_topic="c")
    assert (stocks.path, stocks.topic) == ("/v2/sip", "m")
    assert (crypto.path, crypto.topic) == ("/v1beta3/crypto/us", "c")
    assert (options.path, options.topic, options.needs_msgpack) == ("/v1beta1/indicative", "", True)
    assert (news.path, news.topic) == ("/v1beta1/news", "")


def test_an_unknown_feed_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"'boats' is not a stock feed .*iex, sip"):
        build_feeds(stock_feed="boats", market_topic="m", crypto_topic="c")


def test_stocks_and_crypto_cannot_share_a_topic() -> None:
    with pytest.raises(ConfigError, match="MARKET_DATA_TOPIC and CRYPTO_DATA_TOPIC"):
        build_feeds(stock_feed="iex", market_topic="m", crypto_topic="m")


def test_symbols_go_to_the_feed_of_their_class() -> None:
    assert split_symbols(["SPY", "BTC/USD", "BRK.B"]) == (("SPY", "BRK.B"), ("BTC/USD",))


def test_what_is_no_symbol_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a symbol"):
        split_symbols(["SPY", "spy"])


def test_bars_of_options_are_told_among_those_of_stocks_and_made_of_the_trades_of_options() -> None:
    assert bar_topics(["SPY", OPTION, "BTC/USD"]) == [
        ("stocks", "bars", "SPY"),
        ("stocks", "bars", OPTION),
        ("crypto", "bars", "BTC/USD"),
    ]
    wanted = [*bar_topics([OPTION, "SPY"]), ("options", "quotes", OPTION), ("stocks", "bars", "*")]
    assert split_wishes(wanted) == {
        "options": [("trades", OPTION), (OPTION_BARS, OPTION), ("quotes", OPTION)],
        "stocks": [("bars", "SPY"), ("bars", "*")],
    }


# --- slices


def test_without_watermarks_bars_are_ready_at_once() -> None:
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=False)
    assert collector.add([bar("SPY", 1)]) == [bar("SPY", 1)]
    assert collector.waiting == 0


def test_a_slice_goes_out_with_its_watermark_and_the_count_of_its_bars() -> None:
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=True)
    assert collector.add([bar("SPY", 1)]) == []
    assert collector.add([bar("IBM", 1), close(1), bar("SPY", 2)]) == [bar("SPY", 1), bar("IBM", 1), mark(1, bars=2)]
    assert collector.waiting == 1
    assert collector.add([close(2)]) == [bar("SPY", 2), mark(2, bars=1)]
    assert collector.add([close(3)]) == [mark(3, bars=0)]


def test_statuses_keep_their_place_and_count_for_no_slice() -> None:
    halt = TradingStatus(symbol="SPY", ts_event_ns=1, code="H")
    bands = PriceBands(symbol="SPY", ts_event_ns=1, upper=2.0, lower=1.0)
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=True)
    assert collector.add([bar("SPY", 1), halt]) == []
    assert collector.add([bands, close(1), halt]) == [bar("SPY", 1), halt, bands, mark(1, bars=1)]
    assert collector.take() == [halt]
    collector.begin_session(takes_watermarks=False)
    assert collector.add([halt, bar("SPY", 2)]) == [halt, bar("SPY", 2)]


def test_statuses_are_of_stocks_alone() -> None:
    assert status_topics(["SPY", "BTC/USD", OPTION]) == [("stocks", "statuses", "SPY"), ("stocks", "lulds", "SPY")]


def test_bars_taken_before_their_watermark_still_count_for_it() -> None:
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=True)
    collector.add([bar("SPY", 1)])
    assert collector.take() == [bar("SPY", 1)]
    assert collector.add([bar("IBM", 1), close(1)]) == [bar("IBM", 1), mark(1, bars=2)]


def test_a_bar_sent_again_within_a_slice_counts_once_and_is_passed_on() -> None:
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=True)
    assert collector.add([bar("SPY", 1), bar("SPY", 1), close(1)]) == [bar("SPY", 1), bar("SPY", 1), mark(1, bars=1)]


def test_a_new_session_counts_its_slice_anew_and_keeps_what_waits() -> None:
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=True)
    collector.add([bar("SPY", 1)])
    collector.begin_session(takes_watermarks=True)
    ready = collector.add([bar("SPY", 2), bar("IBM", 2), close(2)])
    assert ready == [bar("SPY", 1), bar("SPY", 2), bar("IBM", 2), mark(2, bars=2)]


MESSAGES = st.lists(
    st.one_of(
        st.builds(bar, st.sampled_from(["SPY", "IBM"]), st.integers(0, 3)),
        st.builds(close, st.integers(1, 5)),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(batches=st.lists(MESSAGES, max_size=6), takes_watermarks=st.booleans())
def test_nothing_is_lost_reordered_or_invented(
    batches: list[list[Bar | StreamWatermark]], *, takes_watermarks: bool
) -> None:
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=takes_watermarks)
    out: list[Bar | Watermark] = []
    for batch in batches:
        out += collector.add(batch)
    out += collector.take()
    given_in = [message for batch in batches for message in batch]
    assert [m if isinstance(m, Bar) else m.slice for m in out] == [
        m if isinstance(m, Bar) else m.slice for m in given_in
    ]


@settings(deadline=None)
@given(messages=MESSAGES)
def test_each_watermark_counts_the_different_bars_since_the_one_before(messages: list[Bar | StreamWatermark]) -> None:
    collector = SliceCollector()
    collector.begin_session(takes_watermarks=True)
    seen: Counter[tuple[str, int]] = Counter()
    for message in collector.add(messages):
        if isinstance(message, Watermark):
            assert message.bars == len(seen)
            seen.clear()
        else:
            seen[message.symbol, message.ts_event_ns] += 1


def test_an_option_feed_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match="'sip' is not an option feed: one of indicative, opra"):
        build_feeds(stock_feed="iex", option_feed="sip", market_topic="m", crypto_topic="c")
