"""Builds in Google Cloud Build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.api_core import exceptions as api
from google.cloud.devtools import cloudbuild_v1 as cloudbuild
from google.protobuf import duration_pb2

from deploy.build_plan import BuildPlan, BuildStep
from deploy.errors import DeployError, InternalError, NotFoundError
from deploy.google_errors import mapped
from deploy.ports import BuildRecord, BuildStatus

_PART = "Cloud Build"
_QUEUE_S = 3_600  # a build that has not begun by then is given up by Cloud Build
_LAST_WORDS = 6  # lines of the log that a reason quotes
_MAX_QUOTE = 800

_STATUS: dict[Any, BuildStatus] = {
    cloudbuild.Build.Status.PENDING: "queued",
    cloudbuild.Build.Status.QUEUED: "queued",
    cloudbuild.Build.Status.WORKING: "working",
    cloudbuild.Build.Status.SUCCESS: "success",
    cloudbuild.Build.Status.FAILURE: "failure",
    cloudbuild.Build.Status.INTERNAL_ERROR: "failure",
    cloudbuild.Build.Status.EXPIRED: "timeout",
    cloudbuild.Build.Status.TIMEOUT: "timeout",
    cloudbuild.Build.Status.CANCELLED: "cancelled",
}
_FAILED_STEPS = {
    "create-dockerfile": "the build could not begin",
    "copy-agent-code": "the source could not be read from the bucket",
    "build-agent-image": "the image could not be built: a requirement may not exist or not fit the others",
    "check-agent-import": "the agent cannot be imported in its image",
    "push-agent-image": "the image could not be pushed: the registry is down, or refuses the build's account",
    "write-manifest": "the manifest could not be written",
    "deploy-to-gke": "the cluster did not take the manifest",
}

ReadLog = Callable[[str, str], str]


class CloudBuildService:
    """A `BuildService` in Cloud Build.

    Args:
        read_log: returns the text of an object in a bucket of logs, given both; None: logs are not quoted.
        client: Google's client; None: one for this project's credentials.
    """

    def __init__(
        self,
        project: str,
        *,
        timeout_s: float = 10.0,
        read_log: ReadLog | None = None,
        client: cloudbuild.CloudBuildClient | None = None,
    ) -> None:
        self._project = project
        self._timeout_s = timeout_s
        self._read_log = read_log
        with mapped(_PART):
            self._client = client or cloudbuild.CloudBuildClient()

    def submit(self, plan: BuildPlan) -> str:
        """Start a build and return its id at once."""
        request = cloudbuild.CreateBuildRequest(project_id=self._project, build=encode_build(self._project, plan))
        with mapped(_PART, writes=True):
            # Sent once: a second one would be a second build.
            operation = self._client.create_build(request, retry=None, timeout=self._timeout_s)
            build_id = operation.metadata.build.id
        if not build_id:
            raise InternalError(f"{_PART} gave no id of the build")
        return str(build_id)

    def status(self, build_id: str) -> BuildRecord:
        """Return how a build stands."""
        with mapped(_PART):
            build = self._client.get_build(project_id=self._project, id=build_id, timeout=self._timeout_s)
        return self._record(build)

    def find(self, tag: str) -> BuildRecord | None:
        """Return the newest build with this tag, or None."""
        request = cloudbuild.ListBuildsRequest(project_id=self._project, filter=f'tags="{tag}"', page_size=1)
        with mapped(_PART):
            for build in self._client.list_builds(request, timeout=self._timeout_s).builds:
                return self._record(build)
        return None

    def cancel(self, build_id: str) -> None:
        """Ask a build to end; one that has ended or is unknown is left alone."""
        with mapped(_PART):
            try:
                self._client.cancel_build(project_id=self._project, id=build_id, timeout=self._timeout_s)
            except (api.NotFound, api.FailedPrecondition, api.InvalidArgument):
                return

    def log(self, build_id: str, *, limit: int) -> list[str]:
        """Return the last lines of a build's log."""
        with mapped(_PART):
            build = self._client.get_build(project_id=self._project, id=build_id, timeout=self._timeout_s)
        return self._log_lines(build)[-limit:]

    def close(self) -> None:
        """Close the connection."""
        self._client.transport.close()

    def _record(self, build: cloudbuild.Build) -> BuildRecord:
        status = _STATUS.get(build.status, "working")
        step = _current_step(build)
        return BuildRecord(
            build_id=build.id,
            status=status,
            tags=tuple(build.tags),
            step=step,
            reason=self._explain(build, status, step),
            log_url=build.log_url,
            finished=build.finish_time if build.finish_time else None,
        )

    def _explain(self, build: cloudbuild.Build, status: BuildStatus, step: str) -> str:
        if status in ("queued", "working", "success"):
            return ""
        if status == "cancelled":
            return "the build was cancelled"
        if status == "timeout":
            taken = int(build.timeout.total_seconds()) if build.timeout else 0
            return f"the build took longer than {taken} s, in {step or 'the queue'}: set DEPLOY_BUILD_TIMEOUT"
        what = _FAILED_STEPS.get(step, "the build failed")
        said = " ".join(build.failure_info.detail.split() or build.status_detail.split())
        try:
            words = " / ".join(self._log_lines(build, step)[-_LAST_WORDS:])
        except DeployError:
            words = ""
        quoted = words or said
        return f"{what} ({quoted[-_MAX_QUOTE:]})" if quoted else f"{what}; see its log"

    def _log_lines(self, build: cloudbuild.Build, step: str = "") -> list[str]:
        """Return the lines of a build's log, or of one of its steps without what Cloud Build puts before them."""
        if self._read_log is None or not build.logs_bucket:
            return []
        bucket, _, folder = build.logs_bucket.removeprefix("gs://").partition("/")
        name = f"{folder}/log-{build.id}.txt" if folder else f"log-{build.id}.txt"
        try:
            lines = self._read_log(bucket, name).splitlines()
        except NotFoundError:
            return []
        if not step:
            return lines
        mark = f'- "{step}": '
        return [line.partition(mark)[2].strip() for line in lines if mark in line and line.partition(mark)[2].strip()]


