"""A recorded session, run again, comes to the same decisions; what does not is named with both sides and its cause."""

from __future__ import annotations

import contextlib
import copy
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dry_work.clock import MINUTE_NS
from dry_work.engine.compare import backtest_session, compare_sessions
from dry_work.engine.divergence import RANDOM, WALL_CLOCK, find_unrecorded_reads
from dry_work.engine.replay import recorded_agent
from dry_work.engine.result import RunResult
from dry_work.engine.runner import Runner
from dry_work.errors import ConfigError, DataFileError, StrategyError
from dry_work.exchange.synthetic import DAY_START_NS
from dry_work.market.messages import Bar, Slice
from dry_work.orders.model import TradeEvent
from dry_work.recording.flight_frames import (
    EVENT_KIND,
    ITEM_KIND,
    SESSION_KIND,
    TURN_KIND,
    decode_item,
    encode,
    name_item,
)
from dry_work.recording.flight_log import FlightReader, export_session, open_flight
from dry_work.recording.frames import Frame, SegmentDecoder
from dry_work.recording.log import LogWriter, SessionReader
from dry_work.recording.recorder import MESSAGE
from dry_work.recording.session_list import find_session, list_sessions
from dry_work.recording.session_trace import trace_session
from dry_work.settings import RunSettings

from .flights import CROSS, ask, fly, last_session, replay, write_strategy


@pytest.fixture(scope="module")
def flown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunResult]]:
    """A folder with a session, and what its run told."""
    folder = tmp_path_factory.mktemp("flown")
    with contextlib.chdir(folder):
        yield folder, fly(folder, write_strategy(folder))


def copy_session(folder: Path, source: Path) -> Path:
    """Return a copy of a session that a test may damage."""
    return Path(shutil.copytree(source, folder / source.name))


def rewrite(source: Path, root: Path, change: Any) -> Path:
    """Write a session anew, with what `change` makes of each frame: a frame, or None."""
    root.mkdir(exist_ok=True)
    writer = LogWriter(root, session=source.name, writer="test")
    for frame in SessionReader(source):
        changed = change(frame)
        if changed is not None:
            writer.append(changed)
    writer.close()
    return writer.folder


def test_a_session_replays_to_the_same_decisions_books_and_values(flown: tuple[Path, RunResult]) -> None:
    folder, told = flown
    before = set(threading.enumerate())
    result = replay(last_session(folder))
    assert result.is_same, result.divergence
    assert result.decisions == len(told.orders) > 10
    assert result.slices == 390
    assert result.turns > 390
    assert result.finish is not None
    assert result.finish.reason == "done"
    assert (result.finish.orders, result.finish.fills) == (len(told.orders), len(told.fills))
    assert result.problem == ""
    assert set(threading.enumerate()) <= before


def test_a_session_whose_market_does_not_wait_replays_without_its_secrets(
    tmp_path: Path, clean_environment: Path
) -> None:
    text = CROSS.replace('("size", 10)', '("size", 10), ("api_token", "default")')
    told = fly(tmp_path, write_strategy(tmp_path, text), speed=20_000.0, params={"api_token": "hunter2"})
    session = last_session(tmp_path)
    assert all(b"hunter2" not in path.read_bytes() for path in session.iterdir())
    with open_flight(session) as reader:
        assert reader.facts.params["api_token"] == "***"
    result = replay(session)
    assert result.is_same, result.divergence
    assert result.decisions == len(told.orders) > 0
    assert "not in the record, as a secret: api_token" in result.notes[0]


def test_stopped_at_a_time_it_tells_what_the_strategy_saw(flown: tuple[Path, RunResult]) -> None:
    until_ns = DAY_START_NS + 100 * MINUTE_NS
    result = replay(last_session(flown[0]), until_ns=until_ns)
    assert result.is_same
    moment = result.moment
    assert moment is not None
    assert moment.time_ns == until_ns
    assert result.slices == 100
    assert {bar.symbol for bar in moment.bars} <= {"SPY", "IBM"}
    assert all(bar.end_ns == until_ns for bar in moment.bars)
    names = dict(moment.indicators)
    assert {"cross[SPY]", "cross[IBM]"} <= names.keys()
    assert moment.books.orders == sum(fill_time(order) <= until_ns for order in flown[1].orders)


def fill_time(order: Any) -> int:
    from dry_work.settings import parse_moment

    return parse_moment(str(order["submitted_at"]), name="submitted_at")


