"""The deploy service with Google's and Kubernetes' own clients, on servers that do what the real ones do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.archive import zip_files
from deploy.errors import (
    AlreadyExistsError,
    InvalidIdError,
    InvalidRequestError,
    InvalidSourceError,
    NotPermittedError,
    OutcomeUnknownError,
    PreconditionError,
    UnavailableError,
)
from tests.deploy.service_stack import ANN, BEN, DEADLINE_S, Stack, agent_files, agent_zip


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    stack.close()


# From an upload to a running pod


def test_an_upload_becomes_a_running_pod(stack: Stack) -> None:
    agent = stack.create()
    uploaded = stack.service.upload(ANN, agent, agent_zip())
    assert uploaded["symbols"] == ["AAPL", "BTC/USD"]
    started = stack.service.deploy(ANN, agent)
    build_id = started["buildId"]
    assert started == {
        "success": True,
        "agentId": "My_Agent",
        "deploymentName": "trading-agent-my-agent",
        "buildId": build_id,
        "status": "deploying",
    }
    found = stack.settle()
    assert found["status"] == "deployed"
    assert found["sourceDigest"] == uploaded["sourceDigest"]
    assert found["rollout"]["phase"] == "complete"
    deployment = stack.kubernetes.deployment("my-agent")
    assert deployment is not None
    image = f"gcr.io/my-project/trading-agent-my-agent:{build_id}"
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert {image, "gcr.io/my-project/trading-agent-my-agent:latest"} == set(stack.cloud.registry)
    fields = stack.fields()
    assert fields["userId"] == "ann"
    assert fields["status"] == "deployed"
    assert fields["kubernetesDeployment"] == "trading-agent-my-agent"
    assert fields["deploymentStarted"] <= fields["deploymentCompleted"]
    assert fields["error"] is None


def test_the_agent_is_imported_in_its_image_and_its_last_words_are_told(stack: Stack) -> None:
    stack.cloud.run_imports = True
    agent = stack.create()
    files = {**agent_files(), "agent/agent.py": b"import package_that_is_not_there\n\n\nclass Agent(Base):\n    pass\n"}
    stack.service.upload(ANN, agent, zip_files(files))
    stack.service.deploy(ANN, agent)
    found = stack.settle()
    assert found["status"] == "deployment_failed"
    assert found["error"].startswith("the agent cannot be imported in its image (")
    assert "No module named 'package_that_is_not_there'" in found["error"]
    assert stack.kubernetes.deployment("my-agent") is None


def test_a_second_call_while_a_build_runs_returns_the_same_build(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.go.clear()
    first = stack.service.deploy(ANN, agent)
    assert stack.service.deploy(ANN, agent) == first
    stack.service.upload(ANN, agent, agent_zip("newer"))
    assert stack.service.deploy(ANN, agent) == first
    newer = stack.fields()["sources"][-1]["digest"]
    with pytest.raises(PreconditionError, match=f"another source is being deployed, by the build {first['buildId']}"):
        stack.service.deploy(ANN, agent, newer)
    stack.cloud.go.set()
    assert stack.settle()["status"] == "deployed"
    assert len(stack.cloud.builds) == 1


def test_calls_at_the_same_time_start_one_build(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.go.clear()
    barrier = threading.Barrier(6)

    def call(_: int) -> Any:
        barrier.wait(DEADLINE_S)
        return stack.service.deploy(ANN, agent)["buildId"]

    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(call, range(6)))
    assert found == set(stack.cloud.builds)
    assert len(found) == 1


def test_the_same_source_is_not_deployed_twice_and_a_new_one_is(stack: Stack) -> None:
    agent = stack.create()
    first = stack.deployed()
    with pytest.raises(PreconditionError, match="deployed already, by the build"):
        stack.service.deploy(ANN, agent)
    second = stack.deployed(comment="better")
    assert second["sourceDigest"] != first["sourceDigest"]
    assert second["buildId"] != first["buildId"]


def test_a_deployment_that_somebody_deleted_is_deployed_again(stack: Stack) -> None:
    agent = stack.create()
    stack.deployed()
    stack.cluster.delete("my-agent")
    stack.service.deploy(ANN, agent)
    assert stack.settle()["status"] == "deployed"


def test_an_upload_that_did_not_come_by_the_service_is_checked_when_it_is_deployed(stack: Stack) -> None:
    agent = stack.create()
    stack.sources.write("ann", agent, b"no zip", expected_generation="")
    with pytest.raises(InvalidSourceError, match="is no zip"):
        stack.service.deploy(ANN, agent)
    assert stack.cloud.calls == []
    stack.sources.write("ann", agent, agent_zip(), expected_generation="1")
    stack.service.deploy(ANN, agent)
    assert stack.settle()["status"] == "deployed"


def test_the_build_takes_the_source_that_it_was_started_with(stack: Stack) -> None:
    agent = stack.create()
    digest = stack.service.upload(ANN, agent, agent_zip("one"))["sourceDigest"]
    stack.cloud.go.clear()
    stack.service.deploy(ANN, agent)
    stack.service.upload(ANN, agent, agent_zip("two"))
    stack.cloud.go.set()
    found = stack.settle()
    assert found["status"] == "deployed"
    assert found["sourceDigest"] == digest
    image = stack.cloud.registry["gcr.io/my-project/trading-agent-my-agent:latest"]
    assert b"# one" in (image / "agent/agent.py").read_bytes()


# Owners, ids, funds


def test_another_users_agent_is_untouched_and_looks_like_none_at_all(stack: Stack) -> None:
    agent = stack.create()
    stack.deployed()
    before, calls = stack.agents.read(agent), len(stack.cloud.calls)
    requests = len(stack.kubernetes.requests)
    attempts = (
        lambda agent: stack.service.deploy(BEN, agent),
        lambda agent: stack.service.upload(BEN, agent, agent_zip("evil")),
        lambda agent: stack.service.offer_upload(BEN, agent),
        lambda agent: stack.service.accept_upload(BEN, agent),
        lambda agent: stack.service.stop(BEN, agent, delete_state=True),
        lambda agent: stack.service.restart(BEN, agent),
        lambda agent: stack.service.rollback(BEN, agent),
        lambda agent: stack.service.status(BEN, agent),
        lambda agent: stack.service.logs(BEN, agent),
    )
    for attempt in attempts:
        texts = []
        for asked in (agent, "Nobodys"):
            with pytest.raises(NotPermittedError) as caught:
                attempt(asked)
            texts.append(str(caught.value).replace(asked, "X"))
        assert texts[0] == texts[1]
    assert stack.service.list_agents(BEN)["agents"] == []
    assert stack.agents.read(agent) == before
    assert stack.sources.generation("ben", agent) == ""
    assert (len(stack.cloud.calls), len(stack.kubernetes.requests)) == (calls, requests)


def test_a_document_without_an_owner_is_nobodys(stack: Stack) -> None:
    stack.agents.create("orphan", {"status": "deployed"})
    for user in (ANN, type(ANN)(user_id="")):
        with pytest.raises(NotPermittedError):
            stack.service.deploy(user, "orphan")


@pytest.mark.parametrize("agent_id", ["", "a/b", "..", "x\ny", "é" * 10, "a" * 50, "*", "a*b", None, 7, "__x__"])
def test_ids_that_cannot_be_used_are_refused_before_anything_else(stack: Stack, agent_id: Any) -> None:
    with pytest.raises(InvalidIdError):
        stack.service.deploy(ANN, agent_id)
    if agent_id:
        with pytest.raises(InvalidIdError):
            stack.service.create(ANN, agent_id, "x")


def test_ids_that_collide_after_normalisation_are_refused(stack: Stack) -> None:
    stack.create("My_Agent")
    for other, caller in (("my agent", ANN), ("MY-AGENT", BEN), ("my'agent", BEN)):
        with pytest.raises(AlreadyExistsError, match="becomes my-agent in Kubernetes names"):
            stack.service.create(caller, other, "x")
        assert stack.agents.read(other) is None
        # A document that another program wrote is refused when it is deployed.
        stack.agents.create(other, {"userId": caller.user_id})
        stack.service.upload(caller, other, agent_zip())
        with pytest.raises(PreconditionError, match="becomes my-agent"):
            stack.service.deploy(caller, other)
        assert "status" not in stack.fields(other)
    assert stack.cloud.calls == []


def test_an_agent_deployed_by_an_older_program_keeps_its_name(stack: Stack) -> None:
    stack.agents.create("old.one", {"userId": "ben", "kubernetesDeployment": "trading-agent-old-one"})
    with pytest.raises(AlreadyExistsError):
        stack.service.create(ANN, "old-one", "x")


def test_an_agent_is_made_once(stack: Stack) -> None:
    made = stack.service.create(ANN, "bot", "Bot")
    assert stack.service.create(ANN, "bot", "Bot") == made
    with pytest.raises(AlreadyExistsError, match="is taken"):
        stack.service.create(BEN, "bot", "Bot")
    with pytest.raises(AlreadyExistsError, match="named 'Bot'"):
        stack.service.create(ANN, "bot", "Other")
    generated = stack.service.create(ANN, None, "Mein Müsli, 2")["agentId"]
    assert generated.startswith("mein-m-sli-2-")
    for name in ("", "a\nb", "x" * 101, 7):
        with pytest.raises(InvalidRequestError, match="name: expected"):
            stack.service.create(ANN, "other", name)  # type: ignore[arg-type]


def test_only_a_funded_account_deploys(stack: Stack) -> None:
    agent = stack.create(alpacaAccount={"account_funding_status": "PENDING", "id": "7"})
    stack.service.upload(ANN, agent, agent_zip())
    before = stack.agents.read(agent)
    with pytest.raises(PreconditionError, match="'PENDING', not FUNDED"):
        stack.service.deploy(ANN, agent)
    assert stack.agents.read(agent) == before
    assert before is not None
    stack.agents.update(before, {"alpacaAccount": {"account_funding_status": "FUNDED"}})
    assert stack.service.deploy(ANN, agent)["status"] == "deploying"


def test_fields_of_other_programs_stay(stack: Stack) -> None:
    stack.create(alpacaAccount={"account_funding_status": "FUNDED", "id": "7"}, theirs=[1, {"a": None}])
    stack.deployed()
    assert stack.fields()["alpacaAccount"] == {"account_funding_status": "FUNDED", "id": "7"}
    assert stack.fields()["theirs"] == [1, {"a": None}]


def test_what_is_needed_first_is_told(stack: Stack) -> None:
    agent = stack.create()
    with pytest.raises(PreconditionError, match="nothing was uploaded yet"):
        stack.service.deploy(ANN, agent)
    with pytest.raises(PreconditionError, match="nothing to roll back to"):
        stack.service.rollback(ANN, agent)
    for call in (stack.service.restart, stack.service.stop):
        with pytest.raises(PreconditionError, match="was never deployed"):
            call(ANN, agent)
    with pytest.raises(InvalidRequestError, match="64 hex digits"):
        stack.service.deploy(ANN, agent, "short")
    with pytest.raises(PreconditionError, match="no stored source has the digest 0000"):
        stack.service.deploy(ANN, agent, "0" * 64)
    stack.kubernetes.delete("/api/v1/namespaces/trading-agents/secrets/alpaca-credentials")
    stack.service.upload(ANN, agent, agent_zip())
    with pytest.raises(PreconditionError, match="has no Secret alpaca-credentials"):
        stack.service.deploy(ANN, agent)
    assert "status" not in stack.fields()


# Stop, restart, roll back


def test_a_stopped_agent_keeps_its_volume_and_comes_back_by_restart_without_a_build(stack: Stack) -> None:
    agent = stack.create()
    deployed = stack.deployed()
    assert stack.service.stop(ANN, agent)["status"] == "stopped"
    assert stack.kubernetes.deployment("my-agent") is None
    claim = "/api/v1/namespaces/trading-agents/persistentvolumeclaims/agent-state-my-agent"
    assert claim in stack.kubernetes.objects
    assert stack.service.stop(ANN, agent)["status"] == "stopped"
    assert stack.service.restart(ANN, agent)["status"] == "deploying"
    assert stack.settle()["status"] == "deployed"
    assert len(stack.cloud.builds) == 1
    deployment = stack.kubernetes.deployment("my-agent")
    assert deployment is not None
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"].endswith(deployed["buildId"])
    stack.service.stop(ANN, agent, delete_state=True)
    assert claim not in stack.kubernetes.objects


def test_a_running_agent_is_started_anew_by_restart(stack: Stack) -> None:
    agent = stack.create()
    stack.deployed()
    assert stack.service.restart(ANN, agent)["status"] == "deployed"
    deployment = stack.kubernetes.deployment("my-agent")
    assert deployment is not None
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations


def test_a_stop_cancels_the_build_that_runs_and_what_it_brings_all_the_same_is_deleted(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.go.clear()
    build_id = stack.service.deploy(ANN, agent)["buildId"]
    stack.cloud.refuse["CancelBuild"] = (grpc.StatusCode.UNAVAILABLE, "down")
    assert stack.service.stop(ANN, agent)["status"] == "stopped"
    stack.cloud.go.set()
    stack.until(lambda: stack.builds.status(build_id), lambda build: build.is_done)
    assert stack.kubernetes.deployment("my-agent") is not None
    assert stack.service.follow() == []
    assert stack.kubernetes.deployment("my-agent") is None
    assert stack.fields()["unsettled"] is False
    assert stack.service.status(ANN, agent)["status"] == "stopped"


class _StoppingBuilds:
    """Google's client, before whose submission somebody stops the agent."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._builds = stack, stack.builds

    def submit(self, plan: Any) -> str:
        self._stack.service.stop(ANN, plan.agent_id)
        return self._builds.submit(plan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builds, name)


