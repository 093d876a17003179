"""Builds: what Cloud Build is asked, and Google's own client against a server that checks what Cloud Build checks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.cloud.devtools import cloudbuild_v1 as cloudbuild
from google.protobuf import duration_pb2

from deploy.archive import digest_of
from deploy.build_cloud import CloudBuildService, encode_build
from deploy.build_plan import BUILD_ID_MARK, BuildPlan, build_plan
from deploy.errors import DeployError, InternalError, NotFoundError, OutcomeUnknownError, UnavailableError
from deploy.manifest import AgentManifest
from deploy.settings import DeploySettings
from tests.deploy.cloud_build_server import CloudBuildServer, Refused, check_build
from tests.deploy.service_stack import agent_zip

SETTINGS = DeploySettings(project="my-project", region="europe-west3", cluster="c-1")
DEADLINE_S = 60.0


def make_plan(**changes: Any) -> BuildPlan:
    """Return a plan with ids that try to be more than data."""
    image = f"{SETTINGS.agent_image('a')}:{BUILD_ID_MARK}"
    documents, manifest = AgentManifest(SETTINGS)(normalised="a", user_id="$PROJECT_ID'\"\n${_X} $(id)", image=image)
    given = {
        "agent_id": "a'\"$(id)`id`",
        "normalised": "a",
        "user_id": "user-of-the-test",
        "source": "gs://agent-source-code/user-of-the-test/a'\"$(id)`id` $BUILD_ID/agent-source.zip#12",
        "digest": "d" * 64,
        "agent": "mine/strategy.py:Mine",
        "documents": documents,
        "manifest": manifest,
        "tags": ("agent-a", "attempt-1"),
        **changes,
    }
    return build_plan(SETTINGS, **given)


def test_the_steps_are_the_documented_ones_in_their_order() -> None:
    plan = make_plan()
    ids = [step.id for step in plan.steps]
    wanted = [
        "create-dockerfile",
        "copy-agent-code",
        "build-agent-image",
        "push-agent-image",
        "write-manifest",
        "deploy-to-gke",
    ]
    assert [step for step in ids if step in wanted] == wanted
    assert set(ids) - set(wanted) == {"check-agent-import"}
    assert ids.index("build-agent-image") < ids.index("check-agent-import") < ids.index("push-agent-image")
    by_id = {step.id: step for step in plan.steps}
    assert by_id["copy-agent-code"].name.endswith("/gsutil")
    confined = {"--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=512m"}
    assert confined < set(by_id["check-agent-import"].args)
    assert by_id["deploy-to-gke"].name.endswith("/kubectl")
    assert by_id["deploy-to-gke"].env == (
        "CLOUDSDK_COMPUTE_REGION=$_REGION",
        "CLOUDSDK_CONTAINER_CLUSTER=$_CLUSTER",
    )
    assert plan.timeout_s == 300
    assert all(not (step.script and step.args) for step in plan.steps)
    assert all("ZONE" not in entry for step in plan.steps for entry in step.env)


def test_what_comes_from_outside_is_in_substitutions_and_in_the_parsed_manifest_only() -> None:
    plan = make_plan()
    for step in plan.steps:
        for text in (step.script, *step.args, *(entry for entry in step.env if not entry.startswith("MANIFEST="))):
            for value in (plan.source, plan.agent_id, plan.digest, plan.agent, plan.user_id, "my-project"):
                assert value not in text
    first, second = make_plan(), make_plan(source="gs://b/x/y/agent-source.zip#1", agent_id="other", digest="e" * 64)
    assert first.steps == second.steps


def test_cloud_build_takes_the_plan_and_puts_only_the_builds_id_into_the_manifest() -> None:
    build = encode_build("my-project", make_plan())
    check_build(build)
    step = {step.id: step for step in build.steps}["write-manifest"]
    text = step.env[0].removeprefix("MANIFEST=")
    put_in = text.replace("${BUILD_ID}", "build-1")
    assert put_in != text
    documents = list(yaml.safe_load_all(put_in.replace("$$", "$")))
    assert documents == make_plan().documents_of("build-1")
    deployment = next(document for document in documents if document["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"].endswith("/trading-agent-a:build-1")
    assert deployment["metadata"]["annotations"]["dry-work/creator-id"] == "$PROJECT_ID'\"\n${_X} $(id)"
    assert [step.wait_for for step in build.steps] == [["-"], *([step.id] for step in build.steps[:-1])]
    assert build.options.dynamic_substitutions is False


def test_builds_run_as_their_own_account_when_one_is_set() -> None:
    settings = DeploySettings(project="my-project", build_account="b@my-project.iam.gserviceaccount.com")
    plan = make_plan()
    given = {name: getattr(plan, name) for name in ("agent_id", "normalised", "user_id", "source", "digest", "agent")}
    image = f"{settings.agent_image('a')}:{BUILD_ID_MARK}"
    documents, manifest = AgentManifest(settings)(normalised="a", user_id="ann", image=image)
    found = build_plan(settings, **given, documents=documents, manifest=manifest, tags=("t",))
    build = encode_build("my-project", found)
    assert build.service_account == "projects/my-project/serviceAccounts/b@my-project.iam.gserviceaccount.com"
    assert build.options.logging == cloudbuild.BuildOptions.LoggingMode.CLOUD_LOGGING_ONLY


def test_a_manifest_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InternalError, match="does not name the image of its build"):
        make_plan(manifest="kind: Deployment\n")
    with pytest.raises(InternalError, match="more than 60,000 bytes"):
        make_plan(manifest=make_plan().image + f":{BUILD_ID_MARK}" + "#" * 60_000)


def _broken(**changes: Any) -> cloudbuild.Build:
    build = encode_build("my-project", make_plan())
    for name, value in changes.items():
        setattr(build, name, value)
    return build


def test_the_server_refuses_what_cloud_build_refuses() -> None:
    builds = [
        (_broken(substitutions={**make_plan().substitutions, "_UNUSED": "x"}), '"_UNUSED" in the substitution data'),
        (_broken(substitutions={}), '"_SOURCE" is not matched'),
        (_broken(substitutions={"lower": "x"}), "does not respect format"),
        (_broken(timeout=duration_pb2.Duration(seconds=86_401)), "timeout exceeds"),
        (_broken(steps=[]), "no build steps"),
        (_broken(tags=["no spaces"]), "invalid build tag"),
    ]
    for change, told in (
        ({"script": "echo", "args": ["x"]}, "script and args"),
        ({"id": "copy-agent-code"}, "the ID is not unique"),
        ({"wait_for": ["later"]}, "has not been defined"),
        ({"args": ["$ZONE"]}, '"ZONE" is not a valid built-in'),
        ({"name": ""}, "must specify name"),
        ({"env": ["NOVALUE"]}, "KEY=VALUE"),
        ({"timeout": duration_pb2.Duration(seconds=301)}, "step timeout must be"),
    ):
        build = _broken()
        for name, value in change.items():
            setattr(build.steps[2], name, value)
        builds.append((build, told))
    for build, told in builds:
        with pytest.raises(Refused) as caught:
            check_build(build)
        assert told in str(caught.value)


# Google's client


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudBuildServer]:
    applied: list[str] = []
    server = CloudBuildServer(
        tmp_path / "builds", fetch=lambda bucket, name, generation: agent_zip(), apply=applied.append
    )
    server.applied = applied  # type: ignore[attr-defined]
    server.run_imports = False
    yield server
    server.close()


@pytest.fixture
def builds(cloud: CloudBuildServer) -> Iterator[CloudBuildService]:
    service = CloudBuildService("my-project", timeout_s=30.0, read_log=cloud.read_log, client=cloud.client())
    yield service
    service.close()
    service.close()


def wait(builds: CloudBuildService, build_id: str) -> Any:
    import time

    deadline = time.monotonic() + DEADLINE_S
    while not (found := builds.status(build_id)).is_done:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_plan_is_carried_out_and_found_by_its_tag(cloud: CloudBuildServer, builds: CloudBuildService) -> None:
    plan = make_plan(digest=digest_of(agent_zip()))
    assert builds.find("attempt-1") is None
    build_id = builds.submit(plan)
    found = wait(builds, build_id)
    assert (found.status, found.reason, found.step) == ("success", "", "")
    assert found.finished is not None
    assert found.tags == ("agent-a", "attempt-1")
    assert builds.find("attempt-1") == found
    assert list(yaml.safe_load_all(cloud.applied[0])) == plan.documents_of(build_id)  # type: ignore[attr-defined]
    assert builds.log(build_id, limit=1) == ['Step #6 - "deploy-to-gke": applied']
    builds.cancel(build_id)
    assert builds.status(build_id).status == "success"
    builds.cancel("unknown")
    with pytest.raises(NotFoundError):
        builds.status("unknown")


def test_an_archive_that_was_exchanged_is_not_built(cloud: CloudBuildServer, builds: CloudBuildService) -> None:
    found = wait(builds, builds.submit(make_plan(digest="0" * 64)))
    assert (found.status, found.step) == ("failure", "build-agent-image")
    assert "the source is not the one that was checked: deploy again" in found.reason
    assert cloud.registry == {}


def test_a_build_that_takes_too_long_and_a_cancelled_one_say_so(
    cloud: CloudBuildServer, builds: CloudBuildService
) -> None:
    cloud.go.clear()
    slow, cancelled = builds.submit(make_plan()), builds.submit(make_plan())
    assert builds.status(slow).status == "queued"
    cloud.builds[slow].status = cloudbuild.Build.Status.TIMEOUT
    assert builds.status(slow).reason.startswith("the build took longer than 300 s")
    builds.cancel(cancelled)
    assert builds.status(cancelled).reason == "the build was cancelled"


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        (grpc.StatusCode.UNAVAILABLE, OutcomeUnknownError, "did not answer in time"),
        (grpc.StatusCode.INTERNAL, OutcomeUnknownError, "did not answer in time"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, OutcomeUnknownError, "did not answer in time"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UnavailableError, "a quota is used up"),
        (grpc.StatusCode.PERMISSION_DENIED, InternalError, "give it the roles"),
        (grpc.StatusCode.UNAUTHENTICATED, InternalError, "give it the roles"),
        (grpc.StatusCode.INVALID_ARGUMENT, InternalError, "does not take the request"),
        (grpc.StatusCode.FAILED_PRECONDITION, InternalError, "does not take the request"),
    ],
)
def test_errors_of_cloud_build_keep_their_meaning(
    cloud: CloudBuildServer, builds: CloudBuildService, code: grpc.StatusCode, error: type[DeployError], told: str
) -> None:
    cloud.refuse["CreateBuild"] = (code, "said by Cloud Build")
    with pytest.raises(error, match=f"Cloud Build.*{told}.*said by Cloud Build"):
        builds.submit(make_plan())
    assert cloud.calls == ["CreateBuild"]  # sent once, whatever is answered


def test_a_cloud_build_that_cannot_be_reached_has_started_nothing(cloud: CloudBuildServer) -> None:
    service = CloudBuildService("my-project", timeout_s=30.0, client=cloud.client())
    cloud.close()
    with pytest.raises(UnavailableError) as caught:
        service.submit(make_plan())
    assert not isinstance(caught.value, OutcomeUnknownError)
    service.close()


def test_the_scripts_of_the_steps_are_plain_shell() -> None:
    scripts = {step.id: step.script for step in make_plan().steps if step.script}
    assert "create-dockerfile" in scripts
    for name, script in scripts.items():
        done = subprocess.run(["/bin/sh", "-n", "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
        assert (done.returncode, done.stderr) == (0, ""), name
