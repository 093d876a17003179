"""`dry-work check` against a real exchange and a real Pub/Sub server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from dry_work.cli import main
from dry_work.clock import SECOND_NS, SystemClock
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.engine.diagnosis import diagnose
from dry_work.engine.feed_checks import check_feed
from dry_work.engine.findings import Finding, Outcome, Subject
from dry_work.engine.remote_checks import Web, check_clock, check_market_data
from dry_work.exchange.faults import Fault
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.lease import AgentLease
from dry_work.feeds.subscriber import Subscriber
from dry_work.feeds.subscriptions import build_labels
from dry_work.settings import Credentials

from .feed_stack import TOKEN, FeedStack

PROJECT = "demo"
SECRET = "not-to-be-seen"
KEY = "PKNOTTOBESEEN"
TIMEOUT_S = 40.0
REFUSAL = "subscription does not permit querying recent SIP data"


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
    slow = {"state directory"} if "on the disk in" in found["state directory"].text else set()  # by other work
    assert {part for part, finding in found.items() if finding.outcome is not Outcome.OK} <= slow, found
    assert found["account"].text.startswith("…")
    assert "at 127.0.0.1" in found["account"].text
    assert found["permissions"].text == "shares, short selling, no options, crypto"
    assert "requests a minute are left" in found["rate limit"].text
    assert found["exchange"].text == "simulated, rules backtrader, in lock-step, waiting: slice 0 of 5"
    bound = re.search(r"\(± (\d+\.\d\d) s\)$", found["clock"].text)
    assert bound is not None
    assert float(bound[1]) >= 0.5  # a `Date` has whole seconds
    assert found["calendar"].text.startswith("the venue has the same 2")
    assert found["stock bars (iex)"].text == "can be read"
    assert found["symbols"].text == "known to the venue and traded"
    assert f"at {pubsub.target}, and can be subscribed to" in found["topic crypto-data"].text
    assert found["subscription agent-mine-market-data"].text.startswith("not there")
    assert subscriber.find("agent-mine-market-data") is None
    assert [path.name for path in folder.iterdir()] == ["symbols.txt"]


def test_refused_credentials_hide_neither_topics_nor_disk(folder: Path, environment: dict[str, str]) -> None:
    found = look(folder, {**environment, "ALPACA_SECRET_KEY": "another-secret"})
    assert failures(found) == {"account", "stock bars (iex)"}
    assert "refused the credentials (HTTP 401)" in found["account"].text
    assert found["stock bars (iex)"].remedy == "see what is said of the account"
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
        found = look(folder, {**environment, "ALPACA_URL": url}, timeout_s=4.0)
    assert "ReadTimeout" in found["account"].text
    assert failures(found) == {"account", "market data"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]


class LateClock(SystemClock):
    """This machine's clock, behind."""

    def time_ns(self) -> int:
        return super().time_ns() - 90 * SECOND_NS


def test_a_clock_that_is_wrong_is_a_failure(folder: Path, environment: dict[str, str]) -> None:
    found = {each.part: each for each in diagnose(folder, clock=LateClock(), environment=environment, timeout_s=20.0)}
    assert found["clock"].outcome is Outcome.FAILED
    assert "ahead" in found["clock"].text
    assert "timedatectl" in found["clock"].remedy


def faulty(*faults: Fault) -> ExchangeServer:
    return ExchangeServer(synthetic_day(["SPY", "BTC/USD"], minutes=5), keys={KEY: SECRET}, faults=faults)


@pytest.mark.parametrize(
    ("status", "text"),
    [(403, "refused the credentials (HTTP 403)"), (429, "no request is left in this minute"), (503, "HTTP 503")],
)
def test_each_refusal_of_the_account_is_told_by_its_name(
    folder: Path, environment: dict[str, str], status: int, text: str
) -> None:
    server = faulty(Fault(on="http", kind="status", status=status, path="/v2/account", times=None))
    server.start()
    try:
        found = look(folder, {**environment, "ALPACA_URL": server.url})
    finally:
        server.stop()
    assert failures(found) == {"account"}
    assert text in found["account"].text
    assert found["stock bars (iex)"].outcome is Outcome.OK


