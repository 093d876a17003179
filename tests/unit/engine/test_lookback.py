"""A run whose lines let go of old values reads, at every call, what a run reads that holds everything."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest
from backtrader.linebuffer import LineBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.engine.kept_line import WHOLE, KeptLine, keep, make_room
from dry_work.engine.line_archive import LineArchive
from dry_work.engine.live import LiveCerebro
from dry_work.engine.lookback import LookBack
from dry_work.errors import ConfigError, LookBackError
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Bar
from dry_work.settings import parse_lookback
from dry_work.wakeup import Wakeup

from .sources import ListSource, make_bar, slices_of
from .test_idempotence import COMPOSED, NAMES, SYMBOLS, gappy_bars, make_named, run_stock

BLOCK = 4


class Everything(LookBack):
    """Touches no line: they stay Backtrader's own."""

    def follow(self, datas: Any, strategies: Any) -> None:
        pass

    def after_slice(self) -> None:
        pass


def tight(**kwargs: Any) -> LookBack:
    return LookBack(1, block_values=BLOCK, **kwargs)


class Reader(bt.Strategy):
    """Reads its lines in every way, at distances that are drawn anew at every call, and trades on what it reads."""

    params = (("log", None), ("make", None), ("seed", 0), ("deep", True), ("late", False))

    def __init__(self) -> None:
        self.p.make(list(self.datas))
        self.chance = random.Random(self.p.seed)

    def all_lines(self) -> list[Any]:
        made = self._lineiterators[self.IndType]
        return [line for owner in (*self.datas, *made, self) for line in owner.lines]

    def next(self) -> None:
        chance = self.chance
        lines = self.all_lines()
        read: list[Any] = [(len(line), line.buflen(), line.idx) for line in lines]
        read.extend(repr(line[0]) for line in lines if len(line))
        for line in chance.sample(lines, 3) if self.p.deep else ():
            read.append(read_somehow(line, chance))
        self.p.log.append(repr(read))
        if self.p.late and len(self) == 6:
            bt.ind.SMA(self.datas[0], period=2)
        past = self.datas[0].close[-chance.randrange(len(self.datas[0]))] if len(self.datas[0]) else 0.0
        if past and self.datas[0].close[0] > past:
            self.buy(self.datas[0], size=1)
        elif self.getposition(self.datas[0]).size:
            self.close(self.datas[0])

    prenext = next

    def notify_order(self, order: Any) -> None:
        self.p.log.append(("order", order.status, order.executed.size, order.executed.price))

    def stop(self) -> None:
        self.p.log.append(repr([list(line.array) for line in self.all_lines()]))


def read_somehow(line: Any, chance: random.Random) -> Any:
    """Read a line in one of the ways that Backtrader has; an error is what is read then."""
    ago, size = -chance.randrange(45), chance.randrange(1, 45)
    ways: list[Callable[[], Any]] = [
        lambda: line[ago],
        lambda: list(line.get(ago=ago, size=size)),
        lambda: list(line.get(ago=0, size=len(line))),
        lambda: list(line.getzero(size, 3)),
        lambda: line.getzeroval(ago),
        lambda: line.getzeroval(size),
        lambda: list(line.plot()),
        lambda: list(line.plotrange(size, size + 5)),
        lambda: line.dt(ago),
        lambda: line.datetime(ago),
    ]
    try:
        return repr(chance.choice(ways)())
    except (LookupError, ValueError, OverflowError) as error:
        return type(error).__name__


def run_live(
    bars: dict[str, list[Bar]], look_back: LookBack, build: Callable[[Any, list[Any]], None], **kwargs: Any
) -> list[Any]:
    log: list[Any] = []
    source = ListSource(slices_of(bar for found in bars.values() for bar in found))
    cerebro = LiveCerebro(source=source, wakeup=Wakeup(), quicknotify=False, look_back=look_back)
    build(cerebro, [LiveFeed(symbol=symbol) for symbol in bars])
    cerebro.addstrategy(Reader, log=log, **kwargs)
    try:
        cerebro.run()
    except (ArithmeticError, LookupError) as error:  # divided by zero; a data without bars is asked for its price
        log.append(repr(error))
    look_back.close()
    return log


