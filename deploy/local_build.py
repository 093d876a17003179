"""Builds of the local target: the steps of a build plan, carried out by a process of this machine.

The process goes on by itself, so that a service that was killed finds the build done. A build's folder holds its plan,
its record, its log and, when it went well, `image/`: the agent's files; and `env/` when it has requirements of its own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from deploy.archive import check_archive
from deploy.build_plan import IMPORT_CHECK, WORKSPACE_ARCHIVE, BuildPlan
from deploy.checks import check_sources
from deploy.errors import DeployError, InternalError, NotFoundError, UnavailableError
from deploy.local_cluster import IMAGE_FILE, LocalCluster
from deploy.local_files import LocalFolder, base_environment, is_locked, read_json, take_lock, write_json
from deploy.local_spec import detach, die_with_parent, start_detached
from deploy.ports import BuildRecord
from deploy.unpack import unpack

KEPT_BUILDS = 8  # of one agent; older ones go, with their images
_LAST_WORDS = 6
_MAX_QUOTE = 800
_IMPORT_CPU_S = 60
_FAILED_STEPS = {
    "copy-agent-code": "the source could not be read",
    "build-agent-image": "the environment could not be built: a requirement may not exist or not fit the others",
    "check-agent-import": "the agent cannot be imported in its environment",
    "deploy-to-gke": "the agent could not be started",
}
# Handed on to pip, which has its settings there.
_PIP = "PIP_"


class LocalBuildService:
    """A `BuildService` of processes of this machine.

    Args:
        now: the time, UTC.
    """

    def __init__(self, folder: LocalFolder, *, now: Callable[[], dt.datetime]) -> None:
        self._folder = folder
        self._now = now

    def submit(self, plan: BuildPlan) -> str:
        """Start a build and return its id at once."""
        build_id = f"{self._now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        folder = self._folder.builds / build_id
        self._prune(plan.normalised)
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise UnavailableError(f"{folder}: cannot be made: {error.strerror}") from error
        kept = ("agent_id", "normalised", "source", "digest", "agent", "timeout_s")
        values = {name: getattr(plan, name) for name in kept}
        values |= {"steps": [step.id for step in plan.steps], "documents": plan.documents_of(build_id)}
        write_json(folder / "plan.json", values)
        started = self._now().isoformat()
        record = {"build_id": build_id, "normalised": plan.normalised, "tags": list(plan.tags), "started": started}
        write_json(folder / "record.json", {**record, "status": "queued", "step": "", "reason": "", "finished": ""})
        handle = take_lock(folder / "build.lock")
        if handle is None:
            raise InternalError(f"{folder}: is used by another process")
        try:
            start_detached(__name__, str(folder), lock=handle, log=folder / "process.log")
        except UnavailableError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(handle)
        return build_id

    def status(self, build_id: str) -> BuildRecord:
        """Return how a build stands."""
        found = self._read(build_id)
        if found["status"] in ("queued", "working") and not is_locked(self._folder.builds / build_id / "build.lock"):
            found = self._read(build_id)  # it may have ended in between
            if found["status"] in ("queued", "working"):
                words = read_words(self._folder.builds / build_id / "process.log")
                reason = f"the build was interrupted in {found['step'] or 'the beginning'}: deploy again"
                found = {**found, "status": "failure", "reason": f"{reason} ({words})" if words else reason}
        return _record(found, str(self._folder.builds / build_id / "log.txt"))

    def find(self, tag: str) -> BuildRecord | None:
        """Return the newest build with this tag, or None."""
        for build_id in self._list():
            with contextlib.suppress(DeployError):
                if tag in self._read(build_id)["tags"]:
                    return self.status(build_id)
        return None

    def cancel(self, build_id: str) -> None:
        """Ask a build to end; one that has ended or is unknown is left alone."""
        folder = self._folder.builds / _checked(build_id)
        (folder / "cancel").touch() if folder.is_dir() else None
        with contextlib.suppress(OSError, ValueError):
            pid = int((folder / "pid").read_text(encoding="ascii"))
            if is_locked(folder / "build.lock"):
                os.kill(pid, signal.SIGTERM)

    def log(self, build_id: str, *, limit: int) -> list[str]:
        """Return the last lines of a build's log."""
        try:
            text = (self._folder.builds / _checked(build_id) / "log.txt").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return text.splitlines()[-limit:]

    def close(self) -> None:
        """Nothing is held; builds go on."""

    def _list(self) -> list[str]:
        return sorted((path.name for path in self._folder.builds.iterdir() if path.is_dir()), reverse=True)

    def _read(self, build_id: str) -> dict[str, Any]:
        found = read_json(self._folder.builds / _checked(build_id) / "record.json")
        if found is None:
            raise NotFoundError(f"there is no build {build_id!a}")
        return found

    def _prune(self, normalised: str) -> None:
        """Remove the oldest builds of an agent, but not the one that it runs."""
        spec = LocalCluster(self._folder).kept(normalised).read_spec()
        running = spec.image.rpartition(":")[2] if spec else ""
        mine = []
        for build_id in self._list():
            with contextlib.suppress(DeployError):
                if self._read(build_id)["normalised"] == normalised and self.status(build_id).is_done:
                    mine.append(build_id)
        for build_id in mine[KEPT_BUILDS:]:
            if build_id != running:
                shutil.rmtree(self._folder.builds / build_id, ignore_errors=True)