def encode_build(project: str, plan: BuildPlan) -> cloudbuild.Build:
    """Return a plan as Cloud Build's own message. Pure."""
    build = cloudbuild.Build(
        steps=[_encode_step(step, plan.steps[:position]) for position, step in enumerate(plan.steps)],
        substitutions=dict(plan.substitutions),
        tags=list(plan.tags),
        timeout=duration_pb2.Duration(seconds=plan.timeout_s),
        queue_ttl=duration_pb2.Duration(seconds=_QUEUE_S),
        options=cloudbuild.BuildOptions(
            substitution_option=cloudbuild.BuildOptions.SubstitutionOption.MUST_MATCH,
            # A value is put in once and is not looked through for further names.
            dynamic_substitutions=False,
        ),
    )
    if plan.service_account:
        build.service_account = f"projects/{project}/serviceAccounts/{plan.service_account}"
        build.options.logging = cloudbuild.BuildOptions.LoggingMode.CLOUD_LOGGING_ONLY
    return build


def _encode_step(step: BuildStep, before: Sequence[BuildStep]) -> cloudbuild.BuildStep:
    encoded = cloudbuild.BuildStep(
        id=step.id,
        name=step.name,
        args=list(step.args),
        script=step.script,
        env=list(step.env),
        wait_for=[before[-1].id] if before else ["-"],
    )
    if step.timeout_s is not None:
        encoded.timeout = duration_pb2.Duration(seconds=step.timeout_s)
    return encoded


def _current_step(build: cloudbuild.Build) -> str:
    """Return the step that runs or that failed: the first one that is not done well."""
    for step in build.steps:
        if step.status != cloudbuild.Build.Status.SUCCESS:
            started = step.status != cloudbuild.Build.Status.STATUS_UNKNOWN or build.status not in (
                cloudbuild.Build.Status.PENDING,
                cloudbuild.Build.Status.QUEUED,
            )
            return str(step.id) if started else ""
    return ""


def bucket_log_reader(project: str, *, timeout_s: float = 10.0) -> ReadLog:
    """Return what reads logs from buckets with the service's account."""
    from google.cloud import storage

    client: Any = None

    def read(bucket: str, name: str) -> str:
        nonlocal client
        with mapped("the bucket of build logs"):
            client = client or storage.Client(project=project)
            return str(client.bucket(bucket).blob(name).download_as_bytes(timeout=timeout_s), "utf-8", "replace")

    return read
