"""Cloud Build over its own gRPC protocol: checks what Cloud Build checks, and carries out the steps' effects here."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.cloud.devtools import cloudbuild_v1 as cloudbuild
from google.cloud.devtools.cloudbuild_v1.services.cloud_build.transports import CloudBuildGrpcTransport
from google.longrunning import operations_pb2
from google.protobuf import any_pb2

DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]
Status = cloudbuild.Build.Status

_KEY = re.compile(r"_[A-Z0-9_]+")
_PARAMETER = re.compile(r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Z_][A-Z0-9_]*)|\{(?P<braced>[A-Z_][A-Z0-9_]*)\})")
_BUILT_IN = {"PROJECT_ID", "BUILD_ID", "PROJECT_NUMBER", "LOCATION"}
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DONE = (Status.SUCCESS, Status.FAILURE, Status.TIMEOUT, Status.CANCELLED, Status.INTERNAL_ERROR, Status.EXPIRED)

Fetch = Callable[[str, str, str], bytes]  # bucket, name, generation


class StepError(Exception):
    """A step failed; the text is its output."""


class Refused(Exception):
    """Cloud Build answers INVALID_ARGUMENT."""


def check_build(build: Any) -> None:
    """Refuse what Cloud Build refuses: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.builds."""
    seconds = build.timeout.total_seconds() if build.timeout else 600
    if not 0 < seconds <= 86_400:
        raise Refused(f"timeout exceeds the timeout limit: {seconds}")
    if not build.steps:
        raise Refused("no build steps are specified")
    if len(build.steps) > 300 or len(build.tags) > 64:
        raise Refused("too many steps or tags")
    for key, value in build.substitutions.items():
        if not _KEY.fullmatch(key) or len(key) > 100:
            raise Refused(f'substitution key "{key}" does not respect format "^_[A-Z0-9_]+$"')
        if len(value) > 4_000:
            raise Refused(f"substitution value of {key} too long")
    for tag in build.tags:
        if not _TAG.fullmatch(tag):
            raise Refused(f"invalid build tag {tag!r}")
    used: set[str] = set()
    known = {"-"}
    for number, step in enumerate(build.steps):
        if not step.name:
            raise Refused(f"build step {number} must specify name")
        if step.script and (step.args or step.entrypoint):
            raise Refused(f"build step {number}: script and args or entrypoint cannot be used together")
        if len(step.args) > 100 or any(len(arg) > 10_000 for arg in step.args):
            raise Refused(f"build step {number}: too many or too long args")
        if len(step.env) > 100 or any("=" not in entry or len(entry) > 65_536 for entry in step.env):
            raise Refused(f"build step {number}: env is to be of the form KEY=VALUE")
        for before in step.wait_for:
            if before not in known:
                raise Refused(f'build step #{number} - "{step.id}" depends on "{before}", which has not been defined')
        if step.id in known:
            raise Refused(f'build step #{number} - "{step.id}": the ID is not unique')
        known.add(step.id)
        if step.timeout and step.timeout.total_seconds() > seconds:
            raise Refused(f"build step #{number}: step timeout must be <= build timeout")
        for text in (step.name, step.dir_, *step.args, *step.env):
            for match in _PARAMETER.finditer(text):
                key = match["plain"] or match["braced"]
                if key is None:
                    continue
                if key in build.substitutions:
                    used.add(key)
                elif _KEY.fullmatch(key):
                    raise Refused(f'key in the template "{key}" is not matched in the substitution data')
                elif key not in _BUILT_IN:
                    raise Refused(f'key in the template "{key}" is not a valid built-in substitution')
    for key in build.substitutions:
        if key not in used:
            raise Refused(f'key "{key}" in the substitution data is not matched in the template')


class CloudBuildServer:
    """A server on a port of its own. What is public may be set by a test at any time.

    Args:
        folder: for workspaces.
        fetch: reads an object of a bucket; `FileNotFoundError` when it is not there.
        apply: takes the text of a manifest, as kubectl does; `StepError` when the cluster does not.
    """

    def __init__(
        self, folder: Path, *, fetch: Fetch, apply: Callable[[str], None], project: str = "my-project"
    ) -> None:
        self.project = project
        self.fetch = fetch
        self.apply = apply
        self.builds: dict[str, Any] = {}
        self.logs: dict[str, list[str]] = {}
        self.images: dict[str, Path] = {}  # those built here, by tag
        self.registry: dict[str, Path] = {}
        self.go = threading.Event()  # builds wait for it before their first step
        self.go.set()
        self.hold_at = ""  # id of a step before which builds wait for `go` once more
        self.run_imports = True
        self.failing: dict[str, str] = {}  # output by step id
        self.refuse: dict[str, tuple[grpc.StatusCode, str]] = {}  # by method; CreateBuildAfter answers too late
        self.calls: list[str] = []
        self._folder = folder
        self._lock = threading.RLock()
        self._runners = ThreadPoolExecutor(4, thread_name_prefix="build")
        self._server = grpc.server(ThreadPoolExecutor(4, thread_name_prefix="cloud-build"))
        methods = {
            "CreateBuild": (self._create, cloudbuild.CreateBuildRequest, operations_pb2.Operation.SerializeToString),
            "GetBuild": (self._get, cloudbuild.GetBuildRequest, cloudbuild.Build.serialize),
            "ListBuilds": (self._list, cloudbuild.ListBuildsRequest, cloudbuild.ListBuildsResponse.serialize),
            "CancelBuild": (self._cancel, cloudbuild.CancelBuildRequest, cloudbuild.Build.serialize),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, call), request_deserializer=request.deserialize, response_serializer=serialize
            )
            for name, (call, request, serialize) in methods.items()
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("google.devtools.cloudbuild.v1.CloudBuild", handlers),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def client(self) -> cloudbuild.CloudBuildClient:
        """Return Google's own client, connected here."""
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        return cloudbuild.CloudBuildClient(transport=CloudBuildGrpcTransport(channel=channel))

    def read_log(self, bucket: str, name: str) -> str:
        """Return the log of a build as Cloud Build puts it in a bucket."""
        assert bucket == "logs"
        return "\n".join(self.logs[name.removeprefix("log-").removesuffix(".txt")])

    def close(self) -> None:
        """Stop the server and its builds."""
        self.hold_at = ""
        with self._lock:
            for build in self.builds.values():
                if build.status not in _DONE:
                    build.status = Status.CANCELLED
        self.go.set()
        self._runners.shutdown(wait=True, cancel_futures=True)
        self._server.stop(0).wait(DEADLINE_S)

    # The protocol

    def _guarded(self, name: str, call: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.calls.append(name)
                if name in self.refuse:
                    context.abort(*self.refuse[name])
                try:
                    found = call(request)
                except KeyError:
                    context.abort(grpc.StatusCode.NOT_FOUND, "Requested entity was not found.")
                except Refused as refused:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refused))
                except StepError as error:
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
                if f"{name}After" in self.refuse:
                    context.abort(*self.refuse[f"{name}After"])
                return found

        return answer

    def _create(self, request: Any) -> Any:
        assert request.project_id == self.project
        build = cloudbuild.Build(request.build)
        check_build(build)
        build.id = str(uuid.uuid4())
        build.project_id = request.project_id
        build.status = Status.QUEUED
        build.create_time = dt.datetime.now(dt.UTC)
        build.logs_bucket = "gs://logs"
        build.log_url = f"https://console.cloud.google.com/cloud-build/builds/{build.id}"
        self.builds[build.id] = build
        self.logs[build.id] = []
        self._runners.submit(self._run, build)
        metadata = any_pb2.Any()
        metadata.Pack(cloudbuild.BuildOperationMetadata.pb(cloudbuild.BuildOperationMetadata(build=build)))
        return operations_pb2.Operation(name=f"operations/build/{build.id}", metadata=metadata)

    def _get(self, request: Any) -> Any:
        return self.builds[request.id]

    def _list(self, request: Any) -> Any:
        match = re.fullmatch(r'tags="([^"]*)"', request.filter)
        assert match is not None, request.filter
        found = [build for build in reversed(self.builds.values()) if match[1] in build.tags]
        return cloudbuild.ListBuildsResponse(builds=found[: request.page_size or 50])

    def _cancel(self, request: Any) -> Any:
        build = self.builds[request.id]
        if build.status in _DONE:
            raise StepError("the build is not running")
        build.status = Status.CANCELLED
        build.finish_time = dt.datetime.now(dt.UTC)
        return build

    # The steps

    def _run(self, build: Any) -> None:
        workspace = self._folder / build.id
        workspace.mkdir(parents=True)
        step: Any = None
        try:
            self.go.wait(DEADLINE_S)
            for number, step in enumerate(build.steps):
                if step.id == self.hold_at:
                    self.go.wait(DEADLINE_S)
                with self._lock:
                    if build.status in _DONE:
                        return
                    build.status = step.status = Status.WORKING
                self._run_step(build, number, step, workspace)
                with self._lock:
                    step.status = Status.SUCCESS
            self._end(build, Status.SUCCESS)
        except StepError as error:
            with self._lock:
                step.status = Status.FAILURE
                self.logs[build.id] += [f'Step #{number} - "{step.id}": {line}' for line in str(error).splitlines()]
            self._end(build, Status.FAILURE)
        except BaseException as error:  # a mistake of this server is to be seen in the test that meets it
            build.failure_info.detail = f"{type(error).__name__}: {error}"
            self._end(build, Status.INTERNAL_ERROR)
            raise
        finally:
            shutil.rmtree(workspace, ignore_errors=True)

    def _end(self, build: Any, status: Any) -> None:
        with self._lock:
            if build.status not in _DONE:
                build.finish_time = dt.datetime.now(dt.UTC)
                build.status = status

    def _expand(self, build: Any, text: str) -> str:
        values = {**build.substitutions, "BUILD_ID": build.id, "PROJECT_ID": self.project}
        return _PARAMETER.sub(
            lambda match: "$" if match["escaped"] else values[match["plain"] or match["braced"]], text
        )

    def _run_step(self, build: Any, number: int, step: Any, workspace: Path) -> None:
        if step.id in self.failing:
            raise StepError(self.failing[step.id])
        args = [self._expand(build, arg) for arg in step.args]
        env = dict(self._expand(build, entry).split("=", 1) for entry in step.env)
        builder = step.name.rpartition("/")[2]
        if step.script:
            output = _execute(["/bin/sh", "-c", step.script], workspace, {"PATH": os.environ["PATH"], **env})
        elif builder == "gsutil":
            output = self._gsutil(args, workspace)
        elif builder == "docker":
            output = {"build": self._build_image, "run": self._run_image, "push": self._push}[args[0]](
                args[1:], workspace
            )
        elif builder == "kubectl":
            assert args[:2] == ["apply", "--filename"]
            assert env["CLOUDSDK_COMPUTE_REGION"]
            assert env["CLOUDSDK_CONTAINER_CLUSTER"]
            self.apply((workspace / args[2]).read_text(encoding="utf-8"))
            output = "applied"
        else:
            raise StepError(f"no builder {step.name}")
        with self._lock:
            self.logs[build.id] += [f'Step #{number} - "{step.id}": {line}' for line in output.splitlines()]

    def _gsutil(self, args: list[str], workspace: Path) -> str:
        command, source, target = args
        assert command == "cp"
        if not source.startswith("gs://"):
            shutil.copyfile(source, workspace / target)
            return "copied"
        bucket, _, rest = source.removeprefix("gs://").partition("/")
        name, _, generation = rest.rpartition("#")
        try:
            (workspace / target).write_bytes(self.fetch(bucket, name, generation))
        except FileNotFoundError:
            raise StepError(f"CommandException: No URLs matched: {source}") from None
        return f"Copying {source}..."

    def _build_image(self, args: list[str], workspace: Path) -> str:
        given = dict(arg.removeprefix("--build-arg=").split("=", 1) for arg in args if arg.startswith("--build-arg="))
        tags = [arg.removeprefix("--tag=") for arg in args if arg.startswith("--tag=")]
        dockerfile = (workspace / "Dockerfile").read_text(encoding="utf-8")
        assert set(re.findall(r"^ARG (\w+)$", dockerfile, re.MULTILINE)) == set(given)
        assert 'RUN ["python", "/tmp/unpack/unpack.py"]' in dockerfile
        _execute([sys.executable, "unpack.py"], workspace, {"SOURCE_DIGEST": given["SOURCE_DIGEST"]})
        for line in (workspace / "requirements.txt").read_text(encoding="utf-8").splitlines():
            raise StepError(f"ERROR: No matching distribution found for {line}")
        image = self._folder / f"image-{uuid.uuid4().hex}"
        (workspace / "source").rename(image)
        for tag in tags:
            self.images[tag] = image
        return f"Successfully tagged {tags}"

    def _run_image(self, args: list[str], workspace: Path) -> str:
        del workspace
        code = args.index("-c")
        image = self.images[args[code - 1]]
        assert "--network=none" in args
        assert "--read-only" in args
        if not self.run_imports:
            return "not imported"
        environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        return _execute([sys.executable, *args[code:]], image, environment)

    def _push(self, args: list[str], workspace: Path) -> str:
        del workspace
        assert args[0] == "--all-tags"
        self.registry |= {tag: image for tag, image in self.images.items() if tag.rpartition(":")[0] == args[1]}
        return "pushed"


def _execute(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    if done.returncode:
        raise StepError((done.stdout + done.stderr).strip() or f"exit code {done.returncode}")
    return done.stdout