def test_a_changed_source_is_named_with_the_first_difference(tmp_path: Path, flown: tuple[Path, RunResult]) -> None:
    changed = write_strategy(tmp_path, CROSS.replace('("fast", 5)', '("fast", 7)'))
    result = replay(last_session(flown[0]), spec=f"{changed}:Cross")
    found = result.divergence
    assert found is not None
    assert found.what == "decision"
    assert any("SPY" in line or "IBM" in line for line in (*found.recorded, *found.replayed))
    assert found.recorded != found.replayed
    assert result.causes[0].startswith("the strategy's source has changed since the session: strategy.py (")
    assert any("parameters are others: fast 5 → 7" in cause for cause in result.causes)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import time\n", "if len(self) % 30 == 0: self.buy(size=time.time_ns() // 100 % 50 + 1)"),
        ("import random\n", "if len(self) % 30 == 0: self.buy(size=random.randint(1, 50))"),
    ],
    ids=["clock", "random"],
)
def test_a_strategy_that_reads_what_nobody_recorded_is_caught_with_the_reason(
    tmp_path: Path, clean_environment: Path, line: str, what: str
) -> None:
    text = line + CROSS.replace("        self.turns += 1\n", f"        self.turns += 1\n        {what}\n")
    fly(tmp_path, write_strategy(tmp_path, text), symbols=("SPY",))
    result = replay(last_session(tmp_path))
    assert result.divergence is not None
    assert result.divergence.what in ("decision", "notification")  # of an order that was refused
    read = WALL_CLOCK if "time" in line else RANDOM
    assert result.causes[0].startswith(f"the strategy reads {read} without the recorder (strategy.py line ")


def test_time_and_random_numbers_with_the_recorder_replay(tmp_path: Path, clean_environment: Path) -> None:
    text = "from dry_work.recording.inputs import make_random, time_ns\n" + CROSS.replace(
        "        self.turns += 1\n",
        """\
        self.turns += 1
        if self.turns == 1:
            self.random = make_random()
        if self.turns % 40 == 0:
            self.buy(size=self.random.randint(1, 3) + time_ns() % 3)
""",
    )
    told = fly(tmp_path, write_strategy(tmp_path, text), symbols=("SPY",))
    result = replay(last_session(tmp_path))
    assert result.is_same, result.divergence
    assert result.decisions >= 9
    assert len({order["qty"] for order in told.orders}) > 1


def test_a_strategy_that_raises_replays_up_to_the_same_error(tmp_path: Path, clean_environment: Path) -> None:
    text = CROSS.replace("        self.turns += 1\n", "        self.turns += 1\n        [0][self.turns // 60]\n")
    with pytest.raises(StrategyError, match="IndexError"):
        fly(tmp_path, write_strategy(tmp_path, text))
    result = replay(last_session(tmp_path))
    assert result.is_same, result.divergence
    assert result.finish is not None
    assert (result.finish.reason, result.finish.detail) == ("failed", "raised IndexError: list index out of range")
    healed = write_strategy(tmp_path, CROSS, "healed.py")
    other = replay(last_session(tmp_path), spec=f"{healed}:Cross")
    assert other.divergence is not None
    assert other.divergence.what == "error"


# What if


def run_local(strategy: str, params: dict[str, str]) -> RunResult:
    settings = RunSettings(symbols=("SPY", "IBM"), agent=strategy, params=params, mode="local", agent_id="tester")
    return Runner(settings, tell=lambda _line: None).run()


def without_names(rows: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "client_order_id"} for row in rows]


def test_an_account_that_did_not_begin_like_a_local_one_is_handed_over_as_it_is(
    tmp_path: Path, flown: tuple[Path, RunResult]
) -> None:
    """The venue has filled at another price than the simulated exchange, which has to begin anew at the difference."""
    source = last_session(flown[0])
    taken = False

    def take_fee(frame: Frame) -> Frame:
        nonlocal taken
        if frame.kind != ITEM_KIND or taken:
            return frame
        item = decode_item(frame.payload)
        if not isinstance(item, TradeEvent) or item.price is None:
            return frame
        taken = True
        dearer = msgspec.structs.replace(item, price=item.price + 1)
        return msgspec.structs.replace(frame, payload=encode(name_item(dearer)))

    session = rewrite(source, tmp_path / "dearer", take_fee)
    later = CROSS.replace("size=self.p.size)", "size=self.p.size if self.turns < 200 else 3)")
    answer = ask(session, spec=f"{write_strategy(tmp_path, later, 'later.py')}:Cross")
    plain = ask(source, spec=f"{tmp_path / 'later.py'}:Cross")
    assert "took over cash, positions and open orders as they were" in answer.handover
    assert "followed the record" in plain.handover
    assert without_names(answer.fills)[1:] == without_names(plain.fills)[1:]
    assert answer.fills[0]["price"] == plain.fills[0]["price"] + 1  # type: ignore[operator]
    assert answer.end_value == pytest.approx(plain.end_value - 10)


