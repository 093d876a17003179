"""The curl and Python examples of docs/howto/exchange.md do what the page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from dry_work.exchange.faults import KINDS

from .howto_blocks import PAGE, read_blocks, run_exchange

DEADLINE_S = 90.0


needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None, reason="curl and bash are needed, one was not found"
)


def run_block(number: int) -> list[Any]:
    """Run a block of the page in bash; return what each of its calls answered."""
    block = read_blocks("bash")[number]
    with run_exchange() as (_, environment):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.replace("curl -sS", "echo; curl -sS")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.split("\n") if line]


@needs_curl
def test_the_curl_examples_trade() -> None:
    account, clock, bars, order, listed, canceled = run_block(0)
    assert account["cash"] == "100000"
    assert "is_open" in clock
    assert set(bars) == {"bars"}
    assert order["client_order_id"] == "my-first-order"
    assert [row["id"] for row in listed] == [order["id"]]
    assert canceled == [{"id": order["id"], "status": 200}]


@needs_curl
def test_the_curl_examples_of_the_broker_api_trade_for_a_sub_account() -> None:
    account, order, canceled, everything = run_block(1)
    assert account["cash"] == "100000"
    assert order["commission"] == "1.5"
    assert canceled == [{"id": order["id"], "status": 200}]
    assert everything["positions"] == {account["id"]: []}


@needs_curl
def test_the_faults_of_the_page_are_set_listed_and_removed() -> None:
    after, pair, streams, chance, listed, removed = run_block(2)
    assert [(row["kind"], row["when"], row["status"]) for row in after] == [("status", "after", 504)]
    assert [row["kind"] for row in (*pair, *streams)] == ["status", "latency", "duplicate", "reset"]
    assert [row["id"] for row in listed] == [f"f{number}" for number in range(1, 6 + len(chance))]
    assert {row["rate"] for row in chance} == {0.01}
    assert removed == []


def test_the_table_of_faults_is_complete() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| `on` | `kind`") : text.index("Every fault may have these")]
    named = set(re.findall(r"`([a-z_]+)`", table))
    assert {*KINDS, *(kind for kinds in KINDS.values() for kind in kinds)} <= named


def run_python(number: int) -> str:
    """Run a Python block of the page; return what it prints."""
    block = read_blocks("python")[number]
    with run_exchange() as (_, environment):
        done = subprocess.run(
            [sys.executable, "-c", block],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_example_trades() -> None:
    printed = run_python(0)
    assert re.search(r"bar 2024-06-1\d .* \d+", printed)
    assert "order fill filled" in printed
    assert "position BTCUSD 0.009975" in printed  # less the fee
    assert "BTC/USD 2024-06-11 13:00:00+00:00  67000.0" in printed


def test_the_python_example_of_the_broker_api_reads_events() -> None:
    lines = run_python(1).splitlines()
    assert lines == ["event 1 pending_new pending_new", "event 2 new new", "event 3 canceled canceled"]


def test_every_option_that_the_page_names_exists() -> None:
    from dry_work.cli.exchange import command

    known = {name for parameter in command.params for name in parameter.opts}
    named = set(re.findall(r"`?(--[a-z][a-z-]+)", PAGE.read_text(encoding="utf-8")))
    assert named <= known
