"""A recorder on the embedded Pub/Sub server, and recordings of runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from dry_work.cli.record import build_settings
from dry_work.cli.record import command as record_command
from dry_work.cli.run import build_settings as build_run_settings
from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.engine.runner import Runner
from dry_work.errors import ConfigError, LeaseHeldError
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import read_bars
from dry_work.feeds.router import PubSubMarketSource
from dry_work.market.messages import Bar, News
from dry_work.recording.catalog import CatalogWriter
from dry_work.recording.compaction import compact_sessions
from dry_work.recording.log import LogWriter, SessionReader, find_sessions
from dry_work.recording.recorder import RecordedMessage, Recorder, decode_message
from dry_work.recording.session import RecordingSession, RecordResult, RecordSettings
from dry_work.storage import FolderStorage
from dry_work.wakeup import Wakeup
from dry_work.wire.pubsub import encode_bar, encode_news

PROJECT = "demo"
DEADLINE_S = 60.0
START_NS = 1_718_112_600_000_000_000


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def bar(minute: int, symbol: str = "SPY", close: float = 10.0) -> Bar:
    prices = {"open": close, "high": close, "low": close, "close": close}
    return Bar(symbol=symbol, ts_event_ns=START_NS + minute * MINUTE_NS, volume=5.0, **prices)


class Server:
    """An embedded server with a publisher."""

    def __init__(self) -> None:
        topics = [f"projects/{PROJECT}/topics/{name}" for name in ("market-data", "crypto-data")]
        self.pubsub = EmbeddedPubSub(topics=topics)
        self.pubsub.start()
        self._channel = grpc.insecure_channel(self.pubsub.target)
        self._publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        self._subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))

    def publish(self, *messages: tuple[bytes, Mapping[str, str]], topic: str = "market-data") -> None:
        self._publisher.publish(
            topic=f"projects/{PROJECT}/topics/{topic}",
            messages=[{"data": data, "attributes": dict(attributes)} for data, attributes in messages],
        )

    def subscriptions(self) -> list[str]:
        found = self._subscriber.list_subscriptions(project=f"projects/{PROJECT}")
        return sorted(each.name.rpartition("/")[2] for each in found)

    def close(self) -> None:
        self._channel.close()
        self.pubsub.stop()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


class Running:
    """A recording session on a thread of its own."""

    def __init__(self, settings: RecordSettings) -> None:
        self.lines: list[str] = []
        self.session = RecordingSession(settings, tell=self.lines.append)
        self._results: list[RecordResult] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self.session.run())
        except BaseException as error:
            self._errors.append(error)

    def wait_for_line(self, beginning: str) -> str:
        wait_until(lambda: not self._thread.is_alive() or any(each.startswith(beginning) for each in self.lines))
        return next(each for each in self.lines if each.startswith(beginning))

    def finish(self) -> RecordResult:
        """Wait for the end."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def stop(self) -> RecordResult:
        self.session.stop()
        return self.finish()


Record = Callable[..., Running]


@pytest.fixture
def record(server: Server, tmp_path: Path) -> Iterator[Record]:
    started: list[Running] = []

    def start(**changes: Any) -> Running:
        settings = {
            "symbols": ("SPY", "BTC/USD"),
            "project": PROJECT,
            "market_topic": "market-data",
            "crypto_topic": "crypto-data",
            "endpoint": server.pubsub.target,
            "state_dir": tmp_path / "state",
            "out": str(tmp_path / "out"),
            "agent_id": "me",
            **changes,
        }
        started.append(Running(RecordSettings(**settings)))
        return started[-1]

    yield start
    for each in started:
        each.session.stop()
        each._thread.join(DEADLINE_S)


def messages_below(folder: Path) -> list[RecordedMessage]:
    return [decode_message(frame.payload) for session in find_sessions(folder) for frame in SessionReader(session)]