class UnpaidData(BaseHTTPRequestHandler):
    """A market-data API that answers as Alpaca's does to a key without a subscription."""

    def do_GET(self) -> None:
        is_paid = "feed=sip" not in self.path
        text = '{"bars": {"SPY": [{"t": "2024-06-11T13:31:00Z"}]}}' if is_paid else f'{{"message": "{REFUSAL}"}}'
        self.send_response(200 if is_paid else 403)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def unpaid() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), UnpaidData)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(TIMEOUT_S)


def test_a_feed_that_is_not_paid_for_is_named_with_the_one_that_can_be_read(
    folder: Path, environment: dict[str, str], unpaid: str
) -> None:
    found = look(folder, {**environment, "ALPACA_DATA_URL": unpaid, "ALPACA_FEED": "sip"})
    iex = look(folder, {**environment, "ALPACA_DATA_URL": unpaid})["stock bars (iex)"]
    assert failures(found) == {"stock bars (sip)"}
    assert found["stock bars (sip)"].text == f"HTTP 403, {REFUSAL}; iex can be read"
    assert "ALPACA_FEED=iex" in found["stock bars (sip)"].remedy
    assert iex.text == "can be read; a bar of SPY: 2024-06-11 13:31 UTC"


@pytest.mark.parametrize(
    ("variables", "part", "outcome"),
    [
        ({"STOCK_STREAM_FEED": "SIP"}, "stock bars (sip)", Outcome.FAILED),
        ({"ALPACA_FEED": "test"}, "stock bars (iex)", Outcome.OK),
        ({"ALPACA_FEED": "sip", "STOCK_STREAM_FEED_TYPE": "iex"}, "stock bars", Outcome.FAILED),
        ({"ALPACA_FEED": "gold"}, "stock bars", Outcome.FAILED),
    ],
)
def test_the_stock_feed_that_is_asked_for_is_that_of_a_runs_history(
    folder: Path, unpaid: str, variables: dict[str, str], part: str, outcome: Outcome
) -> None:
    urls = {"ALPACA_URL": unpaid, "ALPACA_DATA_URL": unpaid}
    keys = {"ALPACA_API_KEY": KEY, "ALPACA_SECRET_KEY": SECRET}
    subject = Subject(folder=folder, environment={**urls, **keys, **variables}, toml={}, timeout_s=TIMEOUT_S)
    found = next(iter(check_market_data(subject)))
    assert (found.part, found.outcome) == (part, outcome)
    assert bool(found.remedy) is (outcome is Outcome.FAILED)


def test_a_venue_whose_clock_differs_is_told(exchange: ExchangeServer) -> None:
    # Taken for a venue of real time, the exchange is years behind: it has the time of its recording.
    with Web(Credentials(key=KEY, secret=SECRET), exchange.url, timeout_s=TIMEOUT_S) as web:
        found = check_clock(web, SystemClock())
    assert found.outcome is Outcome.FAILED
    assert "behind" in found.text
    assert "timedatectl" in found.remedy


def test_an_account_whose_trading_is_suspended_is_a_failure(folder: Path, environment: dict[str, str]) -> None:
    settings = {"suspend_trade": True, "no_shorting": True}
    headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    with requests.Session() as web:
        web.trust_env = False
        url = f"{environment['ALPACA_URL']}/v2/account/configurations"
        web.patch(url, json=settings, headers=headers, timeout=60.0).raise_for_status()
    found = look(folder, environment)
    assert failures(found) == {"account"}
    assert "suspended by the account's own settings" in found["account"].text
    assert "no short selling" in found["permissions"].text


