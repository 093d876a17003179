"""Halting from outside: finding the agent, and what is said and done when nobody answers."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dry_work.broker.books_reader import read_books
from dry_work.broker.brake import Brake
from dry_work.broker.journal import AccountRecord, Journal
from dry_work.broker.operator import AgentPlace, Operator, find_agent
from dry_work.cli import cli
from dry_work.clock import ManualClock
from dry_work.errors import ConfigError
from dry_work.feeds.lease import AgentLease
from dry_work.orders.risk import RiskCommand, RiskState
from dry_work.orders.risk_limits import OpenOrders, RiskLimits
from dry_work.settings import Credentials

from .scripted_venue import NOW_NS, ScriptedVenue, foreign_request

KEYS = Credentials(key="KEY", secret="SECRET")


def make_agent(folder: Path, name: str) -> Path:
    """Make the state directory of an agent that has run."""
    AgentLease(folder, name).acquire().release()
    Journal(folder / "orders.sqlite").close()
    return folder


# Finding


def test_an_agent_is_found_by_its_name_in_every_layout(tmp_path: Path) -> None:
    paths = {
        "given": make_agent(tmp_path, "given"),
        "usual": make_agent(tmp_path / "usual", "usual"),
        "alone": make_agent(tmp_path / "local" / "alone", "alone"),
    }
    for name, path in paths.items():
        assert find_agent(name, [tmp_path]) == AgentPlace(path=path, agents=(name,))


def test_without_a_name_it_is_the_one_that_runs_or_the_only_one(tmp_path: Path) -> None:
    make_agent(tmp_path / "a", "a")
    assert find_agent(None, [tmp_path]).agents == ("a",)
    make_agent(tmp_path / "b", "b")
    with pytest.raises(ConfigError, match=r"several agents in .*: a, b; name one of them"):
        find_agent(None, [tmp_path])
    lease = AgentLease(tmp_path / "b", "b").acquire()
    found = find_agent(None, [tmp_path])
    assert (found.agents, found.pid) == (("b",), os.getpid())
    lease.release()


@pytest.mark.parametrize(
    ("holder", "pid"),
    [
        ({"pid": os.getpid(), "host": socket.gethostname()}, os.getpid()),
        ({"pid": 2**22 + 5, "host": socket.gethostname()}, None),  # no such process: it was killed
        ({"pid": 4, "host": "another machine"}, 4),  # it cannot be known, so it counts
        ({"pid": "x"}, None),
    ],
    ids=["running", "killed", "another machine", "damaged"],
)
def test_the_lease_says_whether_a_trader_runs(tmp_path: Path, holder: dict[str, Any], pid: int | None) -> None:
    make_agent(tmp_path, "a")
    (tmp_path / "agent-a.lock").write_text(json.dumps({"since": datetime.now(UTC).isoformat(), **holder}))
    assert find_agent("a", [tmp_path]).pid == pid


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; name one with --state-dir"):
        find_agent(None, [tmp_path / "none"])
    with pytest.raises(ConfigError, match="no agent has run with it"):
        find_agent(None, [tmp_path])
    make_agent(tmp_path / "a", "a")
    with pytest.raises(ConfigError, match=r"no agent 'b' in .*; there are: a"):
        find_agent("b", [tmp_path])


@pytest.mark.parametrize("command", ["halt", "flatten"])
def test_the_commands_end_with_2_for_a_wrong_agent_or_directory(
    command: str, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dry_work import cli as package

    codes: list[Any] = []
    monkeypatch.setattr("sys.exit", codes.append)
    make_agent(clean_environment / ".dry-work" / "a", "a")
    package.main([command, "b"])
    package.main([command, "--state-dir", "elsewhere"])
    assert codes == [2, 2]


def test_halt_and_release_from_the_command_line(clean_environment: Path) -> None:
    path = make_agent(clean_environment / ".dry-work" / "a", "a") / "orders.sqlite"
    halted = CliRunner().invoke(cli, ["halt", "a", "--reason", "news"], standalone_mode=False)
    assert halted.return_value == 1  # nobody has said whose orders are to be canceled
    assert "agent a is HALTED since" in halted.output
    assert "by operator: news" in halted.output
    assert "no trader is running" in halted.output
    assert "open orders are left as they are" in halted.output
    released = CliRunner().invoke(cli, ["halt", "--release"], standalone_mode=False)
    assert released.return_value == 0
    assert "agent a is ACTIVE since" in released.output
    again = CliRunner().invoke(cli, ["halt", "--release"], standalone_mode=False)
    assert again.return_value == 0
    assert again.output == "agent a is not halted\n"
    journal = Journal(path)
    assert [record.state for record in journal.risk_history()] == [RiskState.HALTED, RiskState.ACTIVE]
    journal.close()


# Acting


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def operator(venue: ScriptedVenue, tmp_path: Path, lines: list[str]) -> Callable[..., Operator]:
    """Make operators of an agent that has traded at the venue and does not run."""
    path = make_agent(tmp_path / "a", "a")
    journal = Journal(path / "orders.sqlite")
    journal.record_account(AccountRecord(agent="a", account_id="a", url=venue.url, mode="paper"))
    journal.close()

    def build(limits: RiskLimits | None = None) -> Operator:
        return Operator(
            find_agent("a", [tmp_path]), tell=lines.append, limits=limits or RiskLimits(), timeout_s=30.0,
            credentials=lambda mode: KEYS,
        )  # fmt: skip

    return build


def test_a_halt_cancels_the_agents_entries_when_no_trader_runs(
    venue: ScriptedVenue, operator: Callable[..., Operator], lines: list[str]
) -> None:
    from msgspec.structs import replace

    own = replace(foreign_request("AAPL"), client_order_id="dw-a-s-1")
    for request in (own, foreign_request("IBM")):
        venue.build_event("new", request)
    assert operator().halt("by hand")
    assert venue.count("DELETE", "/v2/orders/v-dw-a-s-1") == 1
    assert venue.count("DELETE", "/v2/orders/") == 1
    assert "canceled: 1 orders (1 AAPL)" in lines
    assert operator(RiskLimits(open_orders=OpenOrders.KEEP)).halt("again")
    assert venue.count("DELETE", "/v2/orders/") == 1


def test_a_venue_that_does_not_answer_is_told_and_is_no_success(
    venue: ScriptedVenue, operator: Callable[..., Operator], lines: list[str], tmp_path: Path
) -> None:
    from dry_work.errors import BrokerError

    venue.fail_account = (500, {"code": 1, "message": "away"})
    with pytest.raises(BrokerError):
        operator().halt("by hand")
    assert any("away" in line for line in lines)
    journal = Journal(tmp_path / "a" / "orders.sqlite")
    assert journal.risk().state is RiskState.HALTED  # all the same
    journal.close()


def test_credentials_of_another_account_touch_nothing(
    venue: ScriptedVenue, operator: Callable[..., Operator], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "a" / "orders.sqlite")
    journal.record_account(AccountRecord(agent="a", account_id="another", url=venue.url, mode="paper"))
    journal.close()
    venue.build_event("new", foreign_request("IBM"))
    with pytest.raises(ConfigError, match="those of another account than agent a trades with"):
        operator().flatten("by hand")
    assert venue.count("DELETE", "/") == 0


def test_what_is_left_is_printed_and_no_success(
    venue: ScriptedVenue, operator: Callable[..., Operator], lines: list[str], tmp_path: Path
) -> None:
    venue.build_event("new", foreign_request("IBM"))  # this venue cancels nothing
    assert not operator().flatten("by hand", timeout_s=1.0)
    assert "left open: 1 orders (1 IBM)" in lines
    assert lines[-1].startswith("run it again")
    journal = Journal(tmp_path / "a" / "orders.sqlite")
    assert journal.risk().state is RiskState.FLATTENING
    journal.close()


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """The agent's journal, locked as by a trader that stands still in the middle of writing."""
    monkeypatch.setattr("dry_work.broker.journal._BUSY_TIMEOUT_S", 0.1)
    connection = sqlite3.connect(tmp_path / "a" / "orders.sqlite", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def read_history(folder: Path) -> list[RiskState]:
    """Return the states in the journal, once what was asked for beside it is taken."""
    journal = Journal(folder / "a" / "orders.sqlite")
    journal.take_requests()
    states = [record.state for record in journal.risk_history()]
    assert journal.requests.list() == []
    journal.close()
    return states


def test_a_journal_that_is_locked_does_not_keep_from_flattening(
    venue: ScriptedVenue,
    operator: Callable[..., Operator],
    lines: list[str],
    tmp_path: Path,
    locked: sqlite3.Connection,
) -> None:
    assert operator().flatten("by hand")
    assert any("cannot be written: database is locked; the request stands in" in line for line in lines)
    assert "nothing is left: no open order, no position" in lines
    assert read_books(tmp_path / "a" / "orders.sqlite").risk.state is RiskState.HALTED  # what `status` shows
    locked.close()
    assert read_history(tmp_path) == [RiskState.FLATTENING, RiskState.HALTED]


def test_a_halt_beside_a_locked_journal_is_taken_before_an_order_leaves(
    venue: ScriptedVenue,
    operator: Callable[..., Operator],
    lines: list[str],
    tmp_path: Path,
    locked: sqlite3.Connection,
) -> None:
    from msgspec.structs import replace

    journal = Journal(tmp_path / "a" / "orders.sqlite")
    brake = Brake(
        journal, venue, agent="a", limits=RiskLimits(), clock=ManualClock(NOW_NS), lockstep=False,
        is_sending=lambda: False, on_change=lambda: None, on_failure=lambda error: None,
    )  # fmt: skip
    assert brake.judge("dw-a-s-2") is None
    venue.build_event("new", replace(foreign_request("AAPL"), client_order_id="dw-a-s-1"))
    assert operator().halt("by hand")
    assert "canceled: 1 orders (1 AAPL)" in lines
    breach = brake.judge("dw-a-s-2")
    assert breach is not None  # the request is there, but it cannot be taken yet
    assert "the risk state cannot be read" in breach.found
    locked.close()
    breach = brake.judge("dw-a-s-2")
    assert breach is not None
    assert brake.state is RiskState.HALTED
    journal.close()
    assert read_history(tmp_path) == [RiskState.HALTED]


def test_requests_are_taken_in_their_order_and_a_release_releases(
    operator: Callable[..., Operator], lines: list[str], tmp_path: Path, locked: sqlite3.Connection
) -> None:
    limits = RiskLimits(open_orders=OpenOrders.KEEP)
    assert operator(limits).release("nothing to release")
    assert lines.pop() == "agent a is not halted"
    assert operator(limits).halt("by hand")
    assert operator(limits).release("it was nothing")
    assert lines[-2].startswith("agent a is ACTIVE since")
    locked.close()
    assert read_history(tmp_path) == [RiskState.HALTED, RiskState.ACTIVE]


def test_a_request_that_cannot_be_read_is_a_halt(tmp_path: Path) -> None:
    journal = Journal(make_agent(tmp_path, "a") / "orders.sqlite")
    journal.requests.folder.mkdir()
    (journal.requests.folder / "7.json").write_text("{")
    (journal.requests.folder / ".tmp-8.json").write_text("being written")
    assert [(request.command, request.name) for request in journal.requests.list()] == [(RiskCommand.HALT, "7.json")]
    journal.take_requests()
    assert journal.risk().state is RiskState.HALTED
    assert "7.json cannot be read" in journal.risk().reason
    assert journal.requests.list() == []
    journal.close()
