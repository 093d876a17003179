"""The timers that the soak shortens, as they are: a silent data socket is left, and no bar is missing after it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.processes import Program, Service, wait_until

from .soak import KEYS, TIMERS, name_symbols, write_market

TIMEOUT_S = 60.0  # the hub's default
PATIENCE_S = 240.0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_silent_data_socket_is_found_by_the_hubs_timers_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TIMERS:
        monkeypatch.delenv(name, raising=False)
    symbols = name_symbols(2)
    write_market(tmp_path / "market.parquet", symbols, days=2, bars_a_day=390, seed=3)
    programs: list[Program] = []

    def start(*args: str, env: dict[str, str] | None = None) -> Program:
        programs.append(Program(*args, cwd=tmp_path, env=env))
        return programs[-1]

    try:
        pubsub = Service(
            start, "pubsub", "--project", "soak", ready=r"PUBSUB_EMULATOR_HOST=(?P<host>[^:]+:(?P<port>\d+))"
        )
        exchange = Service(
            start, "exchange", "--data", "market.parquet", "--speed", "60", ready=r"ALPACA_URL=http://\S+:(?P<port>\d+)"
        )
        env = {
            **KEYS,
            "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{pubsub.port}",
            "ALPACA_STREAM_URL": f"ws://127.0.0.1:{exchange.port}",
            "HUB_SYMBOLS": ",".join(symbols),
            "LOG_LEVEL": "info",
            "LOG_FMT": "json",
        }
        hub = start("hub", env=env)
        hub.wait_for_line("connected, 2 symbols")
        fault = json.dumps({"on": "data", "kind": "half_open"}).encode()
        headers = {"APCA-API-KEY-ID": KEYS["ALPACA_API_KEY"], "APCA-API-SECRET-KEY": KEYS["ALPACA_SECRET_KEY"]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{exchange.port}/dry-work/v1/faults", data=fault, headers=headers
        )
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            assert answer.status == 200

        def connections() -> int:
            return hub.output.count("connected, 2 symbols")

        wait_until(lambda: connections() == 2, lambda: hub.output, PATIENCE_S)
        assert f"silent for {TIMEOUT_S:g} s" in hub.output
    finally:
        for program in reversed(programs):
            program.close()
