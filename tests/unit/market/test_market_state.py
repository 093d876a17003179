"""Halts, silence and price bands of a run's symbols, and what of them goes into a heartbeat."""

from __future__ import annotations

import json

import msgspec
import pytest

from dry_work.clock import MINUTE_NS
from dry_work.market.completeness import Arrival, Completeness, CompletenessTally
from dry_work.market.market_state import (
    SYMBOLS_LISTED,
    DataHealth,
    MarketState,
    SymbolTrading,
    describe_health,
    parse_health,
)
from dry_work.market.messages import Bar, BarNote, PriceBands, Slice, TradingStatus

START_NS = 1_720_000_800_000_000_000  # a full minute in UTC, for crypto


def status(code: str, minute: float = 0.0, symbol: str = "BTC/USD", **words: str) -> TradingStatus:
    return TradingStatus(symbol=symbol, ts_event_ns=START_NS + round(minute * MINUTE_NS), code=code, **words)


def bar(end_minute: int, symbol: str = "BTC/USD", revision: int = 0) -> Bar:
    start_ns = START_NS + (end_minute - 1) * MINUTE_NS
    return Bar(symbol=symbol, ts_event_ns=start_ns, open=1, high=1, low=1, close=1, volume=1, revision=revision)


def piece(minute: int, *symbols: str) -> Slice:
    return Slice(end_ns=START_NS + minute * MINUTE_NS, bars=tuple(bar(minute, symbol) for symbol in symbols))


@pytest.mark.parametrize(
    ("code", "is_halt"),
    [("H", True), ("P", True), ("2", True), ("4", True), ("T", False), ("3", False), ("Q", None), ("F", None)],
)
def test_the_codes_of_both_tapes_say_whether_a_symbol_is_traded(code: str, is_halt: bool | None) -> None:
    assert status(code).is_halt is is_halt


def test_a_status_is_told_with_its_reason() -> None:
    told = status("H", message="Trading Halt", reason="News Pending", reason_code="T1")
    assert told.describe() == "Trading Halt: News Pending (T1)"
    assert status("H", reason_code="T1").describe() == "H: T1"
    assert status("T", message="Trading Resumption").describe() == "Trading Resumption"


def test_a_halt_lasts_until_trading_resumes_and_silence_has_no_say_in_it() -> None:
    state = MarketState(["BTC/USD"])
    trading = SymbolTrading(state, "BTC/USD")
    assert not trading.is_halted
    state.note_silence("BTC/USD", "no bar")
    assert state.note_trading(status("H")) is True
    assert trading.is_halted
    assert state.silent == {}  # now it has a reason
    assert state.note_trading(status("H", 1)) is None  # told twice
    assert state.note_trading(status("Q", 2)) is None
    assert trading.is_halted
    assert state.note_trading(status("T", 3)) is False
    assert not trading.is_halted
    assert trading.status == status("T", 3)
    assert state.note_trading(status("T", 4)) is None
    assert state.note_trading(status("H", symbol="IBM")) is None  # nobody follows it
    assert set(state.halts) == set()


def test_only_a_bar_that_begins_after_the_halt_ends_it() -> None:
    state = MarketState(["BTC/USD", "ETH/USD"])
    state.note_trading(status("H", 0.5))
    assert state.note_bars([bar(1), bar(1, "ETH/USD")]) == []  # it began before the halt
    assert state.note_bars([bar(2)]) == [bar(2)]
    assert state.note_bars([bar(3)]) == []


def test_price_bands_are_kept_as_they_come() -> None:
    state = MarketState(["BTC/USD"])
    trading = SymbolTrading(state, "BTC/USD")
    assert trading.bands is None
    for upper in (11.0, 12.0):
        state.note_bands(PriceBands(symbol="BTC/USD", ts_event_ns=1, upper=upper, lower=9.0))
    state.note_bands(PriceBands(symbol="IBM", ts_event_ns=1, upper=1.0, lower=1.0))
    assert trading.bands is not None
    assert trading.bands.upper == 12.0
    assert set(state.bands) == {"BTC/USD"}