def add_all_kinds(cerebro: Any, feeds: list[Any]) -> None:
    for feed in feeds:
        cerebro.adddata(feed)
    minutes = {"timeframe": bt.TimeFrame.Minutes, "compression": 5}
    cerebro.resampledata(feeds[0], **minutes)
    cerebro.replaydata(feeds[1], **minutes)
    cerebro.adddata(feeds[2].clone(), name="clone")


def add_plain(cerebro: Any, feeds: list[Any]) -> None:
    for feed in feeds:
        cerebro.adddata(feed)


def walk(minutes: int = 44, seed: int = 1, begin: int = 0) -> dict[str, list[Bar]]:
    chance = random.Random(seed)
    found: dict[str, list[Bar]] = {}
    for symbol in SYMBOLS:
        held = [minute for minute in range(begin, begin + minutes) if minute == begin or chance.random() < 0.7]
        found[symbol] = [make_bar(symbol, minute, float(chance.randrange(50, 60))) for minute in held]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_of_backtraders_indicators_reads_and_writes_the_same(name: str) -> None:
    def make(datas: list[Any]) -> None:
        made = make_named(name, datas)
        make_named(name, datas[3:] + datas[:3])  # on a resampled feed
        make_named(name, datas[4:] + datas[:4])  # on a replayed one
        bt.ind.CrossOver(made, datas[2])

    expected = run_live(walk(), Everything(), add_all_kinds, make=make)
    assert run_live(walk(), tight(), add_all_kinds, make=make) == expected
    assert len(expected) > 30 or "Error" in str(expected[-1])


@settings(max_examples=40, deadline=None)
@given(bars=gappy_bars(minutes=60), data=st.data())
def test_any_mixture_of_indicators_feeds_and_depths_reads_and_trades_the_same(
    bars: dict[str, list[Bar]], data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES), max_size=4))
    composed = data.draw(st.lists(st.sampled_from(sorted(COMPOSED)), max_size=4))
    build = data.draw(st.sampled_from([add_plain, add_all_kinds]))

    def make(datas: list[Any]) -> None:
        for name in names:
            make_named(name, datas)
        for name in composed:
            COMPOSED[name](datas)

    kwargs = {
        "make": make,
        "seed": data.draw(st.integers(0, 1000)),
        "deep": data.draw(st.booleans()),
        "late": data.draw(st.booleans()),
    }
    expected = run_live(bars, Everything(), build, **kwargs)
    assert run_live(bars, tight(), build, **kwargs) == expected


@pytest.mark.parametrize("name", ["SMA", "EMA", "RSI", "BollingerBands", "Ichimoku", "ParabolicSAR", "MACD"])
def test_a_run_that_lets_go_has_the_values_of_stocks_loop(name: str) -> None:
    aliases = {"SMA": "MovingAverageSimple", "EMA": "ExponentialMovingAverage", "RSI": "RelativeStrengthIndex"}
    cls_name = aliases.get(name, name)

    def make(datas: list[Any]) -> None:
        make_named(cls_name, datas)

    from .test_idempotence import Watcher

    log: list[Any] = []
    bars = walk()
    source = ListSource(slices_of(bar for found in bars.values() for bar in found))
    cerebro = LiveCerebro(source=source, wakeup=Wakeup(), quicknotify=False, look_back=tight())
    add_plain(cerebro, [LiveFeed(symbol=symbol) for symbol in bars])
    cerebro.resampledata(cerebro.datas[0], timeframe=bt.TimeFrame.Minutes, compression=5)
    cerebro.addstrategy(Watcher, log=log, make=make)
    cerebro.run()
    assert log == run_stock(bars, 1, make=make)


