"""Agents as processes of this machine: the `Cluster` of the local target.

It takes the manifests that a cluster would get: command, variables, probes, limits and grace period come from them.
What a kubelet would do for a pod, a keeper does for a process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import DeployError, InternalError, NotFoundError, PreconditionError
from deploy.ids import NAME_PREFIX
from deploy.local_exchange import LocalExchange
from deploy.local_files import LocalFolder, TargetSettings, read_env_file, read_json, read_target
from deploy.local_spec import KeptProcess, ProcessSpec, ProcessState
from deploy.manifest import CONFIG
from deploy.ports import LogLine, RolloutState

IMAGE_FILE = "image.json"  # of a build's folder: what the image is
_IGNORED = ("PersistentVolumeClaim", "NetworkPolicy")  # the state directory is a folder; networks are not divided here
_CRASHES = 2  # restarts after which an agent that is not ready counts as failed
_USAGE = 2  # exit code of settings that cannot be used: starting again does not help
_STATE_MOUNT = "/var/lib/trading-agent"
_READ_BYTES = 1 << 20
_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})Z (.*)", re.DOTALL)
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9, "": 1}
_SECRET_NAMES = ("ALPACA_API_KEY", "ALPACA_SECRET_KEY")
_CODES = {2: "usage or configuration", 3: "a risk limit has stopped it", -9: "killed", -15: "terminated"}


class LocalCluster:
    """A `Cluster` of processes of this machine, by the files of a folder. Several processes may use it at once."""

    def __init__(self, folder: LocalFolder) -> None:
        self._folder = folder
        self.exchange = LocalExchange(folder)

    def kept(self, normalised: str) -> KeptProcess:
        """Return the process of an agent."""
        return KeptProcess(self._folder.agents / normalised)

    def apply(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Let the process be what the Deployment among the manifests describes.

        Raises:
            PreconditionError: its image is gone, or the simulated exchange does not have its symbols.
        """
        for document in documents:
            kind = document.get("kind")
            if kind == "Deployment":
                self._apply_deployment(document)
            elif kind not in _IGNORED:
                raise InternalError(f"the local target has no objects of the kind {kind}")

    def rollout(self, normalised: str) -> RolloutState:
        """Return how an agent's process stands."""
        kept = self.kept(normalised)
        spec = kept.read_spec()
        if spec is None or not spec.running:
            return RolloutState(phase="missing")
        return judge(spec, kept.read_state(), is_kept=kept.is_kept)

    def delete(self, normalised: str, *, delete_state: bool = False) -> bool:
        """Stop the process, and remove its state directory with `delete_state`; tell whether there was one."""
        found = False

        def stop(spec: ProcessSpec | None) -> ProcessSpec | None:
            nonlocal found
            found = spec is not None and spec.running
            remove = (str(self._folder.state_dir(normalised)),) if delete_state else ()
            if spec is None or not (found or remove):
                return None
            return dataclasses.replace(spec, running=False, remove=remove)

        if self.kept(normalised).read_spec() is not None:
            self.kept(normalised).change(stop)
        return found

    def restart(self, normalised: str, *, at: dt.datetime) -> None:
        """Start an agent's process anew."""

        def again(spec: ProcessSpec | None) -> ProcessSpec:
            if spec is None or not spec.running:
                raise NotFoundError(f"{NAME_PREFIX}{normalised} does not run")
            return dataclasses.replace(spec, changed=at.isoformat())

        self.kept(normalised).change(again)

    def logs(self, normalised: str, *, since: dt.datetime | None = None, limit: int = 200) -> list[LogLine]:
        """Return the last lines that an agent wrote, oldest first."""
        return read_log(self.kept(normalised).log_path, since=since, limit=limit)

    def venue_of(self, normalised: str) -> dict[str, str]:
        """Return the variables by which an agent finds what it trades on, keys among them; none when it never ran."""
        spec = self.kept(normalised).read_spec()
        if spec is None:
            return {}
        found = read_env_file(Path(spec.env_file)) if spec.env_file and Path(spec.env_file).is_file() else {}
        return {**found, **spec.environment}

    def secret_exists(self, name: str) -> bool:
        """Tell whether there are keys for agents."""
        del name
        target = read_target(self._folder)
        if target.is_simulated:
            return True
        with contextlib.suppress(DeployError):
            return all(variable in read_env_file(Path(target.env_file)) for variable in _SECRET_NAMES)
        return False

    def reconcile(self) -> None:
        """Start the keepers that are missing: those of a machine that was switched off, or that were killed."""
        names = [self.exchange.kept, *(KeptProcess(path) for path in sorted(self._folder.agents.iterdir()))]
        for kept in names:
            spec = kept.read_spec()
            if spec is not None and spec.running and not kept.is_kept:
                kept.ensure()

    def stop_all(self, *, timeout_s: float = 90.0) -> bool:
        """End all processes until the next `reconcile`, the exchange last; tell whether all have ended."""
        agents = [KeptProcess(path) for path in sorted(self._folder.agents.iterdir())]
        deadline = time.monotonic() + timeout_s
        return _stop(agents, deadline) and _stop([self.exchange.kept], deadline)

    def close(self) -> None:
        """Nothing is held; agents go on."""

    # Manifests

    def _apply_deployment(self, document: Mapping[str, Any]) -> None:
        pod = document["spec"]["template"]["spec"]
        container = pod["containers"][0]
        normalised = str(document["metadata"]["name"]).removeprefix(NAME_PREFIX)
        image = str(container["image"])
        folder = self._folder.builds / image.rpartition(":")[2]
        facts = read_json(folder / IMAGE_FILE)
        if facts is None:
            raise PreconditionError(f"the files of {image} are not there any more: deploy again")
        target = read_target(self._folder)
        state_dir = self._folder.state_dir(normalised)
        python = str(facts["python"])
        environment = self._environment(container, normalised, target)
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        needs = ""
        if target.is_simulated:
            needs = str(self.exchange.kept.folder)
            environment |= self.exchange.open(tuple(facts["symbols"]), target).environment_of(normalised)
        liveness, readiness = container["livenessProbe"], container["readinessProbe"]
        spec = ProcessSpec(
            argv=(*_command(container["command"], python), "--plain", "--state-dir", str(state_dir)),
            cwd=str(folder / "image"),
            image=image,
            environment=environment,
            env_file=target.env_file,
            needs=needs,
            ready_file=str(state_dir / "heartbeat"),
            ready_argv=_probe(readiness, sys.executable, state_dir),
            health_argv=_probe(liveness, sys.executable, state_dir),
            health_delay_s=float(liveness.get("initialDelaySeconds", 0)),
            health_period_s=float(liveness.get("periodSeconds", 10)),
            health_failures=int(liveness.get("failureThreshold", 3)),
            grace_s=float(pod.get("terminationGracePeriodSeconds", 30)),
            memory_bytes=_parse_bytes(container.get("resources", {}).get("limits", {}).get("memory", "0")),
            note={"state_dir": str(state_dir), "symbols": list(facts["symbols"]), "agent": facts["agent"]},
        )
        self.kept(normalised).change(lambda _: spec)

    def _environment(self, container: Mapping[str, Any], normalised: str, target: TargetSettings) -> dict[str, str]:
        """Return the variables that the manifest gives values for; those of Secret and ConfigMap come from the file."""
        given = read_env_file(Path(target.env_file)) if target.env_file else {}
        found = {}
        for variable in container.get("env", ()):
            name = str(variable["name"])
            if "value" in variable:
                found[name] = str(variable["value"])
                continue
            source = variable["valueFrom"]
            secret = source.get("secretKeyRef")
            if secret is not None and not target.is_simulated and not secret.get("optional") and not given.get(name):
                raise PreconditionError(f"{target.env_file} has no {name}: add it, then deploy {normalised} again")
            if secret is None and source.get("configMapKeyRef", {}).get("name") != CONFIG:
                raise InternalError(f"the variable {name} comes from something that the local target does not have")
        if given.get("GOOGLE_CLOUD_PROJECT"):
            del found["GOOGLE_CLOUD_PROJECT"]  # that of the file, not the stand-in of the local target
        return found