@pytest.mark.parametrize("kind", ["parameter", "later"])
def test_another_strategy_ends_as_a_run_of_its_own_does(
    tmp_path: Path, flown: tuple[Path, RunResult], kind: str
) -> None:
    folder = flown[0]
    if kind == "parameter":
        spec, params = f"{folder / 'strategy.py'}:Cross", {"fast": "7"}
    else:
        later = CROSS.replace("size=self.p.size)", "size=self.p.size if self.turns < 200 else 3)")
        spec, params = f"{write_strategy(tmp_path, later, 'later.py')}:Cross", {}
    answer = ask(last_session(folder), spec=spec, params=params)
    assert answer.divergence is not None
    assert answer.divergence.what == "decision"
    assert "followed the record from its start" in answer.handover
    expected = run_local(spec, params)
    assert without_names(answer.fills) == without_names(expected.fills)
    assert answer.end_value == expected.equity.end
    assert answer.recorded_end_value == flown[1].equity.end
    if kind == "later":
        assert answer.decisions > 2
        assert 0 < answer.fills_from_record < len(answer.fills)
        assert answer.divergence.slice_number > 199


def test_the_same_strategy_takes_all_fills_from_the_record(flown: tuple[Path, RunResult]) -> None:
    answer = ask(last_session(flown[0]), params={"fast": "5"})
    assert answer.divergence is None
    assert list(answer.fills) == flown[1].fills
    assert answer.fills_from_record == len(answer.fills)


# Sessions, exports, comparisons


