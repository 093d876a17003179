"""`dry-work publish` into the embedded Pub/Sub server, read by the agent's own source."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dry_work.clock import MINUTE_NS
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording
from dry_work.feeds.router import PubSubMarketSource
from dry_work.market.messages import Slice
from dry_work.wakeup import Wakeup
from dry_work.wire.pubsub import encode_time

PROJECT = "demo"
SYMBOLS = ("SPY", "IBM", "BTC/USD")
DEADLINE_S = 60.0


@pytest.fixture
def pubsub() -> Iterator[EmbeddedPubSub]:
    server = EmbeddedPubSub()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    found = synthetic_day(SYMBOLS, minutes=90)
    rows = ["symbol,timestamp,open,high,low,close,volume"]
    for symbol in found.symbols:
        for bar in found.bars(symbol):
            prices = f"{bar.open!r},{bar.high!r},{bar.low!r},{bar.close!r},{bar.volume!r}"
            rows.append(f"{symbol},{encode_time(bar.ts_event_ns)},{prices}")
    (tmp_path / "bars.csv").write_text("\n".join(rows) + "\n")
    return found


Publish = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def publish(pubsub: EmbeddedPubSub, tmp_path: Path) -> Iterator[Publish]:
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str, endpoint: str = "") -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PUBSUB", "GOOGLE_CLOUD"))}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "dry_work", "publish", "--data", "bars.csv", "--project", PROJECT, *options],
                cwd=tmp_path, env={**kept, "PUBSUB_EMULATOR_HOST": endpoint or pubsub.target, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def finish(process: subprocess.Popen[str], code: int) -> str:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (code, ""), out
    return out


def make_topics(publish: Publish, tmp_path: Path) -> None:
    """Let the command make the topics, with data from before the test's."""
    (tmp_path / "early.csv").write_text(
        "symbol,timestamp,open,high,low,close,volume\n"
        "SPY,2001-01-02T15:00:00Z,1,1,1,1,1\nBTC/USD,2001-01-02T15:00:00Z,1,1,1,1,1\n"
    )
    out = finish(publish("--data", "early.csv", "--symbols", "SPY,BTC/USD"), 0)
    assert "market-data, crypto-data in project demo" in out


def read_slices(source: PubSubMarketSource, wakeup: Wakeup) -> list[Slice]:
    """Return the slices up to the last."""
    found: list[Slice] = []
    end_s = time.monotonic() + DEADLINE_S
    while not found or not found[-1].last:
        assert time.monotonic() < end_s, f"{len(found)} slices only"
        event = source.take()
        if isinstance(event, Slice):
            found.append(event)
        elif event is None:
            wakeup.wait(min(source.wait_s() or 1.0, 1.0))
    return found


@pytest.mark.parametrize("options", [("--speed", "max"), ("--speed", "36000"), ("--batch",)])
def test_readers_get_the_recording_slice_by_slice(
    pubsub: EmbeddedPubSub, recording: Recording, publish: Publish, tmp_path: Path, options: tuple[str, ...]
) -> None:
    make_topics(publish, tmp_path)
    wakeup = Wakeup()
    source = PubSubMarketSource(
        project_id=PROJECT, symbols=SYMBOLS, agent_id="reader", owner_nonce="mine", endpoint=pubsub.target,
        watermarks=True, grace_s=DEADLINE_S,
    )  # fmt: skip
    source.start(wakeup)
    try:
        process = publish("--symbols", ",".join(SYMBOLS), *options)
        slices = read_slices(source, wakeup)
        out = finish(process, 0)
        counters = source.counters()
    finally:
        source.stop()
    expected = [(end_ns, {(bar.symbol, bar.close) for bar in bars}) for end_ns, bars in recording.slices()]
    assert [(piece.end_ns, {(bar.symbol, bar.close) for bar in piece.bars}) for piece in slices] == expected
    assert [piece.number for piece in slices] == list(range(1, len(expected) + 1))
    assert {name: count for name, count in counters.items() if count and name.startswith("dropped")} == {}
    bars = sum(map(recording.count, recording.symbols))
    stocks = recording.count("SPY") + recording.count("IBM")
    assert f"publishing {bars:,} bars of 3 symbols to market-data, crypto-data in project demo" in out
    assert f"market-data: {stocks + len(expected):,} bars and watermarks in " in out
    assert f"crypto-data: {recording.count('BTC/USD') + len(expected):,} bars and watermarks in " in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_word_to_stop_ends_it_with_a_summary(
    recording: Recording, publish: Publish, number: signal.Signals, code: int
) -> None:
    assert recording.slice_ends()[1] - recording.slice_ends()[0] == MINUTE_NS
    process = publish("--speed", "1")  # the second slice is due in a minute
    assert process.stdout is not None
    assert process.stdout.readline().startswith("publishing ")
    process.send_signal(number)
    out = finish(process, code)
    assert "market-data: " in out
    assert "stopped after " in out


def test_other_topics_can_be_named(recording: Recording, publish: Publish) -> None:
    out = finish(publish("--market-topic", "stocks-replayed", "--symbols", "SPY"), 0)
    assert "stocks-replayed: 180 bars and watermarks in " in out
    assert "crypto" not in out


def test_a_topic_that_the_server_refuses_is_a_usage_error(recording: Recording, publish: Publish) -> None:
    process = publish("--market-topic", "goog-x")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert f"Pub/Sub refuses projects/{PROJECT}/topics/goog-x" in err
    assert "Traceback" not in err


def test_a_server_that_is_not_there_is_named(recording: Recording, publish: Publish) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    process = publish(endpoint=endpoint)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert f"Pub/Sub at {endpoint} does not answer" in err
    assert "Traceback" not in err