def judge(spec: ProcessSpec, state: ProcessState, *, is_kept: bool) -> RolloutState:
    """Return how a process stands, by what is wanted and what its keeper wrote. Pure."""

    def judged(phase: Any, reason: str = "", *, ready: bool = False) -> RolloutState:
        return RolloutState(phase=phase, image=spec.image, reason=reason, restarts=state.restarts, ready=ready)

    if state.generation != spec.generation:
        return judged("progressing", "the process before it is being stopped" if state.pid else "it is being started")
    if not is_kept:
        return judged("progressing", "it is being started")
    if state.phase == "ready":
        return judged("complete", ready=True)
    reason = _explain_end(state) if state.restarts else state.reason
    if state.restarts >= _CRASHES or (state.restarts and state.exit_code == _USAGE):
        return judged("failed", reason)
    return judged("progressing", reason)


def read_log(path: Path, *, since: dt.datetime | None, limit: int) -> list[LogLine]:
    """Return the last lines of a log and of those put aside, oldest first, at most a megabyte of each."""
    found: list[LogLine] = []
    for place in (path, *(path.with_name(f"{path.name}.{number}") for number in (1, 2, 3))):
        try:
            with place.open("rb") as source:
                size = source.seek(0, 2)
                source.seek(max(size - _READ_BYTES, 0))
                lines = source.read().decode("utf-8", "replace").split("\n")[size > _READ_BYTES :]
        except FileNotFoundError:
            break
        parsed = [_parse_line(line) for line in lines if line]
        chosen = [line for line in parsed if since is None or (line.time is not None and line.time > since)]
        found = chosen + found
        if len(found) >= limit or len(chosen) < len(parsed):
            break
    return found[-limit:]


