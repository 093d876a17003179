from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import backtrader as bt
import pytest

from dry_work.engine.live import LiveCerebro
from dry_work.errors import ConfigError, FeedError
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import BarNote, News, PriceBands, Slice, TradingStatus
from dry_work.ports import SourceEvent, SourceFailed, SourceStatus
from dry_work.wakeup import Wakeup

from .sources import ListSource, make_bar, slices_of

DEADLINE_S = 60.0


class PushSource:
    """A source that a test fills from another thread."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._events: deque[SourceEvent] = deque()

    def push(self, event: SourceEvent) -> None:
        self._events.append(event)
        self._wakeup.set()

    def start(self, wakeup: Wakeup) -> None: ...

    def stop(self, timeout_s: float = 5.0) -> None: ...

    def take(self) -> SourceEvent | None:
        return self._events.popleft() if self._events else None

    def wait_s(self) -> float | None:
        return None

    def counters(self) -> Mapping[str, int]:
        return {}


class Recorder(bt.Strategy):
    params = (("log", None), ("period", 1))

    def __init__(self) -> None:
        self.average = bt.ind.SMA(self.data, period=self.p.period)

    def prenext(self) -> None:
        self.p.log.append(("prenext", len(self)))

    def nextstart(self) -> None:
        self.p.log.append(("nextstart", len(self), self.average[0]))
        self.next()

    def next(self) -> None:
        self.p.log.append(("next", len(self), self.average[0]))

    def notify_data(self, data: Any, status: int, *args: Any, **kwargs: Any) -> None:
        self.p.log.append((data._name, data._getstatusname(status)))

    def notify_store(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.p.log.append(("store", msg, args))


def build(source: Any, log: list[Any], symbols: tuple[str, ...] = ("AAA",), **options: Any) -> LiveCerebro:
    period = options.pop("period", 1)
    cerebro = LiveCerebro(source=source, wakeup=options.pop("wakeup", None) or Wakeup(), **options)
    for symbol in symbols:
        cerebro.adddata(LiveFeed(symbol=symbol))
    cerebro.addstrategy(Recorder, log=log, period=period)
    return cerebro


def status(code: str, at_ns: int, *, symbol: str = "AAA", **words: str) -> TradingStatus:
    return TradingStatus(symbol=symbol, ts_event_ns=at_ns, code=code, **words)


def run_in_thread(cerebro: LiveCerebro) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def target() -> None:
        try:
            cerebro.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="engine under test", daemon=True)
    thread.start()
    return thread, errors


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


def test_feeds_are_delayed_at_first_and_live_before_the_first_next() -> None:
    log: list[Any] = []
    build(ListSource(slices_of([make_bar("AAA", 0, 50.0)])), log).run()
    assert log == [("AAA", "DELAYED"), ("AAA", "LIVE"), ("nextstart", 1, 50.0), ("next", 1, 50.0)]


def test_warm_up_moves_indicators_but_no_strategy_hears_of_it() -> None:
    log: list[Any] = []
    history = slices_of([make_bar("AAA", minute, 50.0 + minute) for minute in range(3)], last=False)
    live = slices_of([make_bar("AAA", minute, 50.0 + minute) for minute in range(3, 5)])
    cerebro = build(ListSource(live), log, warmup=history, period=3)
    cerebro.run()
    assert log == [
        ("AAA", "DELAYED"),
        ("AAA", "LIVE"),
        ("nextstart", 4, 52.0),
        ("next", 4, 52.0),
        ("next", 5, 53.0),
    ]
    assert cerebro.bars == {"AAA": 2}
    assert cerebro.warmup_bars == {"AAA": 3}


def test_a_warm_up_that_is_too_short_leaves_the_rest_to_live_bars() -> None:
    log: list[Any] = []
    history = slices_of([make_bar("AAA", 0, 50.0)], last=False)
    live = slices_of([make_bar("AAA", minute, 50.0) for minute in range(1, 4)])
    build(ListSource(live), log, warmup=history, period=3).run()
    assert [entry[0] for entry in log[2:]] == ["prenext", "nextstart", "next", "next"]


def test_a_live_bar_that_the_warm_up_had_is_left_out_and_counted() -> None:
    log: list[Any] = []
    bar = make_bar("AAA", 0, 50.0)
    cerebro = build(ListSource(slices_of([bar, make_bar("AAA", 1, 51.0)])), log, warmup=slices_of([bar], last=False))
    cerebro.run()
    assert cerebro.bars == {"AAA": 1}
    assert cerebro.late_bars == 1


def test_prenext_is_forwarded_only_when_asked_for() -> None:
    slices = slices_of([make_bar("AAA", minute, 50.0) for minute in range(2)])
    for forward, expected in ((False, ["prenext", "prenext"]), (True, ["next", "next"])):
        log: list[Any] = []
        build(ListSource(slices), log, symbols=("AAA", "BBB"), forward_prenext=forward).run()
        assert [entry[0] for entry in log if entry[0] in ("prenext", "next")] == expected


def test_a_late_bar_is_delivered_in_its_slice_under_its_own_time() -> None:
    times: list[Any] = []

    class Watch(bt.Strategy):
        def prenext(self) -> None:
            self.next()

        def next(self) -> None:
            times.append([data.datetime.datetime().minute for data in self.datas if len(data)])

    late, on_time = make_bar("AAA", 0, 50.0), make_bar("BBB", 1, 60.0)
    first = Slice(end_ns=late.end_ns, bars=(make_bar("BBB", 0, 59.0),))
    cerebro = LiveCerebro(
        source=ListSource([first, Slice(end_ns=on_time.end_ns, bars=(late, on_time), last=True)]), wakeup=Wakeup()
    )
    for symbol in ("AAA", "BBB"):
        cerebro.adddata(LiveFeed(symbol=symbol))
    cerebro.addstrategy(Watch)
    cerebro.run()
    assert times == [[1], [1, 2]]


def test_an_empty_slice_calls_no_next() -> None:
    log: list[Any] = []
    bar = make_bar("AAA", 0, 50.0)
    cerebro = build(ListSource([Slice(end_ns=1, bars=()), *slices_of([bar])]), log)
    cerebro.run()
    assert [entry[0] for entry in log if entry[0] == "next"] == ["next"]
    assert cerebro.slices == 2


def test_a_lost_source_is_told_and_so_is_its_return() -> None:
    log: list[Any] = []
    events = [
        *slices_of([make_bar("AAA", 0, 50.0)], last=False),
        SourceStatus(connected=False, detail="reset"),
        SourceStatus(connected=False, detail="again"),
        SourceStatus(connected=True),
        *slices_of([make_bar("AAA", 1, 51.0)]),
    ]
    cerebro = build(ListSource(events), log)
    cerebro.on_reconnect = lambda: log.append(("back",))
    cerebro.run()
    assert [entry[1] for entry in log if entry[0] == "AAA"] == ["DELAYED", "LIVE", "DISCONNECTED", "LIVE"]
    assert log.count(("back",)) == 1


def test_news_reach_the_strategy_as_a_store_notification() -> None:
    log: list[Any] = []
    news = News(symbols=("AAA",), headline="hello")
    build(ListSource([news, *slices_of([make_bar("AAA", 0, 50.0)])]), log).run()
    assert ("store", "news", (news,)) in log


def test_a_failed_source_ends_the_run_with_its_error() -> None:
    with pytest.raises(FeedError, match="gone"):
        build(ListSource([SourceFailed(error=FeedError("gone"))]), []).run()


def test_what_failed_elsewhere_ends_the_run() -> None:
    wakeup = Wakeup()
    failed = threading.Event()

    def check() -> None:
        if failed.is_set():
            raise FeedError("a thread died")

    cerebro = build(PushSource(wakeup), [], wakeup=wakeup, check=check)
    thread, errors = run_in_thread(cerebro)
    failed.set()
    wakeup.set()
    thread.join(DEADLINE_S)
    assert [str(error) for error in errors] == ["a thread died"]


def test_runstop_from_another_thread_ends_a_sleeping_engine() -> None:
    wakeup = Wakeup()
    source = PushSource(wakeup)
    log: list[Any] = []
    cerebro = build(source, log, wakeup=wakeup)
    thread, errors = run_in_thread(cerebro)
    source.push(slices_of([make_bar("AAA", 0, 50.0)], last=False)[0])
    wait_for(lambda: ("next", 1, 50.0) in log)
    cerebro.runstop()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert errors == []
    assert not cerebro.end_of_data


def test_an_idle_engine_sleeps_and_still_beats() -> None:
    wakeup = Wakeup()
    beats: list[float] = []
    cerebro = build(PushSource(wakeup), [], wakeup=wakeup, beat=lambda: beats.append(time.monotonic()), beat_s=0.05)
    before = time.thread_time()
    spent: list[float] = []

    def run() -> None:
        begun = time.thread_time()
        cerebro.run()
        spent.append(time.thread_time() - begun)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: len(beats) >= 20)
    elapsed = beats[-1] - beats[0]
    cerebro.runstop()
    thread.join(DEADLINE_S)
    assert time.thread_time() - before < DEADLINE_S
    # Beating twenty times a second costs little; a polling loop would use the whole of the elapsed time.
    assert spent[0] < 0.25 * elapsed


class GatedBroker(bt.brokers.BackBroker):
    """A broker whose venue waits for the engine."""

    slice_end_ns = 0

    def __init__(self) -> None:
        super().__init__()
        self.seen = ""
        self.ended: list[int] = []

    def has_seen(self, event_id: str) -> bool:
        return event_id <= self.seen

    def end_slice(self, number: int) -> None:
        self.ended.append(number)


def test_in_lock_step_next_waits_for_the_trade_events_of_its_slice() -> None:
    wakeup = Wakeup()
    source, broker, log = PushSource(wakeup), GatedBroker(), []
    cerebro = build(source, log, wakeup=wakeup, lockstep=True)
    cerebro.setbroker(broker)
    thread, errors = run_in_thread(cerebro)
    bar = make_bar("AAA", 0, 50.0)
    source.push(Slice(end_ns=bar.end_ns, bars=(bar,), number=1, event_id="01B", last=True))
    broker.seen = "01A"
    wakeup.set()
    assert broker.ended == []
    assert log == [] or all(entry[0] == "AAA" for entry in log)
    broker.seen = "01B"
    wakeup.set()
    thread.join(DEADLINE_S)
    assert errors == []
    assert ("next", 1, 50.0) in log
    assert broker.ended == [1]
    assert broker.slice_end_ns == bar.end_ns


def test_trade_events_that_do_not_come_end_the_run_with_their_name() -> None:
    bar = make_bar("AAA", 0, 50.0)
    piece = Slice(end_ns=bar.end_ns, bars=(bar,), number=4, event_id="01X")
    cerebro = build(ListSource([piece]), [], lockstep=True, max_event_wait_s=0.05)
    cerebro.setbroker(GatedBroker())
    with pytest.raises(FeedError, match=r"slice 4: trade event 01X did not arrive within 0\.05 s"):
        cerebro.run()


def test_a_slice_that_was_decided_before_moves_the_feeds_and_is_reported_without_a_turn() -> None:
    bars = [make_bar("AAA", minute, 50.0 + minute) for minute in range(2)]
    slices = [
        Slice(end_ns=bars[0].end_ns, bars=(bars[0],), number=7, filled=True),
        Slice(end_ns=bars[1].end_ns, bars=(bars[1],), number=8, last=True),
    ]
    log: list[Any] = []
    broker, decided = GatedBroker(), list[int | None]()
    cerebro = build(ListSource(slices), log, lockstep=True, period=2)
    cerebro.setbroker(broker)
    cerebro.on_decided = lambda piece: decided.append(piece.number)
    cerebro.run()
    assert [entry for entry in log if entry[0] == "next"] == [("next", 2, 50.5)]
    assert decided == [8]
    assert broker.ended == [7, 8]


def test_a_last_slice_that_was_decided_before_ends_the_run() -> None:
    bar = make_bar("AAA", 0, 50.0)
    log: list[Any] = []
    broker = GatedBroker()
    piece = Slice(end_ns=bar.end_ns, bars=(bar,), number=9, last=True, filled=True)
    cerebro = build(ListSource([piece]), log, lockstep=True)
    cerebro.setbroker(broker)
    cerebro.run()
    assert not any(entry[0] == "next" for entry in log)
    assert (broker.ended, broker.slice_end_ns, cerebro.end_of_data) == ([9], bar.end_ns, True)


def test_a_slice_is_decided_when_its_turn_has_stopped_the_run_but_not_reported() -> None:
    class Stopping(bt.Strategy):
        def next(self) -> None:
            self.env.runstop()

    bars = [make_bar("AAA", minute, 50.0) for minute in range(2)]
    slices = [Slice(end_ns=bar.end_ns, bars=(bar,), number=number) for number, bar in enumerate(bars, 1)]
    cerebro: Any = LiveCerebro(source=ListSource(slices), wakeup=Wakeup(), lockstep=True)
    cerebro.adddata(LiveFeed(symbol="AAA"))
    cerebro.addstrategy(Stopping)
    broker, decided = GatedBroker(), list[int | None]()
    cerebro.setbroker(broker)
    cerebro.on_decided = lambda piece: decided.append(piece.number)
    cerebro.run()
    assert (decided, broker.ended) == ([1], [])


def test_an_exception_in_the_strategy_leaves_the_run() -> None:
    class Broken(bt.Strategy):
        def next(self) -> None:
            raise ZeroDivisionError("user code")

    cerebro = LiveCerebro(source=ListSource(slices_of([make_bar("AAA", 0, 50.0)])), wakeup=Wakeup())
    cerebro.adddata(LiveFeed(symbol="AAA"))
    cerebro.addstrategy(Broken)
    with pytest.raises(ZeroDivisionError):
        cerebro.run()


def test_settings_without_a_live_meaning_are_refused() -> None:
    for name in ("cheat_on_open", "oldsync"):
        with pytest.raises(ConfigError, match=name):
            LiveCerebro(source=ListSource([]), wakeup=Wakeup(), **{name: True})


def test_a_feed_that_is_not_live_is_refused() -> None:
    cerebro = LiveCerebro(source=ListSource([]), wakeup=Wakeup())
    cerebro.adddata(bt.feeds.PandasData(dataname=__import__("pandas").DataFrame()))
    with pytest.raises(ConfigError, match="PandasData is no live feed"):
        cerebro.run()


def test_a_halt_is_told_shown_on_the_data_and_ended_by_its_resumption() -> None:
    log: list[Any] = []
    bars = slices_of([make_bar("AAA", minute, 50.0) for minute in (0, 1, 5)])
    halted = status("H", bars[1].end_ns, message="Trading Halt", reason="News Pending")
    resumed = status("T", bars[2].end_ns - 1, message="Trading Resumption")
    other = status("H", 1, symbol="ZZZ")

    class Halting(Recorder):
        def next(self) -> None:
            self.p.log.append((len(self), self.data.trading.is_halted, self.data.trading.status))

    cerebro = LiveCerebro(
        source=ListSource(
            [*bars[:2], other, halted, PriceBands(symbol="AAA", ts_event_ns=1, upper=2, lower=1), resumed, bars[2]]
        ),
        wakeup=Wakeup(),
    )
    cerebro.adddata(LiveFeed(symbol="AAA"))
    cerebro.addstrategy(Halting, log=log)
    details: list[Any] = []
    cerebro.adddatacb(lambda _data, status, *args: details.append((bt.DataBase._getstatusname(status), *args)))
    cerebro.run()
    assert [entry for entry in log if entry[0] == "store"] == [
        ("store", "trading_status", (halted,)),
        ("store", "trading_status", (resumed,)),
    ]
    assert details == [
        ("DELAYED",),
        ("LIVE",),
        ("DELAYED", "halted: Trading Halt: News Pending"),
        ("LIVE", "traded again: Trading Resumption"),
    ]
    assert [entry for entry in log if isinstance(entry[0], int)] == [
        (1, False, None),
        (2, False, None),
        (3, False, resumed),
    ]
    assert cerebro.market.bands["AAA"].upper == 2


def test_bars_after_a_halt_end_it_before_the_strategy_sees_them() -> None:
    log: list[Any] = []
    bars = slices_of([make_bar("AAA", minute, 50.0) for minute in (0, 1, 5)])
    halted = status("H", bars[0].end_ns + 1)

    class Asking(Recorder):
        def next(self) -> None:
            self.p.log.append((len(self), self.data.trading.is_halted))

    cerebro = LiveCerebro(source=ListSource([bars[0], halted, *bars[1:]]), wakeup=Wakeup())
    cerebro.adddata(LiveFeed(symbol="AAA"))
    cerebro.addstrategy(Asking, log=log)
    cerebro.run()
    # The second bar began before the halt; the third shows that the symbol is traded again.
    assert [entry for entry in log if isinstance(entry[0], int)] == [(1, False), (2, True), (3, False)]


def test_bars_that_are_not_delivered_are_counted_and_told_if_they_are_to_be() -> None:
    log: list[Any] = []
    bars = [make_bar("BTC/USD", minute, 50.0) for minute in range(4)]
    events: list[SourceEvent] = [
        *slices_of([bars[1]], last=False),
        BarNote(bar=bars[1], is_revision=True),
        BarNote(bar=bars[1], is_revision=True, is_told=True),
        *slices_of([bars[3]], last=False),
        BarNote(bar=bars[2]),
        *slices_of([make_bar("BTC/USD", 4, 50.0)]),
    ]
    cerebro = build(ListSource(events), log, symbols=("BTC/USD",))
    cerebro.run()
    assert [entry for entry in log if entry[0] == "store"] == [("store", "revised_bar", (bars[1],))]
    counts = cerebro.completeness.of("BTC/USD")
    assert (counts.expected, counts.arrived, counts.late, counts.revised, counts.missing) == (4, 3, 1, 2, 0)
    health = cerebro.describe_data()
    assert (health.connected, health.market_ns, health.bars) == (True, make_bar("BTC/USD", 4, 50.0).end_ns, counts)


def test_a_silent_symbol_is_part_of_how_the_data_stand_until_it_is_back() -> None:
    log: list[Any] = []
    bars = slices_of([make_bar("AAA", minute, 50.0) for minute in (0, 1)], last=False)
    silent = SourceStatus(connected=False, symbol="AAA", detail="no bar for 300 s")
    cerebro = build(ListSource([bars[0], silent]), log)
    seen: list[Any] = []
    cerebro._check_health = lambda: seen.append(dict(cerebro.market.silent))
    source = cerebro._source
    assert isinstance(source, ListSource)
    source.events.extend([SourceStatus(connected=True, symbol="AAA"), *slices_of([make_bar("AAA", 2, 50.0)])])
    cerebro.run()
    assert {"AAA": "no bar for 300 s"} in seen
    assert cerebro.market.silent == {}


def test_the_end_of_a_contract_is_told_once_and_the_run_goes_on() -> None:
    option, log = "AAA131007C00050000", list[Any]()
    bars = [make_bar("AAA", minute, 50.0) for minute in (1198, 1199, 1200)]  # the session ends with minute 1199
    bars.insert(1, make_bar(option, 1198, 1.0))
    cerebro = build(ListSource(slices_of(bars)), log, symbols=("AAA", option))
    cerebro.run()
    told = [entry for entry in log if entry == (option, "DELAYED")]
    assert len(told) == 2, "at the start, and at the end of the contract"
    assert log.index((option, "LIVE")) < len(log) - 1 - log[::-1].index((option, "DELAYED"))
    assert cerebro.market.silent == {option: "the contract has ended"}
    assert cerebro.slices == 3
