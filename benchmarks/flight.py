"""What the flight recorder costs: the same local run with and without it, one after the other in one process."""

from __future__ import annotations

import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.table import Row
from dry_work.broker.flight import STOP, WALL_CLOCK, BooksView
from dry_work.clock import SystemClock
from dry_work.engine import runner as runner_module
from dry_work.engine.flight_session import RunFlight
from dry_work.engine.runner import Runner
from dry_work.exchange.synthetic import DAY_START_NS
from dry_work.market.messages import Bar, Slice
from dry_work.recording.flight_recorder import FlightRecorder
from dry_work.recording.log import find_segments, find_sessions
from dry_work.recording.recorder import Recorder
from dry_work.settings import RunSettings

SYMBOLS = ("SPY", "IBM", "BAC", "AIG", "AAPL", "MSFT", "BTC/USD", "ETH/USD", "SOL/USD", "XRP/USD")
ROUNDS = 7


def measure(*, tiny: bool = False) -> list[Row]:
    """Return the CPU time of a run in lock-step with the recorder, beside that without."""
    symbols = SYMBOLS[:2] if tiny else SYMBOLS
    with_flight, without = [], []
    size = 0
    for number in range(1 if tiny else ROUNDS + 1):
        seconds, size = _run(symbols, records=True)
        other, _ = _run(symbols, records=False)
        if number or tiny:  # the first of each loads modules
            with_flight.append(seconds)
            without.append(other)
    # Whatever else the machine does only adds to the time of a run.
    return [
        Row(
            what=f"CPU of a local run of {len(symbols)} symbols, flight recorded",
            ours=min(with_flight),
            unit="s",
            other=min(without),
            other_name="not recorded",
            bar="< 5 % more",
        ),
        Row(what="flight and received messages on disk", ours=size / 1e6, unit="MB"),
        Row(
            what="CPU of recording a slice of 10 bars, writer included", ours=_record(100 if tiny else 3000), unit="µs"
        ),
    ]


def _record(slices: int) -> float:
    """Return microseconds of CPU that it takes to record a slice and its turn, in both threads."""
    bars = [
        Bar(symbol=symbol, ts_event_ns=DAY_START_NS, open=1.5, high=2.0, low=1.25, close=1.75, volume=100.0)
        for symbol in SYMBOLS
    ]
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), writer="benchmark")
        flight = FlightRecorder(recorder, clock)
        flight.follow(lambda: BooksView(Decimal(100_000)))
        recorder.start()
        begun = time.process_time()
        for number in range(slices):
            flight.begin(Slice(end_ns=DAY_START_NS + number, bars=tuple(bars), number=number))
            for _ in range(10):
                flight.read(STOP, False)
            for _ in range(4):
                flight.read(WALL_CLOCK, number)
            flight.note_value(100_000.0 + number)
            flight.end_turn()
        recorder.stop()
        return (time.process_time() - begun) / slices * 1e6


def _run(symbols: tuple[str, ...], *, records: bool) -> tuple[float, int]:
    """Run; return seconds of CPU of this process, and bytes on disk. Received messages are recorded in any case."""
    module: Any = runner_module
    recorded = module.RunFlight
    module.RunFlight = RunFlight if records else lambda _recorder, clock: RunFlight(None, clock)
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(
            symbols=symbols, agent="agents.sma_cross:SmaCross", params={}, mode="local", agent_id="flight",
            state_dir=Path(folder), state_dir_given=True,
        )  # fmt: skip
        try:
            begun = time.process_time()
            Runner(settings, tell=lambda _line: None).run()
            seconds = time.process_time() - begun
        finally:
            module.RunFlight = recorded
        size = sum(path.stat().st_size for each in find_sessions(Path(folder)) for path in find_segments(each))
    return seconds, size
