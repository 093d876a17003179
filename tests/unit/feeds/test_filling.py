from __future__ import annotations

from collections.abc import Mapping, Sequence

from dry_work.errors import BrokerUnavailableError
from dry_work.feeds.filling import FillingSource
from dry_work.market.messages import Slice
from dry_work.ports import SourceEvent, SourceStatus
from dry_work.wakeup import Wakeup
from tests.unit.engine.sources import DAY_START_NS, MINUTE_NS, ListSource, make_bar, slices_of

BACK = SourceStatus(connected=True)
MARKET = slices_of([make_bar("BTC/USD", minute, 100.0 + minute) for minute in range(20)], last=False)


class Losing(ListSource):
    """Counts a gap once `lost` is set."""

    lost = 0

    def counters(self) -> Mapping[str, int]:
        return {"gaps": self.lost} if self.lost else {}


class History:
    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[tuple[int, int]] = []
        self._fails = fails

    def fetch(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> list[Slice]:
        self.asked.append((start_ns, end_ns))
        if self._fails:
            raise BrokerUnavailableError("nobody there")
        return [each for each in MARKET if start_ns < each.end_ns <= end_ns]


def drain(source: FillingSource) -> list[tuple[int, bool]]:
    """Minutes of slices, and whether they are filled."""
    found = []
    while True:
        event = source.take()
        if event is None:
            return found
        if isinstance(event, Slice):
            found.append(((event.end_ns - DAY_START_NS) // MINUTE_NS - 1, event.filled))


def filling(
    events: Sequence[SourceEvent], history: History, *, symbols: Sequence[str] = ("BTC/USD",), since_minute: int = -1
) -> FillingSource:
    since_ns = 0 if since_minute < 0 else MARKET[since_minute].end_ns
    return FillingSource(ListSource(events), symbols=symbols, fetch=history.fetch, since_ns=since_ns)


def test_the_first_slice_follows_what_came_after_the_warm_up() -> None:
    source = filling(MARKET[5:7], History(), since_minute=2)
    assert drain(source) == [(3, True), (4, True), (5, False), (6, False)]
    assert source.counters() == {"fill_requests": 1, "filled_bars": 2}


def test_without_a_warm_up_nothing_is_filled_at_the_start() -> None:
    history = History()
    assert drain(filling(MARKET[5:7], history)) == [(5, False), (6, False)]
    assert not history.asked


def test_what_an_outage_swallowed_is_filled_once() -> None:
    source = filling([MARKET[0], SourceStatus(connected=False), BACK, MARKET[3], MARKET[4]], History())
    assert drain(source) == [(0, False), (1, True), (2, True), (3, False), (4, False)]


def test_an_outage_between_two_slices_asks_for_nothing() -> None:
    history = History()
    assert drain(filling([MARKET[0], BACK, MARKET[1]], history)) == [(0, False), (1, False)]
    assert not history.asked


def test_messages_that_were_lost_are_filled() -> None:
    inner = Losing([MARKET[0]])
    source = FillingSource(inner, symbols=["BTC/USD"], fetch=History().fetch)
    assert drain(source) == [(0, False)]
    inner.lost = 1
    inner.events.append(MARKET[2])
    assert drain(source) == [(1, True), (2, False)]
    inner.events.append(MARKET[5])  # silence without a loss is not asked about
    assert drain(source) == [(5, False)]


def test_a_history_that_does_not_answer_is_counted_and_the_slice_goes_on() -> None:
    source = filling([MARKET[0], BACK, MARKET[4]], History(fails=True))
    assert drain(source) == [(0, False), (4, False)]
    assert source.counters() == {"fill_requests": 1, "fill_failures": 1}


def test_nothing_is_asked_for_while_the_market_was_closed() -> None:
    history = History()  # DAY_START_NS is midnight: no exchange is open
    assert drain(filling([MARKET[0], BACK, MARKET[4]], history, symbols=["SPY"])) == [(0, False), (4, False)]
    assert not history.asked


def test_a_late_bar_does_not_hide_what_is_missing() -> None:
    late = make_bar("ETH/USD", 0, 5.0)
    source = filling([MARKET[0], BACK, Slice(end_ns=MARKET[3].end_ns, bars=(late, *MARKET[3].bars))], History())
    assert drain(source) == [(0, False), (1, True), (2, True), (3, False)]


def test_it_starts_stops_and_waits_as_its_source_does() -> None:
    inner = ListSource([])
    source = FillingSource(inner, symbols=["SPY"], fetch=History().fetch)
    source.start(Wakeup())
    assert inner.started
    assert source.wait_s() is None
    source.stop()
    assert not inner.started
