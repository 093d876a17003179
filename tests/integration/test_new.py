"""A new agent's own tests pass, and it trades on the local stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dry_work.cli.new import write_agent

DEADLINE_S = 120.0


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    return write_agent("scaffolded", tmp_path)


def run(agent: Path, *args: str) -> str:
    """Run a module in the agent's folder, as a user would who has set nothing."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ALPACA", "PUBSUB", "GOOGLE_CLOUD", "AGENT_ID", "PYTEST", "COV"))
    }
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=agent, env=kept, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests_pass_with_plain_pytest(agent: Path) -> None:
    assert "3 passed" in run(agent, "pytest")


def test_it_trades_on_the_local_stack(agent: Path) -> None:
    out = run(agent, "dry_work", "run", "--local", "--json")
    result = json.loads(out.splitlines()[-1])
    assert result["agent"] == "agent.py:Agent"
    assert result["params"] == {"period": 20, "cash_share": 0.1}
    assert result["symbols"] == ["SPY", "AAPL", "BTC/USD"]
    assert {fill["symbol"] for fill in result["fills"]} == {"SPY", "AAPL", "BTC/USD"}
    assert {order["status"] for order in result["orders"]} == {"filled"}
    assert result["orders"][0]["client_order_id"].startswith("dw-scaffolded-")
    assert " bought " in out
    assert not (agent / ".dry-work").exists()
