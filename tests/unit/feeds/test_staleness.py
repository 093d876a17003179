"""Data that stops silently, over a source whose clock is moved by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from dry_work.cli.run import build_settings
from dry_work.clock import MINUTE_NS, SECOND_NS, ManualClock
from dry_work.engine.run_market import build_reader
from dry_work.errors import ConfigError, FeedError
from dry_work.feeds.source import BufferedSource, ReaderSettings
from dry_work.market.completeness import MarketHours
from dry_work.market.messages import Bar, Envelope, TradingStatus
from dry_work.ports import SourceEvent, SourceFailed, SourceStatus
from dry_work.settings import RunSettings, parse_choice, parse_stale
from dry_work.wakeup import Wakeup

TUESDAY_NOON_NS = 1_719_936_000_000_000_000  # 2024-07-02T12:00 in New York
SATURDAY_NOON_NS = TUESDAY_NOON_NS + 4 * 86_400 * SECOND_NS


class HandFed(BufferedSource):
    """Receives what a test puts."""

    def _open(self) -> None:
        """Nothing is to be connected."""

    def bring(self, symbol: str, end_ns: int) -> None:
        bar = Bar(symbol=symbol, ts_event_ns=end_ns - MINUTE_NS, open=1, high=1, low=1, close=1, volume=1)
        assert self._put(Envelope(topic="t", message=bar), lambda: None)

    def events(self) -> list[SourceEvent]:
        found = []
        while (event := self.take()) is not None:
            found.append(event)
            if isinstance(event, SourceFailed):
                break
        return found

    def bring_status(self, symbol: str, at_ns: int, code: str, reason: str = "") -> None:
        status = TradingStatus(symbol=symbol, ts_event_ns=at_ns, code=code, message=f"code {code}", reason=reason)
        assert self._put(Envelope(topic="t", message=status), lambda: None)


def start(symbols: list[str], clock: ManualClock, *, stops: bool = False) -> HandFed:
    reader = ReaderSettings(
        watermarks=False, stale_s=300, is_open=MarketHours().is_open, stops_when_stale=stops, grace_s=1.0
    )
    source = HandFed(symbols=symbols, bar_topics=["t"], topics=["t"], settings=reader, clock=clock)
    source.start(Wakeup())
    return source


def words(events: list[SourceEvent]) -> list[tuple[str, bool]]:
    return [(event.symbol, event.connected) for event in events if isinstance(event, SourceStatus)]


def test_a_symbol_without_bars_is_told_once_and_told_again_when_it_is_back() -> None:
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY", "BTC/USD"], clock)
    clock.advance(200)
    source.bring("BTC/USD", clock.time_ns())
    assert words(source.events()) == []
    clock.advance(101)
    events = source.events()
    assert words(events) == [("SPY", False)]
    assert [event.detail for event in events if isinstance(event, SourceStatus)] == [
        "no bar for 300 s while its market is open"
    ]
    clock.advance(60)
    assert words(source.events()) == []
    source.bring("SPY", clock.time_ns())
    assert words(source.events()) == [("SPY", True)]
    assert source.counters()["stale_symbols"] == 1


def test_a_closed_market_is_not_stale_but_crypto_is_at_any_time() -> None:
    clock = ManualClock(SATURDAY_NOON_NS)
    source = start(["SPY", "BTC/USD"], clock)
    clock.advance(301)
    assert words(source.events()) == [("BTC/USD", False)]


def test_a_silent_option_is_not_stale_and_ends_no_run() -> None:
    option = "SPY240719C00550000"
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY", option], clock, stops=True)
    clock.advance(200)
    source.bring("SPY", clock.time_ns())
    assert words(source.events()) == []
    clock.advance(200)
    assert words(source.events()) == [], "of the option there was nothing for 400 s"
    clock.advance(101)
    events = source.events()
    assert words(events) == [("SPY", False)]
    assert isinstance(events[-1], SourceFailed), "SPY was all that is watched"


def test_when_all_symbols_are_stale_the_source_fails_if_it_is_to() -> None:
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY", "IBM"], clock, stops=True)
    clock.advance(301)
    *told, failed = source.events()
    assert words(told) == [("SPY", False), ("IBM", False)]
    assert isinstance(failed, SourceFailed)
    assert isinstance(failed.error, FeedError)
    assert str(failed.error) == "no bar of any symbol (SPY, IBM) for 300 s while their market is open"


def test_one_stale_symbol_of_two_ends_nothing() -> None:
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY", "IBM"], clock, stops=True)
    clock.advance(200)
    source.bring("IBM", clock.time_ns())
    source.events()
    clock.advance(101)
    assert words(source.events()) == [("SPY", False)]


def test_a_halted_symbol_is_not_stale_and_the_time_counts_from_its_resumption() -> None:
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY", "BTC/USD"], clock)
    clock.advance(100)
    source.bring_status("SPY", clock.time_ns(), "H", "News pending")
    clock.advance(250)
    source.bring("BTC/USD", clock.time_ns())
    assert words(source.events()) == []
    clock.advance(299)
    source.bring_status("SPY", clock.time_ns(), "Q")  # quotes only: not traded yet
    source.bring("BTC/USD", clock.time_ns())
    assert words(source.events()) == []
    source.bring_status("SPY", clock.time_ns(), "T")
    source.events()
    clock.advance(299)
    source.bring("BTC/USD", clock.time_ns())
    assert words(source.events()) == []
    clock.advance(2)
    assert words(source.events()) == [("SPY", False)]


def test_a_stale_symbol_whose_halt_is_told_is_stale_no_more_and_ends_no_run() -> None:
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY", "IBM"], clock, stops=True)
    clock.advance(200)
    source.bring("IBM", clock.time_ns())
    clock.advance(101)
    assert words(source.events()) == [("SPY", False)]
    source.bring_status("SPY", clock.time_ns(), "2")
    source.events()
    assert source._stale is not None
    assert source._stale.stale == frozenset()
    source.bring_status("IBM", clock.time_ns(), "P")
    source.events()
    clock.advance(3600)
    assert not [event for event in source.events() if isinstance(event, SourceStatus | SourceFailed)]
    assert source.counters()["trading_statuses"] == 2


def test_when_all_but_halted_symbols_are_stale_the_source_fails_if_it_is_to() -> None:
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY", "IBM"], clock, stops=True)
    source.bring_status("SPY", clock.time_ns(), "H")
    source.events()
    clock.advance(301)
    *told, failed = source.events()
    assert words(told) == [("IBM", False)]
    assert isinstance(failed, SourceFailed)


def test_a_bar_that_begins_after_a_halt_ends_it_though_nobody_said_so() -> None:
    clock = ManualClock(TUESDAY_NOON_NS)
    source = start(["SPY"], clock)
    source.bring_status("SPY", clock.time_ns(), "H")
    clock.advance(60)
    source.bring("SPY", clock.time_ns())  # it begins with the halt
    source.events()
    clock.advance(301)
    assert words(source.events()) == [("SPY", False)]


@pytest.mark.parametrize("text", ["59", "nan", "inf", "-1", "soon", ""])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected seconds from 60 on, or off"):
        parse_stale(text)


def test_the_settings_are_read() -> None:
    assert parse_stale("60") == 60.0
    assert parse_stale("off") is None
    assert parse_choice(" Stop", ("tell", "stop"), name="stale_action", variable="DRY_WORK_STALE_ACTION")
    assert not parse_choice("tell", ("tell", "stop"), name="stale_action", variable="DRY_WORK_STALE_ACTION")
    with pytest.raises(ConfigError, match=r"late 'end' \(DRY_WORK_LATE\): expected next or drop"):
        parse_choice("end", ("next", "drop"), name="late", variable="DRY_WORK_LATE")


def test_the_policies_are_read_from_the_environment_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "symbols.txt").write_text("SPY\n")
    options = {"local": True, "symbols": str(tmp_path / "symbols.txt")}

    def policies(toml: dict[str, str], environment: dict[str, str]) -> tuple[bool, bool, bool]:
        found = build_settings(options, toml, environment)
        reader = build_reader(found, MarketHours(), lockstep=True)
        assert (reader.drops_late, reader.tells_revised) == (found.drops_late, found.tells_revised)
        return found.drops_late, found.tells_revised, found.wants_statuses

    assert policies({}, {}) == (False, False, True)
    toml = {"late": "drop", "revised": "tell", "statuses": "off"}
    assert policies(toml, {}) == (True, True, False)
    environment = {"DRY_WORK_LATE": "next", "DRY_WORK_REVISED": "record", "DRY_WORK_STATUSES": "on"}
    assert policies(toml, environment) == (False, False, True)
    with pytest.raises(ConfigError, match=r"revised 'ignore' \(DRY_WORK_REVISED\): expected record or tell"):
        policies({}, {"DRY_WORK_REVISED": "ignore"})


def test_a_run_with_alpaca_watches_for_silence_by_default_and_none_beside_a_simulated_exchange() -> None:
    hours = MarketHours()
    settings = RunSettings(symbols=("SPY",), agent="a.py", params={}, mode="paper", stops_when_stale=True)
    reader = build_reader(settings, hours, lockstep=False)
    assert (reader.stale_s, reader.stops_when_stale, reader.watermarks) == (300.0, True, None)
    assert reader.is_open is not None
    assert not reader.is_open("SPY", SATURDAY_NOON_NS)
    beside = RunSettings(symbols=("SPY",), agent="a.py", params={}, mode="paper", alpaca_url="http://127.0.0.1:1")
    assert build_reader(beside, hours, lockstep=False).stale_s is None
    assert build_reader(beside, hours, lockstep=True).watermarks is True
