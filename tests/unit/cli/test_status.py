"""`dry-work status` by the state directories alone: lists, details, mistakes."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from dry_work.broker.journal import AccountRecord, Journal
from dry_work.cli import cli
from dry_work.errors import ConfigError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.market.completeness import Completeness
from dry_work.market.market_state import DataHealth, SymbolHealth
from dry_work.orders.books import Fill
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce
from dry_work.orders.risk import RiskCommand
from dry_work.settings import PAPER_URL

LOCAL_KEYS = {"ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "not-a-secret"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "80")
    return clean_environment


def run(*args: str) -> tuple[int, str]:
    """Return the exit code and what is printed."""
    result = CliRunner().invoke(cli, ["status", *args], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value), result.output


def status_json(*args: str) -> Any:
    output = run(*args, "--json")[1]
    assert len(output.splitlines()) == 1
    return json.loads(output)


def make_agent(
    name: str,
    *,
    life: str = "stopped",
    fills: int = 0,
    unanswered: int = 0,
    mode: str = "paper",
    url: str = PAPER_URL,
    halt: str = "",
) -> Path:
    folder = Path(".dry-work") / name
    journal = Journal(folder / "orders.sqlite")
    journal.mint_session(name, session="s", started_ns=1)
    journal.record_account(AccountRecord(agent=name, account_id="acc-1", url=url, mode=mode))
    for number in range(1, 1 + fills + unanswered):
        order = f"dw-{name}-s-{number}"
        request = OrderRequest(
            client_order_id=order, symbol="BTC/USD", side=Side.BUY, type=OrderType.LIMIT,
            time_in_force=TimeInForce.GTC, qty=Decimal("0.5"), limit_price=Decimal("66919.84"),
        )  # fmt: skip
        journal.record_intent(request, agent=name, session="s", number=number, at_ns=number)
        if number <= fills:
            journal.record_outcome(order, action="submit", outcome="accepted", order_id=f"id-{number}", at_ns=number)
            fill = Fill(
                execution_id=order, client_order_id=order, symbol="BTC/USD", side=Side.BUY, qty=Decimal("0.5"),
                price=Decimal(66_000), ts_event_ns=1_700_000_000_000_000_000,
            )  # fmt: skip
            journal.record_progress([fill])
    if halt:
        journal.change_risk(RiskCommand.HALT, reason=halt, who="operator", at_ns=1_700_000_000_000_000_000)
    journal.close()
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
    if life == "died":
        facts["since"] = "2001-01-01T00:00:00Z"
    (folder / f"agent-{name}.lock").write_text("" if life == "stopped" else json.dumps(facts))
    return folder


def test_agents_are_listed_with_what_they_have() -> None:
    make_agent("calm", fills=1)
    make_agent("busy", life="running", fills=2, unanswered=1, halt="news")
    code, output = run()
    assert code == 0
    assert all(len(line) <= 80 for line in output.splitlines())
    for word in ("calm", "stopped", "busy", "running", "HALTED", "0 +1?", "buy 0.5"):
        assert word in output, word
    content = status_json()
    assert [(agent["id"], agent["state"]) for agent in content["agents"]] == [("busy", "running"), ("calm", "stopped")]
    busy = content["agents"][0]
    assert (busy["open_orders"], busy["unknown_orders"], busy["positions_held"]) == (0, 1, 1)
    assert busy["risk"] == {
        "state": "halted", "reason": "news", "who": "operator", "since": "2023-11-14T22:13:20Z",
    }  # fmt: skip
    assert busy["last_fill"]["client_order_id"] == "dw-busy-s-2"


@pytest.mark.parametrize(
    ("life", "fills", "mode", "code"),
    [
        ("stopped", 1, "paper", 0),
        ("running", 1, "paper", 0),
        ("died", 0, "paper", 0),
        ("died", 1, "paper", 1),
        ("died", 1, "local", 0),  # its exchange has ended with it
    ],
)
def test_the_exit_code_says_whether_somebody_has_to_look(life: str, fills: int, mode: str, code: int) -> None:
    make_agent("one", life=life, fills=fills, mode=mode)
    assert run()[0] == code
    make_agent("two")
    assert run()[0] == code  # the list
    assert run("two")[0] == 0


def test_one_agent_is_shown_in_full_without_being_named() -> None:
    make_agent("only", life="died", fills=1, unanswered=1, halt="news")
    code, output = run()
    assert code == 1
    assert all(len(line) <= 80 for line in output.splitlines())
    for words in (
        "agent only: not running: process", "risk: HALTED since 2023-11-14 22:13:20 UTC by operator: news",
        "account: acc-1 (paper)", "venue: not asked: set ALPACA_API_KEY", "BTC/USD 0.5 66,000.00",
        "s-2 BTC/USD buy 0.5 limit 66919.84 gtc UNKNOWN", "2023-11-14 22:13:20 BTC/USD buy 0.5 66000 s-1",
    ):  # fmt: skip
        assert words in " ".join(output.split()), (words, output)
    assert run("--no-venue")[1].count("venue: not asked\n") == 1


def test_the_object_of_json_has_everything_of_one_agent() -> None:
    make_agent("only", fills=1, unanswered=1)
    content = status_json("only", "--no-venue")
    assert content["agent"]["id"] == "only"
    assert content["account"] == {"id": "acc-1", "mode": "paper", "url": PAPER_URL}
    assert (content["equal"], content["venue"], content["venue_note"]) == (None, None, "not asked")
    assert content["positions"] == [
        {
            "symbol": "BTC/USD", "qty": "0.5", "avg_entry_price": "66000", "venue_qty": None,
            "venue_avg_entry_price": None, "mark": None, "reasons": [],
        }
    ]  # fmt: skip
    assert [(order["client_order_id"], order["ours"]) for order in content["orders"]] == [("dw-only-s-2", "UNKNOWN")]
    assert content["last_fills"][0]["price"] == "66000"


def test_a_name_that_is_not_there_is_answered_with_near_ones() -> None:
    make_agent("momentum")
    make_agent("reversal")
    with pytest.raises(ConfigError, match=r"no agent 'momemtum'; did you mean momentum\?"):
        run("momemtum")
    with pytest.raises(ConfigError, match="no agent 'x'; there are: momentum, reversal"):
        run("x")


def test_without_agents_the_place_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no agent has run with \.dry-work .*--state-dir"):
        run()
    with pytest.raises(ConfigError, match="no agent has run with elsewhere"):
        run("--state-dir", "elsewhere")


def test_one_name_in_two_folders_has_to_be_told_apart() -> None:
    make_agent("twin")
    other = Path(".dry-work/local/twin")
    other.mkdir(parents=True)
    (other / "agent-twin.lock").touch()
    with pytest.raises(ConfigError, match=r"several agents 'twin'.*name one of the folders"):
        run("twin")
    assert "no orders journal: it has not traded" in run("--state-dir", str(other))[1]


def test_the_state_directory_may_stand_in_the_settings_file() -> None:
    make_agent("one")
    Path("dry-work.toml").write_text('[run]\nstate_dir = ".dry-work/one"\n')
    assert "agent one" in run()[1]


def test_a_damaged_journal_is_said_and_the_rest_is_shown() -> None:
    folder = make_agent("broken", life="running")
    (folder / "orders.sqlite").write_bytes(b"not a database " * 100)
    code, output = run("broken")
    assert code == 1
    assert "agent broken: running" in output
    assert "orders.sqlite: the orders journal is damaged" in output.replace("\n", " ")
    make_agent("fine", fills=1)
    code, output = run()
    assert code == 1
    assert "fine" in output
    assert "damaged" in output
    content = status_json()
    assert "damaged" in content["agents"][0]["problem"]
    assert content["agents"][0]["risk"] is None


def test_keys_are_not_sent_where_only_the_journal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    set_keys(monkeypatch)
    make_agent("copied", url="https://alpaca.example.org")
    code, output = run()
    assert code == 1
    assert "set ALPACA_URL to it if it is yours" in output.replace("\n", " ")


def set_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LOCAL_KEYS.items():
        monkeypatch.setenv(name, value)


def test_a_venue_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    set_keys(monkeypatch)
    monkeypatch.setattr("dry_work.cli.status.REQUEST_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        make_agent("one", fills=1, url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        code, output = run()
    assert code == 1
    assert "venue: not reached: " in output
    assert "66,000.00" in output


def test_credentials_that_the_venue_refuses_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    set_keys(monkeypatch)
    exchange = ExchangeServer(synthetic_day(("SPY",), minutes=2), speed=60.0, keys={"OTHER": "x"})
    exchange.start()
    try:
        make_agent("one", fills=1, url=exchange.url)
        code, output = run()
    finally:
        exchange.stop()
    assert code == 2
    assert "the credentials were refused" in output
    assert "set ALPACA_API_KEY" in " ".join(output.split())
    assert "66,000.00" in output


def test_half_a_pair_of_keys_is_a_mistake_and_our_books_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPACA_API_KEY", "PKTEST")
    make_agent("one", fills=1)
    code, output = run()
    assert code == 2
    assert "ALPACA_API_KEY is set, but ALPACA_SECRET_KEY is not" in output
    assert "66,000.00" in output
    assert "not-a-secret" not in output


def test_of_many_open_orders_the_newest_are_shown() -> None:
    make_agent("many", unanswered=50)
    output = run()[1]
    assert "s-50 " in output
    assert "s-10 " not in output
    assert "and 10 older ones" in output
    assert len(status_json("many")["orders"]) == 50


def test_how_complete_the_bars_are_is_shown_with_what_is_silent_or_halted() -> None:
    folder = make_agent("calm", life="running")
    assert status_json()["agent"]["data"] is None
    data = DataHealth(
        market_ns=1_700_000_000_000_000_000,
        bars=Completeness(expected=2_000, arrived=1_980, late=5, filled=10, missing=5),
        symbols=(SymbolHealth(symbol="SPY", bars=Completeness(expected=1_000, arrived=995, missing=5)),),
        silent={"IBM": "no bar for 300 s while its market is open"},
        halted={"SPY": "Trading Halt: News Pending (T1)"},
    )
    beat = {"time_ns": time.time_ns(), "pid": os.getpid(), "data": msgspec.to_builtins(data)}
    (folder / "heartbeat").write_text(json.dumps(beat))
    lines = run()[1].splitlines()
    assert "market data: 99.75% of 2,000 expected bars (5 late, 10 filled, 5 missing)" in lines
    assert "  SPY is halted: Trading Halt: News Pending (T1)" in lines
    assert "  IBM is silent: no bar for 300 s while its market is open" in lines
    shown = status_json()["agent"]["data"]
    assert shown["bars"]["missing"] == 5
    assert shown["symbols"]["SPY"]["arrived"] == 995
    assert shown["halted"] == data.halted
    assert shown["market_time"] == "2023-11-14T22:13:20Z"
