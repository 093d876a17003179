"""Two agents with an account each trade in lock-step on one exchange, hub and Pub/Sub server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .processes import Program
from .test_four_processes import Stack, without

Start = Callable[..., Program]


def test_two_accounts_trade_as_each_alone_and_none_waits_for_events_of_the_other(
    start: Start, clean_environment: Path
) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    stack = Stack(start, "--speed", "max", "--consumers", "2")
    quick = ("-p", "fast_period=3", "-p", "slow_period=8")
    runs = {
        name: start("run", "--json", *params, env={**stack.env, "AGENT_ID": name, "ALPACA_API_KEY": name})
        for name, params in (("first", ()), ("second", quick))
    }
    found = {name: program.result() for name, program in runs.items()}
    for name, params in (("first", ()), ("second", quick)):
        alone: dict[str, Any] = start("run", "--local", "--json", *params).result()
        assert found[name]["bars"] == alone["bars"]
        assert found[name]["fills"]
        drop = ("client_order_id",)
        assert [without(row, drop) for row in found[name]["orders"]] == [without(row, drop) for row in alone["orders"]]
        assert [without(row, drop) for row in found[name]["fills"]] == [without(row, drop) for row in alone["fills"]]
        assert found[name]["equity"] == alone["equity"]
        assert "overdue" not in runs[name].output  # what an event of another account costs when it is waited for
    assert len(found["first"]["fills"]) != len(found["second"]["fills"])
