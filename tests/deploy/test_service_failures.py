"""What the deploy service tells and does when a build or a rollout fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.service_stack import ANN, Stack, agent_zip


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    stack.close()


@pytest.mark.parametrize(
    ("step", "said", "told"),
    [
        ("copy-agent-code", "CommandException: No URLs matched", "source could not be read from the bucket"),
        ("build-agent-image", "No matching distribution found for ta==9", "image could not be built.*found for ta==9"),
        ("check-agent-import", "ModuleNotFoundError: No module named 'ta'", "cannot be imported.*module named 'ta'"),
        ("push-agent-image", "denied: Permission denied", "image could not be pushed: the registry.*denied"),
        ("deploy-to-gke", "error: You must be logged in", "cluster did not take the manifest.*logged in"),
    ],
)
def test_a_build_that_fails_ends_in_a_reason_and_can_be_repeated(stack: Stack, step: str, said: str, told: str) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.failing = {step: said}
    first = stack.service.deploy(ANN, agent)
    found = stack.settle()
    assert found["status"] == "deployment_failed"
    assert re.search(told, found["error"]), found["error"]
    assert stack.fields()["deploymentCompleted"] is not None
    stack.cloud.failing = {}
    assert stack.service.deploy(ANN, agent)["buildId"] != first["buildId"]
    assert stack.settle()["status"] == "deployed"


def test_after_a_failed_build_it_is_told_that_the_agent_before_still_runs(stack: Stack) -> None:
    agent = stack.create()
    stack.deployed()
    stack.service.upload(ANN, agent, agent_zip("broken"))
    stack.cloud.failing = {"check-agent-import": "NameError"}
    stack.service.deploy(ANN, agent)
    assert stack.settle()["error"].endswith("; what was deployed before still runs")


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        ("image", "image gcr.io/my-project/trading-agent-my-agent:.* cannot be pulled"),
        ("crash", "the agent ended 3 times with exit code 1: Traceback / KeyError: 'AAPL'"),
        ("memory", "needs more memory than its limit and was killed 4 times"),
        ("secret", "a Secret is missing"),
        ("quota", "the namespace's quota is used up"),
    ],
)
def test_a_rollout_that_fails_ends_in_a_reason(stack: Stack, pod: str, told: str) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.kubernetes.pod = pod
    stack.service.deploy(ANN, agent)
    found = stack.settle()
    assert found["status"] == "deployment_failed"
    assert re.search(told, found["error"]), found["error"]


def test_an_agent_that_never_becomes_ready_fails_after_the_time_out(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.kubernetes.pod = "nodes"
    stack.service.deploy(ANN, agent)
    found = stack.until(lambda: stack.service.status(ANN, agent), lambda found: found["build"]["status"] == "success")
    assert found["status"] == "deploying"
    assert found["rollout"]["reason"].startswith("no node has room for the agent: 0/3 nodes")
    stack.clock.advance(601)
    found = stack.settle()
    assert found["status"] == "deployment_failed"
    assert found["error"].startswith("the agent was not ready within 600 s: no node has room")