def test_a_stop_between_the_decision_to_build_and_the_build_wins(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.go.clear()
    monkeypatch.setattr(stack.service, "_builds", _StoppingBuilds(stack))
    answer = stack.service.deploy(ANN, agent)
    assert answer["status"] == "stopped"
    stack.cloud.go.set()
    assert stack.builds.status(answer["buildId"]).status == "cancelled"
    assert stack.service.follow() == []
    assert stack.fields()["unsettled"] is False
    assert stack.kubernetes.deployment("my-agent") is None


def test_a_build_that_is_cancelled_by_a_stop_deploys_nothing(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.go.clear()
    build_id = stack.service.deploy(ANN, agent)["buildId"]
    assert stack.service.stop(ANN, agent)["status"] == "stopped"
    assert stack.builds.status(build_id).status == "cancelled"
    stack.cloud.go.set()
    assert stack.fields()["unsettled"] is False
    assert stack.service.deploy(ANN, agent)["buildId"] != build_id
    assert stack.settle()["status"] == "deployed"


def test_rolling_back_deploys_the_source_before(stack: Stack) -> None:
    agent = stack.create()
    one = stack.deployed(comment="one")
    two = stack.deployed(comment="two")
    stack.service.rollback(ANN, agent)
    assert stack.settle()["sourceDigest"] == one["sourceDigest"]
    stack.service.rollback(ANN, agent)
    assert stack.settle()["sourceDigest"] == two["sourceDigest"]


def test_after_a_failed_deployment_rolling_back_goes_to_the_last_good_source(stack: Stack) -> None:
    agent = stack.create()
    stack.deployed(comment="one")
    two = stack.deployed(comment="two")
    stack.kubernetes.pod = "crash"
    stack.service.upload(ANN, agent, agent_zip("three"))
    stack.service.deploy(ANN, agent)
    assert stack.settle()["status"] == "deployment_failed"
    stack.kubernetes.pod = "ready"
    stack.service.rollback(ANN, agent)
    found = stack.settle()
    assert (found["status"], found["sourceDigest"]) == ("deployed", two["sourceDigest"])


def test_a_source_is_deployed_by_its_digest(stack: Stack) -> None:
    agent = stack.create()
    one = stack.deployed(comment="one")
    stack.deployed(comment="two")
    stack.service.deploy(ANN, agent, one["sourceDigest"])
    assert stack.settle()["sourceDigest"] == one["sourceDigest"]


def test_the_same_archive_twice_is_one_source(stack: Stack) -> None:
    agent = stack.create()
    first = stack.service.upload(ANN, agent, agent_zip())
    assert stack.service.upload(ANN, agent, agent_zip()) == first
    assert len(stack.fields()["sources"]) == 1
    assert stack.sources.generation("ann", agent) == "1"


# Reading


def test_logs_are_those_of_the_agent_and_of_a_build_that_failed(stack: Stack) -> None:
    agent = stack.create()
    assert stack.service.logs(ANN, agent)["lines"] == []
    stack.deployed()
    lines = stack.service.logs(ANN, agent)["lines"]
    assert [line["text"] for line in lines] == ["started", "bar 1"]
    since = lines[0]["time"]
    assert [line["text"] for line in stack.service.logs(ANN, agent, since=since)["lines"]] == ["bar 1"]
    assert [line["text"] for line in stack.service.logs(ANN, agent, limit=1)["lines"]] == ["bar 1"]
    for limit in (0, 1001, True, "5"):
        with pytest.raises(InvalidRequestError, match="limit"):
            stack.service.logs(ANN, agent, limit=limit)  # type: ignore[arg-type]
    stack.service.upload(ANN, agent, agent_zip("broken"))
    stack.cloud.failing = {"check-agent-import": "NameError: x"}
    stack.service.deploy(ANN, agent)
    stack.settle()
    assert any("NameError: x" in line for line in stack.service.logs(ANN, agent)["buildLines"])


def test_agents_are_listed_with_their_states(stack: Stack) -> None:
    stack.create("b")
    stack.create("a")
    stack.create("c", BEN)
    stack.deployed("b")
    found = stack.service.list_agents(ANN)["agents"]
    assert [(agent["agentId"], agent["status"]) for agent in found] == [("a", ""), ("b", "deployed")]


# Parts that are down, and calls that were cut off


def test_a_build_service_that_is_down_leaves_the_agent_as_it_was(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    before = stack.fields()
    stack.cloud.refuse["CreateBuild"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    with pytest.raises(UnavailableError, match="a quota is used up"):
        stack.service.deploy(ANN, agent)
    after = {name: value for name, value in stack.fields().items() if value is not None}
    assert after == dict(before)
    del stack.cloud.refuse["CreateBuild"]
    stack.service.deploy(ANN, agent)
    assert stack.settle()["status"] == "deployed"


def test_a_build_whose_submission_was_not_answered_is_found_and_not_started_twice(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.go.clear()
    stack.cloud.refuse["CreateBuildAfter"] = (grpc.StatusCode.INTERNAL, "lost")
    with pytest.raises(OutcomeUnknownError, match="Cloud Build did not answer"):
        stack.service.deploy(ANN, agent)
    stack.cloud.refuse.clear()
    assert stack.fields()["buildId"] is None
    assert stack.service.deploy(ANN, agent)["buildId"] in stack.cloud.builds
    assert len(stack.cloud.builds) == 1
    stack.cloud.go.set()
    assert stack.settle()["status"] == "deployed"


def test_a_deployment_that_was_cut_off_before_its_build_is_started_anew(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.refuse["CreateBuild"] = (grpc.StatusCode.INTERNAL, "never arrived")
    with pytest.raises(OutcomeUnknownError):
        stack.service.deploy(ANN, agent)
    stack.cloud.refuse.clear()
    with pytest.raises(UnavailableError, match="another call is starting a build"):
        stack.service.deploy(ANN, agent)
    stack.clock.advance(61)
    assert stack.service.status(ANN, agent)["error"] == "the build was never started: deploy again"
    stack.service.deploy(ANN, agent)
    assert stack.settle()["status"] == "deployed"


def test_a_status_is_answered_while_parts_are_down(stack: Stack) -> None:
    agent = stack.create()
    stack.service.upload(ANN, agent, agent_zip())
    stack.cloud.go.clear()
    build_id = stack.service.deploy(ANN, agent)["buildId"]
    stack.cloud.refuse["GetBuild"] = (grpc.StatusCode.PERMISSION_DENIED, "no")
    stack.cloud.refuse["GetBuild"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    stack.kubernetes.fail = (503, "apiserver is starting")
    found = stack.service.status(ANN, agent)
    assert (found["status"], found["buildId"]) == ("deploying", build_id)
    assert any("Cloud Build" in text for text in found["unavailable"])
    assert any("apiserver is starting" in text for text in found["unavailable"])
    assert stack.service.deploy(ANN, agent)["buildId"] == build_id
    assert len(stack.service.follow()) == 1
    stack.cloud.refuse.clear()
    stack.kubernetes.fail = None
    stack.cloud.go.set()
    assert stack.settle()["status"] == "deployed"


def test_a_stop_while_the_cluster_is_down_is_carried_out_later(stack: Stack) -> None:
    agent = stack.create()
    stack.deployed()
    stack.kubernetes.fail = (500, "etcd")
    with pytest.raises(UnavailableError):
        stack.service.stop(ANN, agent)
    stack.kubernetes.fail = None
    assert stack.kubernetes.deployment("my-agent") is not None
    assert stack.service.status(ANN, agent)["status"] == "stopped"
    assert stack.kubernetes.deployment("my-agent") is None


def test_a_restart_while_the_cluster_is_down_leaves_the_agent_stopped(stack: Stack) -> None:
    agent = stack.create()
    stack.deployed()
    stack.service.stop(ANN, agent)
    stack.kubernetes.fail = (403, "forbidden")
    with pytest.raises(Exception, match="refuses the service's account"):
        stack.service.restart(ANN, agent)
    assert stack.fields()["status"] == "stopped"


def test_a_source_that_is_no_longer_stored_is_told_before_anything_is_written(stack: Stack, tmp_path: Path) -> None:
    agent = stack.create()
    one = stack.deployed(comment="one")
    stack.deployed(comment="two")
    before = stack.agents.read(agent)
    for path in (tmp_path / "sources").rglob("1.zip"):
        path.unlink()
    for call in (
        lambda: stack.service.rollback(ANN, agent),
        lambda: stack.service.deploy(ANN, agent, one["sourceDigest"]),
    ):
        with pytest.raises(Exception, match="not there any more: upload it again"):
            call()
    assert stack.agents.read(agent) == before