# One line against Backtrader's own


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("forward"), st.integers(1, 3)),
        st.tuples(st.just("put"), st.integers(-3, 0), st.floats(0, 100)),
        st.tuples(st.just("backwards"), st.integers(1, 2)),
        st.tuples(st.just("rewind"), st.just(1)),
        st.tuples(st.just("extend"), st.integers(1, 2)),
        st.tuples(st.just("read"), st.integers(-90, 3)),
        st.tuples(st.just("get"), st.integers(-90, 3), st.integers(-3, 90)),
        st.tuples(st.just("getzero"), st.integers(-90, 90), st.integers(-3, 90)),
        st.tuples(st.just("getzeroval"), st.integers(-90, 90)),
        st.tuples(st.just("plotrange"), st.integers(-90, 90), st.integers(-90, 90)),
    ),
    min_size=30,
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(steps=_STEPS, values=st.integers(1, 6))
def test_a_kept_line_answers_every_call_as_the_whole_line_does(steps: list[Any], values: int) -> None:
    whole, kept = LineBuffer(), LineBuffer()
    archive = LineArchive(None, block_values=BLOCK, max_bytes=1 << 20)
    keep(kept, values, archive, lambda line, bars: None)
    moved = 0
    for step in [("forward", 2), *steps]:
        name, *arguments = step
        if name in ("rewind", "backwards") and whole.lencount <= 3:
            continue
        if name == "extend" and moved:
            continue
        if name == "rewind":  # what is ahead of the index, a line comes to by `advance`
            moved += 1
        if name == "forward" and moved:
            whole.advance(moved)
            kept.advance(moved)
            moved = 0
        if name == "put":
            arguments = [arguments[1], arguments[0]]
            name = "set"
        asked = {"read": "__getitem__"}.get(name, name)
        assert call(kept, asked, arguments) == call(whole, asked, arguments), step
        assert (len(kept), kept.buflen(), kept.idx, kept.extension) == (
            len(whole),
            whole.buflen(),
            whole.idx,
            whole.extension,
        )
    assert repr(list(kept.array)) == repr(list(whole.array))
    archive.close()


_MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("forward"), st.floats(0, 9), st.integers(1, 12)),
        st.tuples(st.just("forward"), st.floats(0, 9), st.integers(1, 12)),
        st.tuples(st.sampled_from(["backwards", "rewind", "advance"]), st.integers(1, 6)),
        st.tuples(st.just("extend"), st.floats(0, 9), st.integers(1, 3)),
        st.tuples(st.sampled_from(["idx", "lencount"]), st.integers(-1, 60)),
        st.tuples(st.just("array"), st.lists(st.floats(0, 9), max_size=20)),
        st.tuples(st.sampled_from(["home", "reset"])),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(moves=_MOVES, values=st.integers(1, 6))
def test_index_length_and_values_are_those_of_the_whole_line_however_it_is_moved(moves: list[Any], values: int) -> None:
    whole, kept = LineBuffer(), LineBuffer()
    archive = LineArchive(None, block_values=BLOCK, max_bytes=1 << 20)
    keep(kept, values, archive, lambda line, bars: None)
    held = kept._kept
    for name, *arguments in moves:
        if name == "backwards" and len(whole.array) < arguments[0]:
            continue
        for line in (whole, kept):
            if name in ("idx", "lencount"):
                setattr(line, name, arguments[0])
            elif name == "array":
                line.array = array("d", arguments[0])
            else:
                getattr(line, name)(*arguments)
        state = [(line.idx, line.lencount, line.buflen(), line.extension) for line in (kept, whole)]
        assert state[0] == state[1], name
        assert call(kept, "__getitem__", [0]) == call(whole, "__getitem__", [0])
        assert call(kept, "get", [0, 3]) == call(whole, "get", [0, 3])
        if whole.lencount >= 0:
            assert len(kept) == len(whole)
    assert repr(list(kept.array)) == repr(list(whole.array))
    assert kept._kept is held  # whoever moves it may hold on to that
    archive.close()


def test_lines_that_are_moved_by_appending_let_go_when_room_is_made() -> None:
    archive = LineArchive(None, block_values=BLOCK, max_bytes=1 << 20)
    lines: list[Any] = [LineBuffer(), LineBuffer()]
    for number, line in enumerate(lines):
        keep(line, 3, archive, lambda line, bars: None, number=number)
    appends = [line._kept.append for line in lines]
    room = longest = 0
    for minute in range(200):
        if not room:
            room = make_room(lines)
        for append in appends:
            append(float(minute))
        longest = max(longest, *(len(line._kept) for line in lines))
        room -= 1
    assert longest <= 3 + 2 * BLOCK
    for line in lines:
        assert (len(line), line.idx, line[0]) == (200, 199, 199.0)
        assert list(line.get(size=200)) == [float(minute) for minute in range(200)]
    archive.close()


