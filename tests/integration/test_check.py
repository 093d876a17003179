"""`dry-work check` against a real exchange and a real Pub/Sub server."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dry_work.cli import main
from dry_work.clock import SystemClock
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.engine.diagnosis import diagnose
from dry_work.engine.findings import Finding, Outcome
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.lease import AgentLease
from dry_work.feeds.subscriber import Subscriber
from dry_work.feeds.subscriptions import build_labels

PROJECT = "demo"
SECRET = "not-to-be-seen"
KEY = "PKNOTTOBESEEN"
TIMEOUT_S = 20.0


@pytest.fixture
def exchange() -> Iterator[ExchangeServer]:
    server = ExchangeServer(synthetic_day(["SPY", "BTC/USD"], minutes=5), keys={KEY: SECRET})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def pubsub() -> Iterator[EmbeddedPubSub]:
    server = EmbeddedPubSub(topics=[f"projects/{PROJECT}/topics/{name}" for name in ("market-data", "crypto-data")])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def subscriber(pubsub: EmbeddedPubSub) -> Iterator[Subscriber]:
    found = Subscriber(PROJECT, endpoint=pubsub.target)
    yield found
    found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "symbols.txt").write_text("SPY\nBTC/USD\n")
    return tmp_path


@pytest.fixture
def environment(exchange: ExchangeServer, pubsub: EmbeddedPubSub) -> dict[str, str]:
    return {
        "ALPACA_API_KEY": KEY,
        "ALPACA_SECRET_KEY": SECRET,
        "ALPACA_URL": exchange.url,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "PUBSUB_EMULATOR_HOST": pubsub.target,
        "AGENT_ID": "mine",
    }


def look(folder: Path, environment: dict[str, str], *, timeout_s: float = TIMEOUT_S) -> dict[str, Finding]:
    found = list(diagnose(folder, clock=SystemClock(), environment=environment, timeout_s=timeout_s))
    assert SECRET not in str(found)
    assert KEY not in str(found)
    return {finding.part: finding for finding in found}


def failures(found: dict[str, Finding]) -> set[str]:
    assert all(finding.remedy for finding in found.values() if finding.outcome is Outcome.FAILED)
    return {part for part, finding in found.items() if finding.outcome is Outcome.FAILED}


def test_where_all_is_well_nothing_fails_and_nothing_is_left_behind(
    folder: Path, environment: dict[str, str], pubsub: EmbeddedPubSub, subscriber: Subscriber
) -> None:
    found = look(folder, environment)
    assert {finding.outcome for finding in found.values()} == {Outcome.OK}, found
    assert found["account"].text.startswith("…")
    assert "at 127.0.0.1" in found["account"].text
    assert "requests a minute are left" in found["rate limit"].text
    assert found["clock"].text.startswith("a simulated exchange has its own time, 2024-06-11T09:30:00: not compared")
    assert found["symbols"].text == "known to the venue and traded"
    assert f"at {pubsub.target}, and can be subscribed to" in found["topic crypto-data"].text
    assert found["subscription agent-mine-market-data"].text.startswith("not there")
    assert subscriber.find("agent-mine-market-data") is None
    assert [path.name for path in folder.iterdir()] == ["symbols.txt"]


def test_refused_credentials_hide_neither_topics_nor_disk(folder: Path, environment: dict[str, str]) -> None:
    found = look(folder, {**environment, "ALPACA_SECRET_KEY": "another-secret"})
    assert failures(found) == {"account", "stock bars (iex)"}
    assert "refused the credentials (HTTP 401)" in found["account"].text
    assert found["topic market-data"].outcome is Outcome.OK
    assert found["state directory"].outcome is Outcome.OK
    assert "another-secret" not in str(found)


def test_symbols_and_topics_that_are_not_there_are_named(folder: Path, environment: dict[str, str]) -> None:
    (folder / "symbols.txt").write_text("SPY\nZZZZ\n")
    found = look(folder, {**environment, "MARKET_DATA_TOPIC": "nowhere-data"})
    assert failures(found) == {"symbols", "topic nowhere-data"}
    assert "has no asset ZZZZ" in found["symbols"].text
    assert "gcloud pubsub topics create nowhere-data --project demo" in found["topic nowhere-data"].remedy


def test_servers_that_are_not_there_are_named(folder: Path, environment: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    found = look(
        folder, {**environment, "ALPACA_URL": f"http://{address}", "PUBSUB_EMULATOR_HOST": address}, timeout_s=1.0
    )
    assert failures(found) == {"account", "market data", "topic market-data", "topic crypto-data"}
    assert f"http://{address} does not answer" in found["account"].text
    assert address in found["topic market-data"].text
    assert "PUBSUB_EMULATOR_HOST" in found["topic market-data"].remedy


def test_a_server_that_never_answers_takes_the_time_out_and_no_longer(
    folder: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found = look(folder, {**environment, "ALPACA_URL": url}, timeout_s=0.5)
    assert "ReadTimeout" in found["account"].text
    assert failures(found) == {"account", "market data"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]


def test_whose_the_subscription_is_shows(folder: Path, environment: dict[str, str], subscriber: Subscriber) -> None:
    name = "agent-mine-market-data"
    subscriber.create(name, "market-data", labels=build_labels("somebody-else", SystemClock()))
    found = look(folder, environment)[f"subscription {name}"]
    assert found.outcome is Outcome.WARNING
    assert f"belongs to another state directory: process {os.getpid()} on " in found.text
    assert "--take-over" in found.remedy
    subscriber.delete(name)
    with AgentLease(folder / ".dry-work" / "mine", "mine") as lease:
        subscriber.create(name, "market-data", labels=build_labels(lease.nonce, SystemClock()))
        all_found = look(folder, environment)
    assert all_found[f"subscription {name}"].outcome is Outcome.OK
    assert "is there and ours" in all_found[f"subscription {name}"].text
    assert f"held by process {os.getpid()}" in all_found["agent id"].text


def test_the_command_exits_with_zero_and_prints_no_secret(
    folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(os.environ):
        if name.startswith(("ALPACA", "PAPER_", "GOOGLE_CLOUD", "PUBSUB", "AGENT_ID", "MARKET_DATA", "CRYPTO_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    with pytest.raises(SystemExit) as caught:
        main(["check", "--json", "--timeout", str(TIMEOUT_S)])
    shown = capsys.readouterr()
    assert caught.value.code == 0, shown.out
    assert json.loads(shown.out.splitlines()[-1])["ok"] is True
    for secret in (KEY, SECRET):
        assert secret not in shown.out + shown.err
