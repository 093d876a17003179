"""What `dry-work check` says of what it finds, part by part."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from dry_work.cli import main
from dry_work.clock import ManualClock
from dry_work.engine.diagnosis import (
    check_lease,
    check_packages,
    check_python,
    check_state_directory,
    check_symbols_file,
    diagnose,
    read_holder,
)
from dry_work.engine.findings import Finding, Outcome, Subject
from dry_work.engine.remote_checks import (
    build_data_requests,
    describe_account,
    describe_entitlement,
    describe_rate_limit,
    describe_skew,
    mask_id,
    wanted_topics,
)
from dry_work.feeds.lease import AgentLease
from dry_work.settings import LIVE_URL, PAPER_URL

DATA_URL = "https://data.alpaca.markets"
SIMULATED = "http://127.0.0.1:8090"


def subject(folder: Path, environment: Mapping[str, str] | None = None, **settings: Any) -> Subject:
    return Subject(folder=folder, environment=environment or {}, toml={}, **settings)


def answer(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> requests.Response:
    found = requests.Response()
    found.status_code = status
    found._content = json.dumps(body).encode()
    found.headers.update(headers or {})
    return found


def account(**fields: Any) -> dict[str, Any]:
    money = {"cash": "1", "equity": "1", "buying_power": "1"}
    return {"id": "904837e3-3b76-47ec", "account_number": "PA3XYZ7788", "status": "ACTIVE", **money, **fields}


def test_python_is_told_and_an_old_one_is_a_failure() -> None:
    assert check_python().outcome is Outcome.OK
    old = check_python((3, 10, 4))
    assert (old.outcome, old.remedy) == (Outcome.FAILED, "use Python 3.11 or newer")


def test_packages_are_compared_only_when_the_file_is_there(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    assert check_packages(file) == []
    file.write_text("# tested\nclick==8.0.0\nmsgspec==0.20\nnot-of-ours==1\n")
    versions = {"click": "8.0.0", "msgspec": "0.20"}
    assert [(f.outcome, f.text) for f in check_packages(file, installed=versions.__getitem__)] == [
        (Outcome.OK, "2 packages have the tested versions")
    ]
    versions["click"] = "9.1"
    (other,) = check_packages(file, installed=versions.__getitem__)
    assert (other.outcome, other.text) == (Outcome.WARNING, "other versions than tested: click 9.1 (tested: 8.0.0)")

    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    (missing,) = check_packages(file, installed=nothing)
    assert (missing.outcome, missing.text) == (Outcome.FAILED, "not installed: click, msgspec")
    assert missing.remedy == "pip install -c constraints.txt dry-work"


def test_a_symbols_file_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    assert check_symbols_file(subject(tmp_path)).outcome is Outcome.FAILED
    (tmp_path / "symbols.txt").write_text("\n".join(f"S{letter}" for letter in "ABCDEFGHIJ"))
    assert check_symbols_file(subject(tmp_path)).text == "SA, SB, SC, SD, SE, SF, SG, SH and 2 more"
    assert "SB" not in check_symbols_file(subject(tmp_path, symbols="none.txt")).text


@pytest.mark.parametrize(("free", "outcome"), [(10**12, Outcome.OK), (10**8, Outcome.WARNING), (10**6, Outcome.FAILED)])
def test_the_state_directory_needs_room(tmp_path: Path, free: int, outcome: Outcome) -> None:
    found = check_state_directory(subject(tmp_path, state_dir="deep/state"), usage=lambda _: SimpleNamespace(free=free))
    assert found.outcome is outcome
    assert "made at the first run" in found.text
    assert bool(found.remedy) == (outcome is not Outcome.OK)
    assert not list(tmp_path.iterdir())  # looking makes nothing


def test_the_state_directory_has_to_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = check_state_directory(subject(tmp_path, state_dir="file/state"))
    assert (found.outcome, found.remedy) == (Outcome.FAILED, "give a writable folder with --state-dir")
    if os.geteuid() == 0:
        return  # whom no permission stops
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written: Permission denied" in check_state_directory(subject(tmp_path, state_dir="locked")).text


def test_the_holder_of_the_agent_id_is_named_and_not_disturbed(tmp_path: Path) -> None:
    mine = subject(tmp_path, {"AGENT_ID": "mine"}, state_dir="state")
    assert check_lease(subject(tmp_path)).outcome is Outcome.WARNING
    assert check_lease(subject(tmp_path, {"AGENT_ID": "a/b"})).outcome is Outcome.FAILED
    assert check_lease(mine).text == "mine, held by no process"
    with AgentLease(tmp_path / "state", "mine"):
        found = check_lease(mine)
        assert found.outcome is Outcome.WARNING
        assert f"mine is held by process {os.getpid()} on " in found.text
    assert check_lease(mine).outcome is Outcome.OK


def test_what_a_dead_process_left_in_its_lock_is_no_holder(tmp_path: Path) -> None:
    lock = tmp_path / "agent-x.lock"
    lock.write_text('{"pid": 1, "host": "h", "since": "then"}')
    assert read_holder(lock) is None
    with lock.open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert read_holder(lock) == "process 1 on h since then"
        lock.write_text("no json")
        assert read_holder(lock) == "another process"


def test_an_account_is_told_without_its_number() -> None:
    found = describe_account(answer(200, account()), PAPER_URL)
    assert (found.outcome, found.text) == (Outcome.OK, "…7788, paper, active")
    assert describe_account(answer(200, account()), LIVE_URL).text == "…7788, LIVE, real money, active"
    assert describe_account(answer(200, account()), SIMULATED).text == "…7788, at 127.0.0.1:8090, active"
    assert mask_id("abc") == "…"


@pytest.mark.parametrize(
    ("given", "outcome", "text"),
    [
        (answer(200, account(trading_blocked=True)), Outcome.FAILED, "trading is blocked"),
        (answer(200, account(status="ONBOARDING")), Outcome.WARNING, "onboarding"),
        (answer(401, {"message": "no"}), Outcome.FAILED, "refused the credentials (HTTP 401)"),
        (answer(403, {"message": "no"}), Outcome.FAILED, "refused the credentials (HTTP 403)"),
        (answer(500, {"code": 1, "message": "broken"}), Outcome.FAILED, "HTTP 500, broken"),
        (answer(200, {"id": "x"}), Outcome.FAILED, "the answer is no account"),
        (answer(200, []), Outcome.FAILED, "the answer is no account"),
    ],
)
def test_what_is_wrong_with_an_account_is_told_with_its_fix(
    given: requests.Response, outcome: Outcome, text: str
) -> None:
    found = describe_account(given, PAPER_URL)
    assert found.outcome is outcome
    assert text in found.text
    assert found.remedy


def test_the_rate_limit_is_told_and_warned_of_when_little_is_left() -> None:
    headers = {"X-RateLimit-Limit": "200", "X-RateLimit-Remaining": "150"}
    assert describe_rate_limit(headers).text == "150 of 200 requests a minute are left"
    assert describe_rate_limit({**headers, "X-RateLimit-Remaining": "5"}).outcome is Outcome.WARNING
    assert describe_rate_limit({}).outcome is Outcome.OK
    assert describe_rate_limit({**headers, "X-RateLimit-Limit": "many"}).text == "the venue does not tell of one"


@pytest.mark.parametrize(
    ("skew_s", "round_trip_s", "outcome"),
    [
        (0.5, 0.1, Outcome.OK),
        (-5.0, 0.1, Outcome.WARNING),
        (5.0, 8.0, Outcome.OK),  # a slow answer says nothing for sure
        (-90.0, 0.1, Outcome.FAILED),
    ],
)
def test_clocks_that_differ_are_told(skew_s: float, round_trip_s: float, outcome: Outcome) -> None:
    found = describe_skew(skew_s, round_trip_s)
    assert found.outcome is outcome
    assert ("ahead" in found.text) == (skew_s > 0)


def test_market_data_is_asked_for_at_alpaca_by_the_newest_bars_and_elsewhere_by_history() -> None:
    assert build_data_requests(["IBM", "SPY", "BTC/USD"], url=DATA_URL, feed="sip") == [
        ("stock bars (sip)", "/v2/stocks/bars/latest", {"symbols": "IBM", "feed": "sip"}),
        ("crypto bars", "/v1beta3/crypto/us/latest/bars", {"symbols": "BTC/USD"}),
    ]
    assert build_data_requests(["BTC/USD"], url=SIMULATED, feed="iex") == [
        ("crypto bars", "/v1beta3/crypto/us/bars", {"symbols": "BTC/USD", "timeframe": "1Min", "limit": "1"})
    ]


@pytest.mark.parametrize(
    ("status", "outcome", "remedy"),
    [
        (200, Outcome.OK, ""),
        (403, Outcome.FAILED, "ALPACA_FEED=iex"),
        (422, Outcome.FAILED, "set ALPACA_FEED to iex, sip or delayed_sip"),
        (500, Outcome.WARNING, "try again later"),
    ],
)
def test_a_feed_that_is_not_subscribed_is_told_with_its_fix(status: int, outcome: Outcome, remedy: str) -> None:
    found = describe_entitlement(answer(status, {"message": "subscription does not permit"}), "stock bars (sip)")
    assert found.outcome is outcome
    assert remedy in found.remedy


def test_only_the_topics_of_the_symbols_are_looked_at(tmp_path: Path) -> None:
    assert wanted_topics(subject(tmp_path)) == ["market-data", "crypto-data"]
    (tmp_path / "symbols.txt").write_text("BTC/USD\nETH/USD\n")
    assert wanted_topics(subject(tmp_path, {"CRYPTO_DATA_TOPIC": "mine"})) == ["mine"]


def by_part(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.part: finding for finding in findings}


def test_with_nothing_set_every_part_still_has_its_say(tmp_path: Path) -> None:
    found = by_part(list(diagnose(tmp_path, clock=ManualClock(), environment={})))
    assert {part for part, finding in found.items() if finding.outcome is Outcome.FAILED} == {
        "symbols file", "account", "Pub/Sub",
    }  # fmt: skip
    assert {"Python", "settings", "state directory", "agent id"} <= set(found)
    assert all(finding.remedy for finding in found.values() if finding.outcome is not Outcome.OK)


def test_broken_settings_files_are_told_and_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("this is no assignment and may be a secret\n")
    (tmp_path / "dry-work.toml").write_text("[run\n")
    found = list(diagnose(tmp_path, clock=ManualClock(), environment={"AGENT_ID": "mine"}))
    problems = [finding.text for finding in found if finding.part == "settings"]
    assert len(problems) == 2
    assert "line 1: expected NAME=value" in problems[0]
    assert "may be a secret" not in str(found)
    assert by_part(found)["agent id"].text == "mine, held by no process"


def test_no_credential_is_told_even_where_another_message_repeats_it(tmp_path: Path) -> None:
    environment = {
        "ALPACA_API_KEY": "AKVERYLIVE", "ALPACA_SECRET_KEY": "hush-hush", "ALPACA_URL": "ftp://AKVERYLIVE.hush-hush/",
        "AGENT_ID": "hush-hush/", "SOME_TOKEN": "a-token",
    }  # fmt: skip
    text = str(list(diagnose(tmp_path / "a-token", clock=ManualClock(), environment=environment)))
    for secret in ("AKVERYLIVE", "hush-hush", "a-token"):
        assert secret not in text
    assert "***" in text


def test_the_command_sums_up_and_exits_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(os.environ):
        if name.startswith(("ALPACA", "PAPER_", "GOOGLE_CLOUD", "PUBSUB", "AGENT_ID")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["check", "--json"])
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("failed    account: no Alpaca credentials") for line in lines)
    assert any(line.startswith("          fix: set ALPACA_API_KEY") for line in lines)
    assert "3 failed" in lines[-2]
    summary = json.loads(lines[-1])
    assert summary["ok"] is False
    assert {"part": "Pub/Sub", "outcome": "failed"}.items() <= summary["findings"][-1].items()
    with pytest.raises(SystemExit) as caught:
        main(["check", "--timeout", "never"])
    assert caught.value.code == 2