def test_subscriptions_on_topics_that_are_not_read_are_named(
    folder: Path, environment: dict[str, str], subscriber: Subscriber
) -> None:
    subscriber.create("agent-mine-old-topic", "market-data", labels={})
    subscriber.create("agent-other-market-data", "market-data", labels={})
    found = look(folder, environment)["subscriptions"]
    assert found.outcome is Outcome.WARNING
    assert found.text.startswith("on topics that are not read here: agent-mine-old-topic; ")
    assert "gcloud pubsub subscriptions delete agent-mine-old-topic --project demo" in found.remedy


def test_a_subscription_that_a_dead_run_left_is_told(
    folder: Path, environment: dict[str, str], subscriber: Subscriber
) -> None:
    state = folder / ".dry-work" / "mine"
    with AgentLease(state, "mine") as lease:
        lock = (state / "agent-mine.lock").read_text()
        labels = build_labels(lease.nonce, SystemClock())
    (state / "agent-mine.lock").write_text(lock.replace(f'"pid": {os.getpid()}', '"pid": 99999999'))
    subscriber.create("agent-mine-market-data", "market-data", labels=labels)
    found = look(folder, environment)["subscription agent-mine-market-data"]
    assert found.outcome is Outcome.OK
    assert found.text.endswith("which ended without deleting it; the next run makes it anew")


@pytest.mark.parametrize("kind", ["ws", "grpc", "nats", "redis"])
def test_a_hub_is_reached_over_each_of_its_ways_and_told_when_it_is_not(
    folder: Path, environment: dict[str, str], kind: str
) -> None:
    part = f"hub over {kind}"
    with contextlib.closing(FeedStack(kind, is_guarded=True)) as stack:
        at = f"127.0.0.1:{stack.server_port}"
        right = hub_variables(kind, at, TOKEN)
        found = look_at_feed(folder, {**environment, **right}, kind)
        assert (found.part, found.outcome) == (part, Outcome.OK), found
        assert found.text.endswith(", and 2 symbols can be subscribed to")
        stack.wait_unsubscribed()  # nothing is left of it
        found = look_at_feed(folder, {**environment, **hub_variables(kind, at, "another-token")}, kind)
        assert found.outcome is Outcome.FAILED
        assert "refuses" in found.text
        assert found.remedy
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{free.getsockname()[1]}"
        found = look_at_feed(folder, {**environment, **hub_variables(kind, nowhere, TOKEN)}, kind)
    assert found.outcome is Outcome.FAILED
    assert found.text.startswith("no hub answers at ")
    assert "dry-work hub --sinks" in found.remedy


def test_a_hub_that_never_answers_takes_the_time_out_and_no_longer(folder: Path, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        for kind in ("ws", "grpc", "nats", "redis"):
            found = look_at_feed(folder, {**environment, **hub_variables(kind, at, TOKEN)}, kind, timeout_s=0.5)
            assert (found.part, found.outcome) == (f"hub over {kind}", Outcome.FAILED), found
            assert found.text.startswith("no hub answers at "), found


def hub_variables(kind: str, at: str, token: str) -> dict[str, str]:
    host, _, port = at.rpartition(":")
    by_kind = {
        "ws": {"STREAM_PROXY_WS_URL": f"ws://{at}", "HUB_TOKEN": token},
        "grpc": {"STREAM_PROXY_ENDPOINT": f"http://{at}", "HUB_TOKEN": token},
        "nats": {"NATS_URL": f"nats://{at}", "NATS_USER": "user", "NATS_PASSWORD": token},
        "redis": {"REDIS_HOST": host, "REDIS_PORT": port, "REDIS_PASSWORD": token},
    }
    return by_kind[kind]


def look_at_feed(folder: Path, environment: dict[str, str], kind: str, *, timeout_s: float = TIMEOUT_S) -> Finding:
    subject = Subject(folder=folder, environment=environment, toml={}, feed_given=kind, timeout_s=timeout_s)
    (found,) = check_feed(subject)
    assert TOKEN not in str(found)
    return found


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
        if name.startswith(
            ("ALPACA", "PAPER_", "GOOGLE_CLOUD", "PUBSUB", "AGENT_ID", "MARKET_DATA", "CRYPTO_", "DRY_WORK")
        ):
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