def _parse_line(line: str) -> LogLine:
    match = _LINE.fullmatch(line)
    if match is None:
        return LogLine(time=None, text=line)
    return LogLine(time=dt.datetime.fromisoformat(f"{match[1]}+00:00"), text=match[2])


def _explain_end(state: ProcessState) -> str:
    times = f"{state.restarts} times" if state.restarts > 1 else "once"
    if state.ended:
        what = f"the agent was ended {times}: {state.ended}"
    elif state.exit_code is None:
        what = f"the agent could not be started ({times})"
    else:
        meaning = _CODES.get(state.exit_code)
        what = f"the agent ended {times} with exit code {state.exit_code}" + (f" ({meaning})" if meaning else "")
    words = " / ".join(state.last_words)[-800:]
    return f"{what}: {words}" if words else what


def _command(command: Sequence[str], python: str) -> tuple[str, ...]:
    if not command or command[0] != "dry-work":
        raise InternalError(f"the command {command!r} is none of Dry Work's")
    # With -P the agent's own files cannot take the place of modules of others, as in the image.
    return (python, "-P", "-m", "dry_work", *command[1:])


def _probe(probe: Mapping[str, Any], python: str, state_dir: Path) -> tuple[str, ...]:
    command = [str(state_dir) if word == _STATE_MOUNT else word for word in probe["exec"]["command"]]
    return _command(command, python)


def _parse_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|k|M|G)?", str(text))
    if match is None:
        raise InternalError(f"the manifest's limit of memory {text!r} is not understood")
    return int(match[1]) * _UNITS[match[2] or ""]


def _stop(processes: Sequence[KeptProcess], deadline_s: float) -> bool:
    for kept in processes:
        kept.signal(signal.SIGTERM)
    while any(kept.is_kept for kept in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True
