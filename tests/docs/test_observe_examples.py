"""Dashboards and alert rules name metrics that are exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dry_work.engine.telemetry_metrics import STAGES, RunCounts, build_run_metrics
from dry_work.hub.metrics import HubCounts, build_feed_metrics
from dry_work.observability.metrics import encode_metrics
from dry_work.orders.risk import RiskState

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
HOW_TO = Path(__file__).parents[2] / "docs" / "howto"
NAME = re.compile(r"\b(?:dry_work|alpaca_proxy)_[a-z_]+")


def exported() -> set[str]:
    """Return the names of the agent's metrics as exported, and those of the hub as exported or documented."""
    text = encode_metrics(
        [*build_run_metrics(RunCounts(agent="a", mode="paper")), *build_feed_metrics(HubCounts(feeds=()))]
    )
    names = set(re.findall(r"^# TYPE (\S+)", text.decode(), re.M))
    names |= {f"{name}_{part}" for name in names for part in ("bucket", "sum", "count") if name.endswith("_seconds")}
    return names | set(NAME.findall((HOW_TO / "observe-hub.md").read_text(encoding="utf-8")))


def rules() -> Iterator[dict[str, Any]]:
    content = yaml.safe_load((EXAMPLES / "alerts.yml").read_text(encoding="utf-8"))
    for group in content["groups"]:
        yield from group["rules"]


@pytest.mark.parametrize("name", ["agents", "hub"])
def test_a_dashboard_parses_and_names_only_metrics_that_are_exported(name: str) -> None:
    board = json.loads((EXAMPLES / "grafana" / f"{name}.json").read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    used = {found for panel in panels for target in panel["targets"] for found in NAME.findall(target["expr"])}
    assert used
    assert used - exported() == set()


def test_the_alert_rules_name_only_metrics_and_states_that_are_exported() -> None:
    found = list(rules())
    assert len({rule["alert"] for rule in found}) == len(found) >= 8
    for rule in found:
        assert set(NAME.findall(rule["expr"])) - exported() == set(), rule["alert"]
        assert set(NAME.findall(rule["expr"])), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        for label, value in re.findall(r'(state|stage)!?="(\w+)"', rule["expr"]):
            assert value in (set(RiskState) if label == "state" else set(STAGES))


def test_every_metric_of_the_agent_is_documented() -> None:
    text = (HOW_TO / "observe.md").read_text(encoding="utf-8")
    for metric in build_run_metrics(RunCounts(agent="a", mode="paper")):
        assert f"`{metric.name}`" in text, metric.name
    assert all(f"`{stage}`" in text for stage in STAGES)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_alert_rules() -> None:
    command = ["promtool", "check", "rules", str(EXAMPLES / "alerts.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
