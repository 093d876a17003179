"""A recorder beside a stack of processes: what was flushed survives kill -9, and the catalog is the source."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.market.messages import Bar
from dry_work.recording.catalog import CatalogWriter
from dry_work.recording.log import SessionReader, find_sessions
from dry_work.recording.recorder import decode_message
from dry_work.storage import FolderStorage
from dry_work.wire.pubsub import parse_message

from .processes import Program, wait_until

SYMBOLS = ("SPY", "IBM", "BTC/USD")
Start = Callable[..., Program]
Places = set[tuple[str, int]]


def write_source(folder: Path) -> Recording:
    source = synthetic_day(SYMBOLS)
    catalog = CatalogWriter(FolderStorage(folder))
    for symbol in SYMBOLS:
        catalog.add("bars", symbol, dict(source.columns(symbol)))
    catalog.flush()
    return read_bars([folder], SYMBOLS)


def bars_in_log(session: Path) -> Places:
    """What is in a log, by its frames alone."""
    found: Places = set()
    for frame in SessionReader(session):
        message = decode_message(frame.payload)
        bar = parse_message(message.topic, message.data, message.attributes, recv_ns=frame.recv_ns).message
        if isinstance(bar, Bar):
            found.add((bar.symbol, bar.ts_event_ns))
    return found


def bars_of(recording: Recording) -> dict[tuple[str, int], tuple[float, ...]]:
    names = ("open", "high", "low", "close", "volume")
    found: dict[tuple[str, int], tuple[float, ...]] = {}
    for symbol in recording.symbols:
        columns = recording.columns(symbol)
        values = zip(*(columns[name].tolist() for name in names), strict=True)
        for time, row in zip(columns["ts_event_ns"].tolist(), values, strict=True):
            assert (symbol, time) not in found, "doubled"
            found[symbol, time] = row
    return found


def test_a_recorder_that_is_killed_loses_nothing_flushed_and_its_catalog_is_the_source(
    start: Start, clean_environment: Path
) -> None:
    folder = clean_environment
    (folder / "symbols.txt").write_text("\n".join(SYMBOLS) + "\n")
    source = write_source(folder / "source")
    expected = bars_of(source)

    pubsub = start("pubsub", "--port", "0", "--project", "recorded")
    env = {
        "PUBSUB_EMULATOR_HOST": pubsub.wait_for_line(r"PUBSUB_EMULATOR_HOST=(\S+)")[1],
        "GOOGLE_CLOUD_PROJECT": "recorded",
        "ALPACA_API_KEY": "PKTEST",
        "ALPACA_SECRET_KEY": "not-a-secret",
        "AGENT_ID": "four",
    }
    # The market waits until the agent is there, so that the recorder is there before it.
    play = ("--rules", "backtrader", "--data", "source", "--speed", "3000", "--consumers", "1")
    exchange = start("exchange", "--port", "0", *play)
    match = exchange.wait_for_line(r"ALPACA_URL=(\S+) ALPACA_DATA_URL=(\S+) ALPACA_STREAM_URL=(\S+)")
    env.update(ALPACA_URL=match[1], ALPACA_DATA_URL=match[2], ALPACA_STREAM_URL=match[3])
    hub = start("hub", "--symbols", "symbols.txt", env=env)
    hub.wait_for_line("crypto: connected")

    recorder = start("record", env=env)
    recorder.wait_for_line("recording 3 symbols")
    agent = start("run", "--warmup", "0", env=env)
    recorder.wait_for_line(r"[\d,]+ messages recorded, [1-9]")
    (killed,) = find_sessions(folder / ".dry-work/four-record")
    wait_until(lambda: len(bars_in_log(killed)) > 50, lambda: recorder.output)
    recorder.send(signal.SIGKILL)
    recorder.wait()
    flushed = bars_in_log(killed)
    assert len(flushed) > 50
    assert flushed < set(expected)

    recorder = start("record", "--json", env=env)
    recorder.wait_for_line(r"before: catalog: [\d,]+ new bars")
    found = bars_of(read_bars([folder / "recordings"]))
    assert set(found) == flushed
    assert all(found[place] == expected[place] for place in found)
    assert agent.wait() == 0, agent.output
    # What came while the recorder was dead is published again, with all that it has already.
    again = start("publish", "--data", "source", env=env)
    assert again.wait() == 0, again.output
    total = sum(map(source.count, SYMBOLS))
    session = next(each for each in find_sessions(folder / ".dry-work/four-record") if each != killed)
    wait_until(lambda: len(bars_in_log(session)) == total, lambda: f"{recorder.output}\n{again.output}")
    recorder.send(signal.SIGTERM)
    result = recorder.result()
    assert result["failure"] is None
    assert result["not_recorded"] == 0
    assert result["catalog"]["conflicts"] == 0
    assert result["catalog"]["added"] == total - len(flushed)

    catalog = read_bars([folder / "recordings"], SYMBOLS)
    assert bars_of(catalog) == expected
    assert catalog.fingerprint == source.fingerprint
    # The agent's own recording is a part of the same, and becomes the same catalog.
    listed = start("data", "mine", "--compact", ".dry-work/four", "--json").result()
    assert [log["damaged"] for log in listed["logs"]] == []
    assert {held["symbol"]: held["rows"] for held in listed["recordings"]} == {
        symbol: source.count(symbol) for symbol in SYMBOLS
    }
    assert read_bars([folder / "mine"], SYMBOLS).fingerprint == source.fingerprint
    logs = start("data", ".dry-work", "--json").result()["logs"]
    found_logs = sorted((log["written_by"], log["closed"]) for log in logs)
    assert found_logs == [("record", False), ("record", True), ("run", True)]
    assert json.loads((killed / "in-catalog.json").read_text())["catalog"] == str(folder / "recordings")