def test_no_bar_is_expected_of_a_whole_minute_in_a_halt() -> None:
    tally = CompletenessTally(["BTC/USD", "ETH/USD"])
    tally.note(piece(1, "BTC/USD", "ETH/USD"))
    tally.note_halt("BTC/USD", START_NS + MINUTE_NS * 3 // 2)  # within the second minute, which has a bar
    tally.note_halt("BTC/USD", START_NS + MINUTE_NS * 2)  # told once more
    tally.note(piece(2, "BTC/USD", "ETH/USD"))
    for minute in (3, 4, 5):
        tally.note(piece(minute, "ETH/USD"))
    assert tally.of("BTC/USD") == Completeness(expected=2, arrived=2, halted=3)
    tally.note_resumption("BTC/USD", START_NS + MINUTE_NS * 9 // 2)  # within the fifth, which is expected
    tally.note(piece(6, "BTC/USD", "ETH/USD"))
    assert tally.of("BTC/USD") == Completeness(expected=4, arrived=3, missing=1, halted=2)
    assert tally.of("ETH/USD") == Completeness(expected=6, arrived=6)
    minutes = [tally.minute("BTC/USD", START_NS + minute * MINUTE_NS) for minute in range(1, 7)]
    assert minutes == [
        Arrival.ARRIVED, Arrival.ARRIVED, Arrival.HALTED, Arrival.HALTED, Arrival.MISSING, Arrival.ARRIVED,
    ]  # fmt: skip


def test_the_counts_stay_right_when_a_halt_is_told_late_or_was_none() -> None:
    tally = CompletenessTally(["BTC/USD"])
    for minute in (1, 2, 3):
        tally.note(piece(minute, "BTC/USD"))
    assert tally.of("BTC/USD").arrived == 3
    tally.note_halt("BTC/USD", START_NS)  # long ago
    counts = tally.of("BTC/USD")
    assert (counts.expected, counts.arrived, counts.missing, counts.halted) == (3, 3, 0, 0)
    tally.note(piece(4, "BTC/USD"))  # a bar in a halt
    assert tally.of("BTC/USD").outside == 1
    tally.note_resumption("BTC/USD", START_NS + 4 * MINUTE_NS)
    tally.note_halt("BTC/USD", START_NS + 4 * MINUTE_NS + 1)
    tally.note_resumption("BTC/USD", START_NS + 4 * MINUTE_NS + 2)  # no whole minute
    tally.note(piece(5, "BTC/USD"))
    counts = tally.of("BTC/USD")
    assert (counts.expected, counts.arrived, counts.missing, counts.outside) == (4, 4, 0, 1)
    tally.note_halt("IBM", START_NS)
    tally.note_resumption("IBM", START_NS)


def test_many_halts_are_counted_though_their_times_are_forgotten() -> None:
    tally = CompletenessTally(["BTC/USD"])
    tally.note(piece(1, "BTC/USD"))
    for halt in range(200):
        begin = START_NS + (1 + 2 * halt) * MINUTE_NS
        tally.note_halt("BTC/USD", begin)
        tally.note(piece(2 + 2 * halt))
        tally.note_resumption("BTC/USD", begin + MINUTE_NS)
        tally.note(piece(3 + 2 * halt, "BTC/USD"))
    assert tally.of("BTC/USD") == Completeness(expected=201, arrived=201, halted=200)
    assert len(tally._halts["BTC/USD"]) <= 65


def test_bars_that_are_not_delivered_are_counted() -> None:
    tally = CompletenessTally(["BTC/USD"])
    tally.note_undelivered(BarNote(bar=bar(1)))  # before anything is counted
    tally.note(piece(2, "BTC/USD"))
    tally.note(piece(4, "BTC/USD"))
    tally.note_undelivered(BarNote(bar=bar(3)))
    tally.note_undelivered(BarNote(bar=bar(3)))
    tally.note_undelivered(BarNote(bar=bar(2, revision=1), is_revision=True))
    tally.note_undelivered(BarNote(bar=bar(3, "IBM")))
    assert tally.of("BTC/USD") == Completeness(expected=3, arrived=2, late=1, revised=1)
    assert tally.minute("BTC/USD", START_NS + 3 * MINUTE_NS) is Arrival.LATE


def test_the_state_of_a_moment_survives_the_heartbeat_and_is_told() -> None:
    state = MarketState(["BTC/USD", "ETH/USD"])
    tally = CompletenessTally(["BTC/USD", "ETH/USD"])
    tally.note(piece(1, "BTC/USD", "ETH/USD"))
    tally.note(piece(2, "ETH/USD"))
    state.note_trading(status("H", message="Trading Halt", reason="News Pending"))
    state.note_silence("ETH/USD", "no bar for 300 s while its market is open")
    health = state.describe(tally, connected=False, market_ns=START_NS + 2 * MINUTE_NS)
    assert [each.symbol for each in health.symbols] == ["BTC/USD"]
    assert parse_health(json.loads(json.dumps(msgspec.to_builtins(health)))) == health
    assert describe_health(health) == [
        "not connected; 75.00% of 4 expected bars (1 missing)",
        "BTC/USD is halted: Trading Halt: News Pending",
        "ETH/USD is silent: no bar for 300 s while its market is open",
    ]
    assert describe_health(DataHealth()) == ["no bars were expected so far"]


@pytest.mark.parametrize("content", [None, [], {"connected": "maybe"}, {"bars": 3}, "x"])
def test_what_is_no_state_is_none(content: object) -> None:
    assert parse_health(content) is None


def test_the_worst_symbols_are_listed_and_no_more_than_there_is_room_for() -> None:
    symbols = [f"S{number}/USD" for number in range(SYMBOLS_LISTED + 20)]
    tally = CompletenessTally(symbols)
    tally.note(piece(1, *symbols))
    tally.note(piece(2, *symbols[1:]))
    tally.note(piece(3))
    health = MarketState(symbols).describe(tally, connected=True, market_ns=0)
    assert len(health.symbols) == SYMBOLS_LISTED
    assert health.symbols[0].symbol == "S0/USD"
    assert health.bars.expected == 3 * len(symbols)
