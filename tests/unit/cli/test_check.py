"""What `dry-work check` says of what it finds, part by part."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import threading
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from dry_work.alpaca.simulated import ExchangeSession
from dry_work.cli import main
from dry_work.clock import SECOND_NS, ManualClock
from dry_work.engine import diagnosis
from dry_work.engine.account_checks import (
    compare_sessions,
    describe_account,
    describe_hours,
    describe_permissions,
    describe_rate_limit,
    describe_skew,
    mask_id,
    parse_date,
    parse_sessions,
)
from dry_work.engine.diagnosis import (
    check_lease,
    check_packages,
    check_python,
    check_sessions,
    check_state_directory,
    check_symbols_file,
    diagnose,
    is_within,
    read_holder,
)
from dry_work.engine.feed_checks import wanted_topics
from dry_work.engine.findings import Finding, Outcome, Subject
from dry_work.engine.remote_checks import build_data_requests, describe_entitlement, describe_exchange
from dry_work.feeds.lease import AgentLease
from dry_work.market.calendar import SessionCalendar
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


def test_packages_are_compared_with_the_tested_versions(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
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


def test_without_tested_versions_the_packages_are_compared_with_what_dry_work_asks_for(tmp_path: Path) -> None:
    (found,) = check_packages(tmp_path / "none.txt")
    assert found.outcome is Outcome.OK, found
    assert "backtrader 1.9.78.123" in found.text

    def older(name: str) -> str:
        return "0.43.9" if name == "alpaca-py" else importlib.metadata.version(name)

    (found,) = check_packages(tmp_path / "none.txt", installed=older)
    assert found.outcome is Outcome.FAILED
    assert found.text.startswith("versions that do not go with Dry Work: alpaca-py 0.43.9 (needed: ")


@pytest.mark.parametrize(
    ("version", "specifiers", "is_in"),
    [
        ("0.44.0", ">=0.44,<0.45", True),
        ("0.45", ">=0.44,<0.45", False),
        ("0.43.9", "<0.45,>=0.44", False),
        ("3.10", ">=3.9", True),
        ("1.9.78.123", "==1.9.78.123", True),
        ("1.9.78.122", "==1.9.78.123", False),
        ("2.0", "!=2.0", False),
        ("14.0rc1", ">=14", True),
        ("5", "", True),
        ("2", ">2.0", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, specifiers: str, is_in: bool) -> None:
    assert is_within(version, specifiers) is is_in


def test_a_symbols_file_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    assert check_symbols_file(subject(tmp_path)).outcome is Outcome.FAILED
    (tmp_path / "symbols.txt").write_text("\n".join(f"S{letter}" for letter in "ABCDEFGHIJ"))
    assert check_symbols_file(subject(tmp_path)).text == "SA, SB, SC, SD, SE, SF, SG, SH and 2 more"
    assert "SB" not in check_symbols_file(subject(tmp_path, symbols="none.txt")).text


@pytest.mark.parametrize(("free", "outcome"), [(10**12, Outcome.OK), (10**8, Outcome.WARNING), (10**6, Outcome.FAILED)])
def test_the_state_directory_needs_room(tmp_path: Path, free: int, outcome: Outcome) -> None:
    found = check_state_directory(
        subject(tmp_path, state_dir="deep/state"), usage=lambda _: SimpleNamespace(free=free), now=lambda: 1.0
    )
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


def test_a_slow_disk_is_warned_of(tmp_path: Path) -> None:
    ticks = iter([10.0, 10.5, 11.0, 11.6, 12.0, 12.7])
    found = check_state_directory(subject(tmp_path), usage=lambda _: SimpleNamespace(free=10**12), now=ticks.__next__)
    assert found.outcome is Outcome.WARNING
    assert "on the disk in 500 ms" in found.text


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
    assert (found.outcome, found.text) == (Outcome.OK, "…7788, paper, active, equity 1.00")
    assert describe_account(answer(200, account()), LIVE_URL).text == "…7788, LIVE, real money, active, equity 1.00"
    assert describe_account(answer(200, account()), SIMULATED).text.startswith("…7788, at 127.0.0.1:8090, active")
    assert mask_id("abc") == "…"


@pytest.mark.parametrize(
    ("given", "outcome", "text"),
    [
        (answer(200, account(trading_blocked=True)), Outcome.FAILED, "trading is blocked"),
        (answer(200, account(account_blocked=True)), Outcome.FAILED, "the account is blocked"),
        (answer(200, account(trade_suspended_by_user=True)), Outcome.FAILED, "suspended by the account's own settings"),
        (answer(200, account(status="ONBOARDING")), Outcome.WARNING, "onboarding"),
        (answer(200, account(equity="0")), Outcome.WARNING, "equity 0.00"),
        (answer(429, {"message": "rate limit exceeded"}), Outcome.FAILED, "no request is left in this minute"),
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


@pytest.mark.parametrize(
    ("fields", "symbols", "outcome", "text"),
    [
        (
            {"shorting_enabled": True, "options_trading_level": 3, "crypto_status": "ACTIVE"},
            ["SPY", "BTC/USD", "AAPL260116C00172500"],
            Outcome.OK,
            "shares, short selling, options up to level 3, crypto",
        ),
        ({}, ["SPY"], Outcome.OK, "shares, no short selling, no options, no crypto (not told)"),
        ({"crypto_status": "INACTIVE"}, ["BTC/USD"], Outcome.FAILED, "BTC/USD is a crypto pair"),
        ({"crypto_status": "INACTIVE"}, ["SPY"], Outcome.OK, "no crypto (inactive)"),
        ({"options_trading_level": 0}, ["AAPL260116C00172500"], Outcome.FAILED, "AAPL260116C00172500 is an option"),
    ],
)
def test_what_an_account_may_trade_is_compared_with_the_symbols(
    fields: dict[str, Any], symbols: list[str], outcome: Outcome, text: str
) -> None:
    found = describe_permissions(fields, symbols)
    assert found.outcome is outcome
    assert text in found.text
    assert bool(found.remedy) == (outcome is Outcome.FAILED)


def test_the_rate_limit_is_told_and_warned_of_when_little_is_left() -> None:
    headers = {"X-RateLimit-Limit": "200", "X-RateLimit-Remaining": "150"}
    assert describe_rate_limit(headers).text == "150 of 200 requests a minute are left"
    assert describe_rate_limit({**headers, "X-RateLimit-Remaining": "5"}).outcome is Outcome.WARNING
    assert describe_rate_limit({}).outcome is Outcome.OK
    assert describe_rate_limit({**headers, "X-RateLimit-Limit": "many"}).text == "the venue does not tell of one"


@pytest.mark.parametrize(
    ("skew_s", "bound_s", "outcome"),
    [
        (0.5, 0.05, Outcome.OK),
        (-5.0, 0.05, Outcome.WARNING),
        (5.0, 4.0, Outcome.OK),  # a slow answer says nothing for sure
        (-90.0, 0.05, Outcome.FAILED),
    ],
)
def test_clocks_that_differ_are_told(skew_s: float, bound_s: float, outcome: Outcome) -> None:
    found = describe_skew(skew_s, bound_s)
    assert found.outcome is outcome
    assert ("ahead" in found.text) == (skew_s > 0)
    assert f"± {bound_s:.2f} s" in found.text


def test_a_date_header_is_read_to_the_second() -> None:
    assert parse_date("Tue, 11 Jun 2024 13:30:05 GMT") == 1_718_112_605 * SECOND_NS
    for text in (None, "", "yesterday"):
        assert parse_date(text) is None


def test_sessions_of_the_venue_that_differ_are_named() -> None:
    calendar = SessionCalendar()
    ours = calendar.sessions(date(2026, 11, 25), date(2026, 11, 30))
    venue = [
        {"date": "2026-11-25", "open": "09:30", "close": "16:00"},
        {"date": "2026-11-27", "open": "09:30", "close": "13:00"},
        {"date": "2026-11-30", "open": "09:30", "close": "16:00"},
    ]
    same = compare_sessions(ours, parse_sessions(venue))
    assert (same.outcome, same.text) == (Outcome.OK, "the venue has the same 3 sessions ahead as ours")
    other = compare_sessions(ours, parse_sessions([*venue[:1], {**venue[1], "close": "16:00"}, venue[2]]))
    assert other.outcome is Outcome.WARNING
    assert "2026-11-27 is 09:30–13:00 here, 09:30–16:00 at the venue" in other.text
    assert (
        "2026-11-27 is 09:30–13:00 here, no session at the venue"
        in compare_sessions(ours, parse_sessions([venue[0], venue[2]])).text
    )
    for bad in ({}, [{"date": "2026-11-25"}], ["x"]):
        with pytest.raises(ValueError, match="no "):
            parse_sessions(bad)


def test_whether_the_market_is_open_is_told_in_new_york() -> None:
    calendar = SessionCalendar()
    (half,) = calendar.sessions(date(2026, 11, 27), date(2026, 11, 27))
    at_ns = half.open_ns + SECOND_NS
    assert describe_hours(half, calendar.next_open_ns(at_ns)) == "the stock market is open until 13:00 in New York"
    closed = describe_hours(None, half.open_ns)
    assert closed == "the stock market is closed; it opens on 2026-11-27 at 09:30 in New York"
    assert check_sessions(ManualClock(at_ns)).outcome is Outcome.OK
    assert check_sessions(ManualClock(SECOND_NS)).outcome is Outcome.FAILED  # 1970


def test_credentials_that_the_market_data_refuse_are_no_lack_of_a_subscription() -> None:
    found = describe_entitlement(answer(403, {"message": "forbidden."}), "stock bars (iex)")
    assert found.text == "the credentials are refused (HTTP 403, forbidden.)"


def test_market_data_is_asked_for_at_alpaca_by_the_newest_bars_and_elsewhere_by_history() -> None:
    assert build_data_requests(["IBM", "SPY", "BTC/USD"], url=DATA_URL, feed="sip") == [
        ("stock bars (sip)", "/v2/stocks/bars/latest", {"symbols": "IBM", "feed": "sip"}),
        ("crypto bars", "/v1beta3/crypto/us/latest/bars", {"symbols": "BTC/USD"}),
    ]
    option = "SPY240621C00550000"
    assert build_data_requests([option], url=DATA_URL, feed="sip", option_feed="opra") == [
        ("options (opra)", "/v1beta1/options/trades/latest", {"symbols": option, "feed": "opra"})
    ]
    assert build_data_requests([option], url=SIMULATED, feed="iex") == [
        ("options (indicative)", "/v1beta1/options/bars", {"symbols": option, "timeframe": "1Min", "limit": "1"})
    ]
    assert build_data_requests(["BTC/USD"], url=SIMULATED, feed="iex") == [
        ("crypto bars", "/v1beta3/crypto/us/bars", {"symbols": "BTC/USD", "timeframe": "1Min", "limit": "1"})
    ]


@pytest.mark.parametrize(
    ("status", "outcome", "remedy"),
    [
        (200, Outcome.OK, ""),
        (401, Outcome.FAILED, "see what is said of the account"),
        (403, Outcome.FAILED, "ALPACA_FEED=iex"),
        (429, Outcome.WARNING, "wait a minute"),
        (422, Outcome.FAILED, "set ALPACA_FEED to iex, sip or delayed_sip"),
        (500, Outcome.WARNING, "try again later"),
    ],
)
def test_a_feed_that_is_not_subscribed_is_told_with_its_fix(status: int, outcome: Outcome, remedy: str) -> None:
    found = describe_entitlement(answer(status, {"message": "subscription does not permit"}), "stock bars (sip)")
    assert found.outcome is outcome
    assert remedy in found.remedy


def test_an_option_feed_that_is_not_subscribed_is_told_with_its_own_fix() -> None:
    found = describe_entitlement(answer(403, {"message": "subscription does not permit"}), "options (opra)")
    assert found.outcome is Outcome.FAILED
    assert "ALPACA_OPTION_FEED=indicative" in found.remedy


@pytest.mark.parametrize("bars", [{"SPY": {"t": "2024-06-11T13:31:00Z"}}, {"SPY": [{"t": "2024-06-11T13:31:00Z"}]}])
def test_the_time_of_a_bar_that_could_be_read_is_told(bars: Any) -> None:
    found = describe_entitlement(answer(200, {"bars": bars}), "stock bars (iex)", "SPY")
    assert found.text == "can be read; a bar of SPY: 2024-06-11 13:31 UTC"
    assert describe_entitlement(answer(200, {"bars": {}}), "stock bars (iex)", "SPY").text == "can be read"


def test_only_the_topics_of_the_symbols_are_looked_at(tmp_path: Path) -> None:
    assert wanted_topics(subject(tmp_path)) == ["market-data", "crypto-data"]
    (tmp_path / "symbols.txt").write_text("BTC/USD\nETH/USD\n")
    assert wanted_topics(subject(tmp_path, {"CRYPTO_DATA_TOPIC": "mine"})) == ["mine"]


def by_part(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.part: finding for finding in findings}


def test_with_nothing_set_every_part_still_has_its_say(tmp_path: Path) -> None:
    found = by_part(list(diagnose(tmp_path, clock=ManualClock(), environment={})))
    assert {part for part, finding in found.items() if finding.outcome is Outcome.FAILED} == {
        "symbols file", "account", "Pub/Sub", "sessions",  # in 1970
    }  # fmt: skip
    assert {"Python", "settings", "state directory", "agent id"} <= set(found)
    assert all(finding.remedy for finding in found.values() if finding.outcome is not Outcome.OK)


def test_a_part_that_hangs_is_given_up_and_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(_subject: Subject) -> list[Finding]:
        release.wait(60.0)
        return []

    monkeypatch.setattr(diagnosis, "check_market_data", hang)
    try:
        found = by_part(list(diagnose(tmp_path, clock=ManualClock(), environment={}, timeout_s=0.01)))
    finally:
        release.set()
    assert found["market data"].outcome is Outcome.FAILED
    assert found["market data"].text == "not finished within 0.08 s"
    assert found["account"].text.startswith("no Alpaca credentials")


@pytest.mark.parametrize(("state", "outcome"), [("running", Outcome.OK), ("ended", Outcome.WARNING)])
def test_a_simulated_exchange_is_told_and_warned_of_when_its_recording_is_over(state: str, outcome: Outcome) -> None:
    session = ExchangeSession(
        simulated=True, rules="alpaca", lockstep=False, speed=60.0, fingerprint="", symbols=("SPY",), slices=390,
        state=state, slice=7, start="", end="",
    )  # fmt: skip
    found = describe_exchange(session)
    assert found.outcome is outcome
    assert found.text == f"simulated, rules alpaca, at speed 60.0, {state}: slice 7 of 390"


@pytest.mark.parametrize(
    ("feed", "environment", "toml"),
    [("carrier", {}, ""), (None, {"DRY_WORK_FEED": "carrier"}, ""), (None, {}, '[run]\nfeed = "carrier"\n')],
)
def test_the_way_of_market_data_is_that_of_a_run(
    tmp_path: Path, feed: str | None, environment: dict[str, str], toml: str
) -> None:
    (tmp_path / "dry-work.toml").write_text(toml)
    found = by_part(list(diagnose(tmp_path, clock=ManualClock(), environment=environment, feed=feed)))
    assert found["market data feed"].outcome is Outcome.FAILED
    assert "expected one of pubsub, nats, redis, ws, grpc" in found["market data feed"].text
    assert "Pub/Sub" not in found


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
