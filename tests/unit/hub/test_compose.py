"""The compose file of the hub: what it sets is what the hub reads, and its steps wait for each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dry_work.hub.assembly import build_hub
from dry_work.hub.observation_settings import read_observation_settings
from dry_work.hub.settings import SINKS, build_settings
from dry_work.hub.sinks.nats_settings import read_nats_settings
from dry_work.hub.variables import parse_duration

PATH = Path(__file__).parents[3] / "docs" / "examples" / "compose-hub.yaml"
GIVEN = {"ALPACA_API_KEY": "k", "ALPACA_API_SECRET": "s", "HUB_TOKEN": "t"}


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))["services"]
    return found


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    """Return its variables as compose gives them, with those of the user put in."""
    return {
        name: re.sub(r"\$\{([A-Z_]+):\?\}", lambda match: GIVEN[match[1]], str(value))
        for name, value in service["environment"].items()
    }


def test_the_hub_can_be_built_with_what_the_file_sets(services: dict[str, Any], clean_environment: Path) -> None:
    environment = environment_of(services["hub"])
    offered = [name for name in environment["HUB_SINKS"].split(",") if name in SINKS]
    settings = build_settings({**environment, "HUB_SINKS": ",".join(offered)})
    hub = build_hub(settings, environment)
    hub.stop(0.0)
    assert (settings.key, settings.token, settings.bind_host) == ("k", "t", "0.0.0.0")
    nats = read_nats_settings(environment)
    assert nats == read_nats_settings({**environment_of(services["nats-init"]), **environment})
    assert nats.servers == ("nats://nats:4222",)
    assert environment["REDIS_HOST"] in services


def test_only_ports_that_something_listens_on_are_published_and_on_this_machine_alone(services: dict[str, Any]) -> None:
    environment = environment_of(services["hub"])
    nats, seen = read_nats_settings(environment), read_observation_settings(environment)
    listening = {8099, 50052, nats.api.port, nats.api.proxy_port, seen.health_port}
    published = [port.split(":") for port in services["hub"]["ports"]]
    assert {int(inner) for _, _, inner in published} == listening
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    assert str(seen.health_port) in services["hub"]["healthcheck"]["test"][-1]


def test_the_init_step_waits_for_nats_and_the_hub_for_both(services: dict[str, Any]) -> None:
    assert services["nats-init"]["command"] == ["hub", "--init-nats"]
    assert services["nats-init"]["depends_on"] == {"nats": {"condition": "service_healthy"}}
    assert services["hub"]["depends_on"] == {
        "nats": {"condition": "service_healthy"},
        "nats-init": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }
    assert all("healthcheck" in services[name] for name in ("nats", "redis", "hub"))


def test_the_hub_has_time_to_stop_and_a_place_for_its_state(services: dict[str, Any]) -> None:
    hub = services["hub"]
    shutdown_s = parse_duration(hub["environment"]["SHUTDOWN_TIMEOUT"], name="SHUTDOWN_TIMEOUT")
    assert parse_duration(hub["stop_grace_period"], name="stop_grace_period") > shutdown_s
    mounted = hub["volumes"][0].partition(":")[2]
    assert hub["environment"]["HUB_STATE_DIR"].startswith(mounted)


def test_no_credential_stands_in_the_file(services: dict[str, Any]) -> None:
    for name in GIVEN:
        assert services["hub"]["environment"][name] == f"${{{name}:?}}"