def test_everything_that_is_received_is_recorded_and_becomes_the_catalog(
    server: Server, record: Record, tmp_path: Path
) -> None:
    running = record()
    assert running.wait_for_line("recording 2 symbols of project demo into ").endswith(f"catalog: {tmp_path / 'out'}")
    assert server.subscriptions() == ["agent-me-record-crypto-data", "agent-me-record-market-data"]
    before_ns = time.time_ns()
    bars = [encode_bar(bar(minute), epoch="e", seq=minute + 1) for minute in range(3)]
    foreign = encode_bar(bar(0, "IBM"), epoch="e", seq=4)
    news = encode_news(News(symbols=("SPY",), headline="h"))
    broken = (b"not JSON", {"symbol": "SPY"})
    # Doubled, of another symbol, no bar, and unusable: the log takes all of it.
    server.publish(*bars, bars[1], foreign, news, broken)
    server.publish(encode_bar(bar(0, "BTC/USD", 67_000.0)), topic="crypto-data")
    wait_until(lambda: len(messages_below(tmp_path / "state")) == 8)
    result = running.stop()
    assert (result.messages, result.not_recorded, result.failure) == (8, 0, "")
    assert result.folder is not None
    assert result.compaction is not None
    assert (result.compaction.bars, result.compaction.other_symbols) == (5, 1)
    assert dict(result.compaction.dropped) == {"not JSON": 1}
    assert json.loads(json.dumps(result.to_json()))["catalog"]["added"] == 4
    reader = SessionReader(result.folder)
    frames = list(reader)
    assert reader.head is not None
    assert reader.head.facts == {"agent_id": "me-record", "project": PROJECT, "symbols": ["SPY", "BTC/USD"]}
    own = [frame for frame in frames if decode_message(frame.payload).topic == "market-data"]
    received = [decode_message(frame.payload) for frame in own]
    assert [(each.data, dict(each.attributes)) for each in received] == [*bars, bars[1], foreign, news, broken]
    assert [frame.venue_ns for frame in own[:3]] == [START_NS + minute * MINUTE_NS for minute in range(3)]
    assert own[-1].venue_ns == 0
    assert all(before_ns <= frame.recv_ns <= time.time_ns() for frame in frames)
    assert all(abs(each.publish_ns - frame.recv_ns) < 60 * SECOND_NS for each, frame in zip(received, own, strict=True))
    assert len({each.message_id for each in received}) == 7
    assert read_bars([tmp_path / "out"]).symbols == ("BTC/USD", "SPY")
    assert server.subscriptions() == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("dry-work")]