def call(line: Any, name: str, arguments: list[Any]) -> str:
    try:
        answer = getattr(line, name)(*arguments)
    except IndexError:
        return "IndexError"
    return repr(answer)


def make_line(count: int, *, values: int = 2, max_bytes: int = 1 << 20, heard: Any = None) -> tuple[Any, LineArchive]:
    archive = LineArchive(None, block_values=BLOCK, max_bytes=max_bytes)
    line = LineBuffer()
    keep(line, values, archive, heard or (lambda line, bars: None))
    for number in range(count):
        line.forward()
        line[0] = float(number)
    return line, archive


def test_times_of_old_bars_are_those_of_the_whole_line() -> None:
    line, archive = make_line(0)
    whole = LineBuffer()
    for number in range(40):
        for each in (line, whole):
            each.forward()
            each[0] = 735_000.0 + number * 0.37
    for ago in (0, -1, -30, -39):
        for name in ("datetime", "date", "time", "dt", "tm_raw", "tm"):
            assert getattr(line, name)(ago) == getattr(whole, name)(ago)
        for name in ("tm_lt", "tm_le", "tm_eq", "tm_gt", "tm_ge", "tm2dtime", "tm2datetime"):
            assert getattr(line, name)(0.5, ago) == getattr(whole, name)(0.5, ago)
            assert getattr(line, name)(0.5, ago=ago) == getattr(whole, name)(0.5, ago=ago)
    archive.close()


def test_a_line_holds_no_more_in_memory_than_its_bound_and_two_blocks() -> None:
    line, archive = make_line(1000, values=10)
    assert len(line._kept) <= 10 + 2 * BLOCK
    assert len(line) == 1000
    assert line.get(size=1000) == array("d", map(float, range(1000)))
    archive.close()


def test_what_was_read_far_back_stays_in_memory_from_then_on() -> None:
    heard: list[int] = []
    line, archive = make_line(100, heard=lambda line, bars: heard.append(bars))
    assert line[-50] == 49.0
    assert heard == [51]
    for number in range(100, 160):
        line.forward()
        line[0] = float(number)
        assert line[-50] == number - 50.0
    assert heard == [51]
    archive.close()


def test_a_full_archive_lets_the_oldest_go_and_a_read_of_it_raises() -> None:
    line, archive = make_line(100, max_bytes=5 * BLOCK * 8)
    held = len(line._kept) + 5 * BLOCK
    with pytest.raises(LookBackError, match=rf"value of 60 bars ago is asked for, {held} are kept; give --lookback 61"):
        line[-60]
    assert line[1 - held] == 100.0 - held
    assert archive.bytes_on_disk == 5 * BLOCK * 8
    archive.close()


def test_without_an_archive_a_read_beyond_what_is_kept_raises_and_never_wraps() -> None:
    line, _ = make_line(100, max_bytes=0)
    held = len(line._kept)
    assert [line[-ago] for ago in range(held)] == [99.0 - ago for ago in range(held)]
    for ago in range(held, 100):
        with pytest.raises(LookBackError):
            line[-ago]
        with pytest.raises(LookBackError):
            line.get(size=ago + 1)
        with pytest.raises(LookBackError):
            line.array  # noqa: B018 - looking is what raises
    assert line[0] == 99.0


def test_values_stay_in_memory_while_the_disk_takes_none(tmp_path: Path) -> None:
    archive = LineArchive(tmp_path / "missing", block_values=BLOCK, max_bytes=1 << 20)
    line: Any = LineBuffer()
    keep(line, 2, archive, lambda line, bars: None)
    for number in range(100):
        line.forward()
        line[0] = float(number)
    assert len(line._kept) == 100
    (tmp_path / "missing").mkdir()
    for number in range(100, 140):
        line.forward()
        line[0] = float(number)
    assert len(line._kept) < 20
    assert list(line.get(size=140)) == [float(number) for number in range(140)]
    archive.close()
    assert not list((tmp_path / "missing").iterdir())


def test_who_has_taken_the_array_sees_every_value_in_it_for_ever() -> None:
    line, archive = make_line(100)
    values = line.array
    for number in range(100, 200):
        line.forward()
        line[0] = float(number)
    assert list(values) == [float(number) for number in range(200)]
    assert line.is_whole()
    archive.close()


# Declared