def test_sessions_are_listed_and_an_export_replays_elsewhere(
    tmp_path: Path, flown: tuple[Path, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = flown
    [summary] = list_sessions(folder / "state")
    assert summary.agent.endswith("strategy.py:Cross")
    assert (summary.orders, summary.fills, summary.exit) == (len(told.orders), len(told.fills), "done")
    assert summary.profit == pytest.approx(told.equity.end - told.equity.start)
    assert summary.first_ns == DAY_START_NS + MINUTE_NS
    assert (summary.problem, summary.describe_gaps()) == ("", "")
    session = find_session(folder / "state", summary.name[:9])
    file = tmp_path / "day.dwsession"
    assert export_session(session, file) > 1000
    with pytest.raises(DataFileError, match="exists already"):
        export_session(session, file)
    monkeypatch.chdir(tmp_path)
    (folder / "strategy.py").rename(folder / "away.py")
    try:
        result = replay(file)
    finally:
        (folder / "away.py").rename(folder / "strategy.py")
    assert result.is_same
    assert result.decisions == len(told.orders)
    assert "is not here: the source in the record runs" in result.notes[0]
    with pytest.raises(ConfigError, match="is no session"):
        find_session(folder / "state", "nothing")


def test_a_session_is_equal_to_a_backtest_of_its_own_recording(flown: tuple[Path, RunResult]) -> None:
    with open_flight(last_session(flown[0])) as reader, recorded_agent(reader.facts) as (agent, _):
        trace = trace_session(reader)
        assert trace.final.keys() == trace.bars.keys()
        comparison = compare_sessions(trace, backtest_session(trace, agent))
    assert comparison.differences == ()
    assert comparison.same_orders == len(flown[1].orders)
    assert comparison.values[0] == pytest.approx(comparison.values[1])


def test_differences_of_two_sessions_have_their_causes(tmp_path: Path, flown: tuple[Path, RunResult]) -> None:
    with open_flight(last_session(flown[0])) as reader:
        ours = trace_session(reader)

    def changed() -> Any:
        return copy.deepcopy(ours.orders)

    def compare(orders: Any, **changes: Any) -> Any:
        theirs = msgspec.structs.replace(ours, name="other", orders=orders, books=None, **changes)
        return compare_sessions(ours, theirs)

    assert compare(changed()).differences == ()
    filled = next(place for place, order in enumerate(ours.orders) if order.fills)
    orders = changed()
    orders[filled].status, orders[filled].reason, orders[filled].fills = "rejected", "no buying power", []
    [found] = compare(orders).differences
    assert (found.cause, found.why) == ("rejection", "no buying power")
    orders = changed()
    fill = orders[filled].fills[0]
    orders[filled].fills = [msgspec.structs.replace(fill, qty=4.0)]
    orders[filled].status = "canceled"
    assert compare(orders).differences[0].cause == "partial"
    assert "4 of 10 were filled" in compare(orders).differences[0].why
    orders = changed()
    orders[filled].fills = [msgspec.structs.replace(fill, price=fill.price + 1)]
    assert compare(orders).differences[0].cause == "price"
    orders = changed()
    orders[filled].fills = [msgspec.structs.replace(fill, price=fill.price + 1, ts_ns=fill.ts_ns + 2 * MINUTE_NS)]
    assert compare(orders).differences[0].cause == "latency"
    # a bar that came late, and the order that was not made because of it
    orders = changed()
    gone = orders.pop(filled)
    key = max(key for key in ours.bars if key[0] == gone.symbol and ours.bars[key].end_ns <= gone.decided_ns)
    late = {**ours.slice_of, key: ours.slice_of[key] + MINUTE_NS}
    first = compare(orders, slice_of=late).differences[0]
    assert (first.cause, first.b) == ("late bar" if first.time_ns >= late[key] else "decision", "no order")
    revised = {**ours.final, key: msgspec.structs.replace(ours.bars[key], close=1.0, revision=1)}
    had = msgspec.structs.replace(ours.bars[key], close=2.0)
    first = compare(orders, final=revised, bars={**ours.bars, key: had}).differences[0]
    assert first.cause == "revised bar"
    missing = {each: bar for each, bar in ours.bars.items() if each != key}
    assert (
        compare(orders, bars=missing, slice_of={k: v for k, v in ours.slice_of.items() if k != key})
        .differences[0]
        .cause
        == "missing bar"
    )


# Bad input


def small_session(folder: Path, source: Path, slices: int = 3) -> Path:
    """Write the beginning of a session, without what was received, so that it is small."""
    seen = 0

    def keep(frame: Frame) -> Frame | None:
        nonlocal seen
        if frame.kind == EVENT_KIND:
            seen += 1
        return None if frame.kind == MESSAGE or seen > slices else frame

    return rewrite(source, folder, keep)


def test_an_edited_byte_anywhere_is_found(tmp_path: Path, flown: tuple[Path, RunResult]) -> None:
    session = small_session(tmp_path / "small", last_session(flown[0]), slices=1)
    [segment] = session.glob("*.dwlog")
    whole = segment.read_bytes()
    decoder = SegmentDecoder()
    frames = list(decoder.feed(whole))
    assert decoder.finish() is None
    assert len(list(FlightReader(session).turns())) > 1
    assert {SESSION_KIND, EVENT_KIND, TURN_KIND} <= {frame.kind for frame in frames}
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        decoder = SegmentDecoder()
        found = list(decoder.feed(bytes(damaged)))
        assert decoder.finish() is not None, f"byte {place}"
        assert found == frames[: len(found)], f"byte {place}: what is before the damage is as it was"


def test_up_to_the_damage_a_session_can_be_used(tmp_path: Path, flown: tuple[Path, RunResult]) -> None:
    session = copy_session(tmp_path, last_session(flown[0]))
    [segment] = session.glob("*.dwlog")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    result = replay(session)
    assert result.is_same
    assert "damaged: " in result.problem
    assert 50 < result.slices < 350
    [summary] = list_sessions(tmp_path)
    assert (summary.exit, summary.slices) == ("damaged", result.slices)
    assert "checksum differs" in summary.problem
    segment.write_bytes(data[: len(data) // 4])
    cut = replay(session)
    assert cut.is_same
    assert 10 < cut.slices < result.slices
    assert cut.problem == "it ends without its end: the process was killed"
    assert list_sessions(tmp_path)[0].exit == "killed"


def test_what_is_no_session_or_of_another_version_is_said(tmp_path: Path, flown: tuple[Path, RunResult]) -> None:
    source = last_session(flown[0])

    def newer(frame: Frame) -> Frame:
        if frame.kind != SESSION_KIND:
            return frame
        facts = msgspec.msgpack.decode(frame.payload)
        return msgspec.structs.replace(frame, payload=msgspec.msgpack.encode({**facts, "format": 99}))

    with pytest.raises(DataFileError, match="format 99; this Dry Work reads format 1"):
        FlightReader(rewrite(source, tmp_path / "newer", newer))
    with pytest.raises(DataFileError, match="there is no flight in this recording"):
        FlightReader(rewrite(source, tmp_path / "messages", lambda f: f if f.kind == MESSAGE else None))
    turns = 0

    def drop_one(frame: Frame) -> Frame | None:
        nonlocal turns
        turns += frame.kind == TURN_KIND
        return None if frame.kind == TURN_KIND and turns == 100 else frame

    missing = replay(rewrite(source, tmp_path / "missing", drop_one))
    assert missing.is_same
    assert missing.problem == "turn 99 is missing before turn 100"
    assert missing.turns == 99

    def unknown(frame: Frame) -> Frame:
        return msgspec.structs.replace(frame, kind=200) if frame.kind == TURN_KIND and frame.recv_ns else frame

    odd = replay(rewrite(source, tmp_path / "unknown", unknown))
    assert "a frame of kind 200 is not known: it was written by a newer Dry Work" in odd.problem
    foreign = tmp_path / "foreign.dwsession"
    foreign.write_bytes(b"something else")
    with pytest.raises(DataFileError, match="no exported session"), open_flight(foreign):
        pass
    with pytest.raises(ConfigError, match="no such session"), open_flight(tmp_path / "nowhere"):
        pass
    with pytest.raises(ConfigError, match="holds 4 sessions, name one: "), open_flight(tmp_path):
        pass


def test_a_missing_beginning_is_said(tmp_path: Path, flown: tuple[Path, RunResult]) -> None:
    source = last_session(flown[0])
    writer = LogWriter(tmp_path, session=source.name, writer="test", segment_bytes=100_000)
    for frame in SessionReader(source):
        writer.append(frame)
    writer.close()
    segments = sorted(writer.folder.glob("*.dwlog"))
    assert len(segments) > 3
    segments[0].rename(tmp_path / "aside")
    with pytest.raises(DataFileError, match="its first 1 segments are gone"):
        FlightReader(writer.folder)
    (tmp_path / "aside").rename(segments[0])
    segments[2].unlink()
    result = replay(writer.folder)
    assert result.is_same
    assert "segment 3 is missing before it" in result.problem


# The parts


def test_reads_that_nobody_records_are_found_under_any_name() -> None:
    source = """\
import datetime as dt
import numpy as np
from random import choice
from time import time as now
import random, os, uuid
dt.datetime.now(); now(); choice([1]); np.random.rand(); os.environ["A"]; uuid.uuid4(); random.Random(1)
self.time.time(); mine.random(); datetime.now()
"""
    found = [(read.what, read.text, read.line) for read in find_unrecorded_reads({"a.py": source, "b.txt": "no("})]
    assert [(text, line) for _, text, line in found] == [
        ("datetime.datetime.now", 6),
        ("time.time", 6),
        ("random.choice", 6),
        ("numpy.random.rand", 6),
        ("os.environ", 6),
        ("uuid.uuid4", 6),
        ("random.Random", 6),
    ]


def test_bars_of_a_slice_come_back_as_they_were(flown: tuple[Path, RunResult]) -> None:
    with open_flight(last_session(flown[0])) as reader:
        slices = [turn.event for turn in reader.turns() if isinstance(turn.event, Slice)]
        assert reader.is_complete
    assert len(slices) == 390
    assert all(isinstance(bar, Bar) and bar.ts_recv_ns for piece in slices for bar in piece.bars)


def test_an_export_that_was_cut_off_or_edited_is_used_up_to_there(
    tmp_path: Path, flown: tuple[Path, RunResult]
) -> None:
    whole = tmp_path / "whole.dwsession"
    size = export_session(last_session(flown[0]), whole)
    damaged = tmp_path / "damaged.dwsession"
    turns = []
    for share in (0.2, 0.6, 0.95):
        damaged.write_bytes(whole.read_bytes()[: int(size * share)])
        result = replay(damaged)
        assert result.is_same
        assert result.problem
        turns.append(result.turns)
    assert 0 < turns[0] < turns[1] < turns[2]
    content = bytearray(whole.read_bytes())
    content[int(size * 0.6)] ^= 1
    damaged.write_bytes(content)
    result = replay(damaged)
    assert result.problem
    assert 0 < result.turns < turns[2]
    damaged.write_bytes(whole.read_bytes()[:20])
    with pytest.raises(DataFileError, match="no exported session"), open_flight(damaged):
        pass
