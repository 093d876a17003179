"""What a hub has loaded: the libraries of its own interfaces and no others, since they are most of its memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.alpaca_upstream import KEY, SECRET

# The libraries that are heavy, or belong to one interface, or to what this hub has switched off.
WATCHED = {
    "pandas", "numpy", "pyarrow", "backtrader", "google.auth", "google.pubsub_v1", "google.api_core", "opentelemetry",
    "prometheus_client", "grpc", "picows", "nats", "redis", "alpaca.trading", "alpaca.broker", "alpaca.data",
}  # fmt: skip
SCRIPT = """
import json, sys
from dry_work.hub.assembly import build_hub
from dry_work.hub.observation_settings import read_observation_settings
from dry_work.hub.settings import build_settings
environment = json.loads(sys.argv[1])
hub = build_hub(build_settings(environment), environment, observation=read_observation_settings(environment))
hub.start()
names = sorted(sys.modules)
hub.stop()
print(json.dumps(names))
"""


@pytest.mark.parametrize(
    ("sink", "own"), [("websocket", {"picows"}), ("grpc", {"grpc"}), ("nats", {"nats"}), ("redis", set())]
)
def test_a_hub_loads_the_libraries_of_its_interfaces_alone(sink: str, own: set[str]) -> None:
    environment = {
        "HUB_SINKS": sink, "ALPACA_API_KEY": KEY, "ALPACA_SECRET_KEY": SECRET,
        "ALPACA_URL": "http://127.0.0.1:9", "ALPACA_STREAM_URL": "ws://127.0.0.1:9",
        "PROXY_PORT": "0", "STREAM_PROXY_GRPC_PORT": "0", "NATS_URL": "127.0.0.1:9", "REDIS_PORT": "9",
        "STREAM_PROXY_HEALTH_PORT": "0", "STREAM_PROXY_METRICS_PORT": "0", "DISABLE_HEALTH": "true",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(environment)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "dry_work.hub.upstreams.trade_updates" in loaded, "the account is served too"
    assert WATCHED & loaded == own
