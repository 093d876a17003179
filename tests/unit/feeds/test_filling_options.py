"""What an outage swallowed is filled though bars of options come a quarter of an hour late."""

from __future__ import annotations

from collections.abc import Sequence

from dry_work.errors import BrokerUnavailableError
from dry_work.feeds.filling import FillingSource
from dry_work.market.messages import Bar, Slice
from dry_work.ports import SourceEvent, SourceStatus
from tests.unit.engine.sources import DAY_START_NS, MINUTE_NS, ListSource, make_bar

CRYPTO, CALL = "BTC/USD", "SPY240621C00550000"
BACK = SourceStatus(connected=True)


def end_ns(minute: int) -> int:
    return DAY_START_NS + (minute + 1) * MINUTE_NS


def piece(minute: int, *bars: Bar) -> Slice:
    return Slice(end_ns=end_ns(minute), bars=bars or (make_bar(CRYPTO, minute, 100.0),))


class History:
    """Has a bar of every symbol in every minute up to one."""

    def __init__(self, *, until: dict[str, int], failures: int = 0) -> None:
        self.until = until
        self.failures = failures

    def fetch(self, symbols: Sequence[str], start_ns: int, end_at_ns: int) -> list[Slice]:
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailableError("nobody there")
        found = []
        for minute in range(60):
            bars = [make_bar(symbol, minute, 1.0) for symbol in symbols if minute <= self.until[symbol]]
            if start_ns < end_ns(minute) <= end_at_ns and bars:
                found.append(piece(minute, *bars))
        return found


def play(history: History, *events: SourceEvent, symbols: Sequence[str] = (CRYPTO, CALL)) -> dict[str, list[str]]:
    """Minutes of the bars of each symbol as they come, those that are filled with `f`."""
    source = FillingSource(ListSource(events), symbols=symbols, fetch=history.fetch)
    found: dict[str, list[str]] = {symbol: [] for symbol in symbols}
    while (event := source.take()) is not None:
        if isinstance(event, Slice):
            for bar in event.bars:
                minute = (bar.ts_event_ns - DAY_START_NS) // MINUTE_NS
                found[bar.symbol].append(f"{minute}{'f' if event.filled else ''}")
    return found


def late(minute: int) -> Slice:
    return piece(minute, make_bar(CALL, minute, 2.0))


def test_an_option_that_comes_late_does_not_end_what_the_others_have_missed() -> None:
    history = History(until={CRYPTO: 59, CALL: 24})
    found = play(history, piece(0), BACK, late(25), piece(40), late(26), piece(41))
    assert found[CRYPTO] == ["0", *(f"{minute}f" for minute in range(1, 40)), "40", "41"]
    assert found[CALL] == [*(f"{minute}f" for minute in range(1, 25)), "25", "26"]


def test_no_bar_of_an_option_comes_twice_where_history_has_all_of_them() -> None:
    found = play(History(until={CRYPTO: 59, CALL: 59}), piece(0), BACK, late(25), piece(40))
    assert found[CALL] == [f"{minute}{'' if minute == 25 else 'f'}" for minute in range(1, 40)]


def test_a_late_option_in_the_slice_that_is_back_leaves_no_gap() -> None:
    both = piece(40, make_bar(CALL, 25, 2.0), make_bar(CRYPTO, 40, 100.0))
    found = play(History(until={CRYPTO: 59, CALL: 24}), piece(0), BACK, both)
    assert found[CRYPTO] == ["0", *(f"{minute}f" for minute in range(1, 40)), "40"]


def test_a_history_that_did_not_answer_is_asked_again_with_the_first_bar_of_the_others() -> None:
    found = play(History(until={CRYPTO: 59, CALL: 0}, failures=1), piece(0), BACK, late(25), piece(40))
    assert found[CRYPTO] == ["0", *(f"{minute}f" for minute in range(1, 40)), "40"]


def test_options_alone_are_filled_by_their_own_bars() -> None:
    found = play(History(until={CALL: 59}), late(0), BACK, late(4), late(5), symbols=[CALL])
    assert found[CALL] == ["0", "4", "5"], "no market of theirs was open at midnight"