def run_strategy(strategy: Any, look_back: LookBack | None = None, minutes: int = 200, **fields: Any) -> Any:
    bars = [make_bar("AAA", minute, 50.0 + minute, **fields) for minute in range(minutes)]
    cerebro = LiveCerebro(source=ListSource(slices_of(bars)), wakeup=Wakeup(), look_back=look_back)
    cerebro.adddata(LiveFeed(symbol="AAA"), name="AAA")
    cerebro.addstrategy(strategy)
    return cerebro.run()[0]


def test_the_error_names_line_and_owner_and_says_what_to_declare() -> None:
    class Rare(bt.Strategy):
        def next(self) -> None:
            if len(self) == 150:
                self.data.close[-120]

    with pytest.raises(
        LookBackError, match=r"^line 'close' of AAA: the value of 120 bars ago .* --lookback 121 or more"
    ):
        run_strategy(Rare, LookBack(20, block_values=BLOCK, disk_bytes=0))
    run_strategy(Rare, LookBack(121, block_values=BLOCK, disk_bytes=0))


def test_a_strategy_declares_how_far_it_looks_back() -> None:
    class Deep(bt.Strategy):
        kept_bars = 150

        def next(self) -> None:
            if len(self) > 140:
                assert self.data.close[-140] == self.data.close[0] - 140.0

    look_back = LookBack(block_values=BLOCK, disk_bytes=0)
    strat = run_strategy(Deep, look_back)
    assert 150 < len(strat.data.close._kept) <= 150 + 2 * BLOCK


def test_all_keeps_all_and_other_words_are_refused() -> None:
    class Whole(bt.Strategy):
        kept_bars = "all"

    strat = run_strategy(Whole, LookBack(block_values=BLOCK))
    assert strat.data.close._base == 0
    assert (parse_lookback("all"), parse_lookback("12"), parse_lookback(7)) == (WHOLE, 12, 7)
    for value in (0, -1, "many", 1.5, True, ""):
        with pytest.raises(ConfigError, match=r"--lookback .*: expected a number of bars from 1 on, or all"):
            parse_lookback(value)


def test_what_indicators_need_is_kept_without_being_declared() -> None:
    class Long(bt.Strategy):
        def __init__(self) -> None:
            self.mean = bt.ind.SMA(self.data, period=60)
            self.slope = self.mean - self.mean(-30)

        def next(self) -> None:
            assert self.slope[0] == pytest.approx(30.0)

    strat = run_strategy(Long, LookBack(1, block_values=BLOCK, disk_bytes=0))
    assert len(strat) == 200
    assert len(strat.data.close._kept) < 120


def test_lines_that_come_during_the_run_are_kept_within_bounds_too() -> None:
    class Late(bt.Strategy):
        def next(self) -> None:
            if len(self) == 100:
                self.mean = bt.ind.SMA(self.data, period=2)

    minutes = 1200
    bars = [make_bar("AAA", minute, 50.0, extra={"spread": 0.5} if minute > 300 else {}) for minute in range(minutes)]
    cerebro = LiveCerebro(
        source=ListSource(slices_of(bars)), wakeup=Wakeup(), look_back=LookBack(5, block_values=BLOCK)
    )
    cerebro.adddata(LiveFeed(symbol="AAA"))
    cerebro.addstrategy(Late)
    strat = cerebro.run()[0]
    for line in (strat.data.lines.spread, strat.mean.lines.sma):
        assert isinstance(line, KeptLine)
        assert len(line._kept) < 30
    assert len(strat.data.lines.spread) == minutes
    assert strat.data.lines.spread[-1000] != strat.data.lines.spread[-1000]
    assert strat.data.lines.spread[-800] == 0.5


def test_memory_of_a_long_run_is_that_of_a_short_one() -> None:
    class Means(bt.Strategy):
        def __init__(self) -> None:
            self.cross = bt.ind.CrossOver(bt.ind.SMA(self.data, period=5), bt.ind.EMA(self.data, period=9))

    sizes = []
    for minutes in (600, 3000):
        look_back = LookBack(16, block_values=16, disk_bytes=64 * 1024)
        run_strategy(Means, look_back, minutes)
        sizes.append(look_back.measure())
        look_back.close()
    assert sizes[1][0] <= sizes[0][0] * 1.5
    assert sizes[1][1] <= 64 * 1024