def _checked(build_id: str) -> str:
    if not build_id.replace("-", "").isalnum():
        raise NotFoundError(f"there is no build {build_id!a}")
    return build_id


def _record(found: Mapping[str, Any], log: str) -> BuildRecord:
    return BuildRecord(
        build_id=str(found["build_id"]),
        status=found["status"],
        tags=tuple(found["tags"]),
        step=str(found["step"]),
        reason=str(found["reason"]),
        log_url=log,
        finished=dt.datetime.fromisoformat(found["finished"]) if found["finished"] else None,
    )


def read_words(path: Path) -> str:
    """Return the last line of a log; empty when there is none."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:_MAX_QUOTE] if lines else ""
    return ""


# The build's own process


def _die_at_once(parent: int) -> None:
    """End a step, just forked, with the build that it belongs to."""
    die_with_parent(signal.SIGKILL, parent)


class _CancelledError(BaseException):
    """SIGTERM: somebody has asked the build to end."""


class _TimeoutError(BaseException):
    """The build takes too long."""


class _StepError(Exception):
    """A step has failed; its words are in the log."""


class Build:
    """One build in its folder. Main thread of a process only: its time and its end come as signals."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        plan = read_json(folder / "plan.json")
        record = read_json(folder / "record.json")
        if plan is None or record is None:
            raise InternalError(f"{folder}: has no plan")
        self._plan, self._record = plan, record
        self._local = LocalFolder(folder.parents[1])
        self._child: subprocess.Popen[str] | None = None
        self._words: list[str] = []
        self._python = sys.executable

    def run(self) -> None:
        """Carry out the steps in their order, and write down how it went."""
        step = ""
        signal.signal(signal.SIGTERM, _raise_cancelled)
        signal.signal(signal.SIGALRM, _raise_timeout)
        try:
            signal.alarm(int(self._plan["timeout_s"]))
            (self._folder / "pid").write_text(str(os.getpid()), encoding="ascii")
            for step in self._plan["steps"]:
                if (self._folder / "cancel").exists():
                    raise _CancelledError
                self._note(status="working", step=step)
                self._words.clear()
                self._steps()[step]()
            signal.alarm(0)
            self._note(status="success", step="", finished=True)
        except _CancelledError:
            self._give_up("cancelled", "the build was cancelled")
        except _TimeoutError:
            self._give_up("timeout", f"the build took longer than {self._plan['timeout_s']} s, in {step}")
        except (_StepError, DeployError, OSError, ValueError) as error:
            if not isinstance(error, _StepError):
                self._say(str(error))
            quoted = " / ".join(self._words[-_LAST_WORDS:])[-_MAX_QUOTE:]
            self._give_up("failure", f"{_FAILED_STEPS.get(step, 'the build failed')} ({quoted})")

    def _steps(self) -> dict[str, Callable[[], None]]:
        return {
            "create-dockerfile": lambda: self._say("nothing to write: agents run in an environment of this machine"),
            "copy-agent-code": self._copy,
            "build-agent-image": self._build,
            "check-agent-import": self._check,
            "push-agent-image": self._push,
            "write-manifest": lambda: self._say(f"{len(self._plan['documents'])} objects"),
            "deploy-to-gke": lambda: LocalCluster(self._local).apply(self._plan["documents"]),
        }

    def _copy(self) -> None:
        source, target = Path(self._plan["source"]), self._folder / WORKSPACE_ARCHIVE
        shutil.copyfile(source, target)
        self._say(f"{target.stat().st_size:,} bytes")

    def _build(self) -> None:
        archive = self._folder / WORKSPACE_ARCHIVE
        requirements = unpack(archive, self._plan["digest"], self._folder / "unpacked")
        summary = check_sources(check_archive(archive.read_bytes()))
        if requirements:
            self._make_environment(requirements)
        else:
            self._say(f"no requirements of its own: {self._python}")
        facts = {"python": self._python, "agent": summary.agent, "symbols": list(summary.symbols)}
        write_json(self._folder / IMAGE_FILE, facts)
        archive.unlink()

    def _make_environment(self, requirements: Sequence[str]) -> None:
        """Make an environment on top of the one that Dry Work is in."""
        place = self._folder / "env"
        self._call([sys.executable, "-m", "venv", "--without-pip", str(place)])
        self._python = str(place / "bin" / "python")
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
        # Its own packages come first; those of Dry Work after them, also where it is installed for development.
        below = [path for path in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))) if path]
        lines = [f"import site; site.addsitedir({path!r})" for path in below]
        (packages / "dry-work-base.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
        listed = self._folder / "requirements.txt"
        listed.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--python", self._python, "--disable-pip-version-check", "--no-input"]
        # Wheels only: nothing of a requirement runs while it is installed.
        self._call([*pip, "install", "--only-binary", ":all:", "--requirement", str(listed)])
        # What Dry Work itself stands on must not be replaced by something that does not fit.
        self._call([self._python, "-P", "-c", "import dry_work, backtrader"])

    def _check(self) -> None:
        self._call(
            [self._python, "-P", "-c", IMPORT_CHECK, self._plan["agent"]],
            cwd=self._folder / "unpacked",
            prepare=_limit_import,
        )

    def _push(self) -> None:
        (self._folder / "unpacked").rename(self._folder / "image")
        self._say(f"{self._folder / 'image'}")

    def _call(
        self, argv: Sequence[str], *, cwd: Path | None = None, prepare: Callable[[int], None] = _die_at_once
    ) -> None:
        environment = base_environment(os.environ)
        environment |= {name: value for name, value in os.environ.items() if name.startswith(_PIP)}
        self._child = subprocess.Popen(  # noqa: S603 - a list, no shell
            argv,
            cwd=cwd or self._folder,
            env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=partial(prepare, os.getpid()),  # noqa: PLW1509 - there is one thread
        )
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._say(line.rstrip())
        code = self._child.wait()
        self._child = None
        if code != 0:
            if not self._words:
                self._say(f"ended with exit code {code}")
            raise _StepError

    def _give_up(self, status: str, reason: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(0)
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.communicate()
        for name in ("unpacked", "image", "env"):
            # The image of a deployment that has begun is what the agent may run already.
            if name == "unpacked" or self._record["step"] != "deploy-to-gke":
                shutil.rmtree(self._folder / name, ignore_errors=True)
        self._note(status=status, reason=reason, finished=True)

    def _note(self, *, finished: bool = False, **changes: str) -> None:
        self._record |= changes
        if finished:
            self._record["finished"] = dt.datetime.now(dt.UTC).isoformat()
        write_json(self._folder / "record.json", self._record)

    def _say(self, text: str) -> None:
        if text:
            self._words.append(text)
            with (self._folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f'- "{self._record["step"]}": {text}\n')


def _limit_import(parent: int) -> None:
    _die_at_once(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_IMPORT_CPU_S, _IMPORT_CPU_S))


def _raise_cancelled(*_: object) -> NoReturn:
    raise _CancelledError


def _raise_timeout(*_: object) -> NoReturn:
    raise _TimeoutError


if __name__ == "__main__":
    detach()
    Build(Path(sys.argv[1])).run()