def test_it_ends_by_itself_when_its_time_is_over(record: Record) -> None:
    result = record(duration_ns=SECOND_NS // 10).finish()
    assert (result.messages, result.folder, result.failure) == (0, None, "")


def test_a_second_recorder_with_the_same_id_is_refused(record: Record, tmp_path: Path) -> None:
    running = record()
    running.wait_for_line("recording")
    with pytest.raises(LeaseHeldError, match="agent id 'me-record' is in use"):
        record().finish()
    with pytest.raises(LeaseHeldError, match="belongs to another process"):
        record(state_dir=tmp_path / "elsewhere").finish()
    assert running.stop().failure == ""
    assert find_sessions(tmp_path / "elsewhere") == [], "a start that failed leaves no log"


def test_what_a_killed_recorder_left_comes_into_the_catalog_at_the_next_start(record: Record, tmp_path: Path) -> None:
    root = tmp_path / "state" / "me-record" / "recordings"
    recorder = Recorder(root, writer="record", facts={"symbols": ["SPY"]}, session="20240101T000000Z-dead")
    recorder.start()
    for minute in range(5):
        data, attributes = encode_bar(bar(minute))
        message = RecordedMessage("market-data", data, attributes)
        recorder.record(message, venue_ns=0, recv_ns=START_NS + 86_400 * SECOND_NS)
    recorder.stop()
    log = root / "20240101T000000Z-dead" / "000001.dwlog"
    log.write_bytes(log.read_bytes()[:-100])
    running = record()
    assert running.wait_for_line("before: 1 recorded session") == "before: 1 recorded session: 4 messages, 4 bars"
    running.wait_for_line("before: 1 of the sessions ended without being closed")
    running.stop()
    assert read_bars([tmp_path / "out"]).count("SPY") == 4
    again = record()
    again.wait_for_line("recording")
    again.stop()
    assert not any(line.startswith("before") for line in again.lines), "it is in the catalog already"
    other = record(out=str(tmp_path / "other"))
    assert other.wait_for_line("before: catalog") == "before: catalog: 4 new bars; 1 files written, 0 unchanged"
    other.stop()


def test_a_catalog_that_cannot_be_written_keeps_the_log_and_says_how_to_go_on(
    server: Server, record: Record, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bars").write_text("in the way")
    running = record()
    running.wait_for_line("recording")
    server.publish(encode_bar(bar(0)))
    wait_until(lambda: len(messages_below(tmp_path / "state")) == 1)
    result = running.stop()
    assert "the catalog could not be completed" in result.failure
    assert result.compaction is None
    assert f"`dry-work data {tmp_path / 'out'} --compact" in running.lines[-1]
    (tmp_path / "out" / "bars").unlink()
    compact_sessions(find_sessions(tmp_path / "state"), CatalogWriter(FolderStorage(tmp_path / "out")))
    assert read_bars([tmp_path / "out"]).count("SPY") == 1


def test_a_recorder_that_cannot_write_its_log_ends_and_says_so(server: Server, record: Record, tmp_path: Path) -> None:
    (tmp_path / "state" / "me-record").mkdir(parents=True)
    (tmp_path / "state" / "me-record" / "recordings").write_text("in the way")
    running = record()
    result = running.finish()
    assert result.failure.startswith("the recording ended early: ")
    assert (result.folder, result.messages) == (None, 0)
    assert any(line.startswith("the recording ended early (") for line in running.lines)
    assert server.subscriptions() == []


def test_a_topic_that_is_missing_is_told(record: Record) -> None:
    with pytest.raises(ConfigError, match="topic 'nothing' does not exist"):
        record(market_topic="nothing").finish()


def test_a_source_goes_on_when_its_recorder_cannot(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file", writer="test")
    recorder.start()
    source = PubSubMarketSource(
        project_id=PROJECT,
        symbols=("SPY",),
        agent_id="a",
        owner_nonce="n",
        endpoint=server.pubsub.target,
        watermarks=False,
        grace_s=0.0,
        recorder=recorder,
    )
    try:
        source.start(Wakeup())
        server.publish(encode_bar(bar(0)))
        wait_until(lambda: source.take() is not None)
        assert source.counters()["not_recorded_messages"] == 1
    finally:
        source.stop()
        recorder.stop()


# Runs


def run_locally(folder: Path, *, state_dir: Path | None) -> Any:
    (folder / "symbols.txt").write_text("SPY\nBTC/USD\n")
    source = synthetic_day(("SPY", "BTC/USD"), minutes=30)
    catalog = CatalogWriter(FolderStorage(folder / "source"))
    for symbol in source.symbols:
        catalog.add("bars", symbol, dict(source.columns(symbol)))
    catalog.flush()
    options = {"local": True, "data": (str(folder / "source"),), "state_dir": state_dir and str(state_dir)}
    return Runner(build_run_settings(options, {}, {}), tell=lambda _: None).run()


def test_a_local_run_records_into_a_state_directory_that_was_given(clean_environment: Path) -> None:
    result = run_locally(clean_environment, state_dir=clean_environment / "state")
    (session,) = find_sessions(clean_environment / "state")
    assert session.parent.name == "recordings"
    reader = SessionReader(session)
    assert len(list(reader)) > sum(result.bars.values()), "bars and watermarks"
    assert reader.is_closed
    assert reader.head is not None
    assert (reader.head.writer, reader.head.facts["mode"]) == ("run", "local")
    compact_sessions([session], CatalogWriter(FolderStorage(clean_environment / "out")))
    source = read_bars([clean_environment / "source"])
    assert read_bars([clean_environment / "out"]).fingerprint == source.fingerprint


def test_a_local_run_without_a_state_directory_records_nothing(clean_environment: Path) -> None:
    run_locally(clean_environment, state_dir=None)
    assert find_sessions(clean_environment) == []
    assert not (clean_environment / ".dry-work").exists()


def test_a_run_whose_recording_fails_goes_on_and_says_so(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LogWriter, "flush", refuse)
    result = run_locally(clean_environment, state_dir=clean_environment / "state")
    assert sum(result.bars.values()) > 0
    assert any(note.startswith("the recording ended early ([Errno 28] No space") for note in result.notes)


# Settings


def test_settings_are_those_of_a_run(clean_environment: Path) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    environment = {
        "GOOGLE_CLOUD_PROJECT": "p",
        "AGENT_ID": "x" * 63,
        "MARKET_DATA_TOPIC": "m",
        "CRYPTO_DATA_TOPIC": "c",
        "PUBSUB_EMULATOR_HOST": "h:1",
    }
    found = build_settings({"duration": "90s", "out": "gs://b/x", "state_dir": "s"}, {}, environment)
    assert (found.symbols, found.project, found.market_topic, found.crypto_topic) == (("SPY",), "p", "m", "c")
    assert (found.endpoint, found.out, found.duration_ns) == ("h:1", "gs://b/x", 90 * SECOND_NS)
    assert found.recorder_id == "x" * 56 + "-record"
    assert found.folder == Path("s") / found.recorder_id
    alone = build_settings({}, {}, {"GOOGLE_CLOUD_PROJECT": "p"})
    assert (alone.out, alone.duration_ns, alone.endpoint) == ("recordings", None, None)
    assert alone.recorder_id == build_settings({}, {}, {"GOOGLE_CLOUD_PROJECT": "p"}).recorder_id
    assert alone.recorder_id.startswith("record-")
    other = build_settings({"state_dir": "elsewhere"}, {}, {"GOOGLE_CLOUD_PROJECT": "p"})
    assert other.recorder_id != alone.recorder_id, "each folder has a recorder of its own"


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({}, {}, "no Google Cloud project: set GOOGLE_CLOUD_PROJECT"),
        ({"duration": "soon"}, {"GOOGLE_CLOUD_PROJECT": "p"}, "--for 'soon': expected a number and a unit"),
        ({"symbols": "none.txt"}, {"GOOGLE_CLOUD_PROJECT": "p"}, "none.txt: no such symbols file"),
        ({}, {"GOOGLE_CLOUD_PROJECT": "p", "AGENT_ID": "a b"}, "AGENT_ID 'a b'"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    clean_environment: Path, options: dict[str, Any], environment: dict[str, str], message: str
) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    with pytest.raises(ConfigError, match=message):
        build_settings(options, {}, environment)


def test_the_command_records_for_a_time_and_prints_what_it_did(
    server: Server, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.pubsub.target)
    found = CliRunner().invoke(record_command, ["--for", "1s", "--json"], standalone_mode=False)
    assert found.exception is None
    assert found.return_value == 0
    lines = found.output.splitlines()
    assert lines[0].startswith("recording 1 symbols of project demo into .dry-work/record-")
    assert lines[1] == "0 messages recorded"
    assert json.loads(lines[-1])["messages"] == 0
