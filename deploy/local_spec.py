"""A process that is kept: what is wanted of it and how it is, in files that outlive the service."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploy.errors import UnavailableError
from deploy.local_files import is_locked, locked, read_json, take_lock, write_json

Phase = Literal["waiting", "starting", "ready", "unready", "backoff", "stopping", "stopped"]


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """What is wanted of a process. `generation` grows with every change."""

    argv: tuple[str, ...]
    cwd: str
    generation: int = 0
    running: bool = True
    image: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    env_file: str = ""  # read at each start, so that keys are in no other file
    needs: str = ""  # folder of another kept process that is to be ready before
    ready_file: str = ""  # written by the process once it works
    ready_argv: tuple[str, ...] = ()  # then asked; 0 is ready
    health_argv: tuple[str, ...] = ()  # asked from time to time; 0 is well
    health_delay_s: float = 60.0
    health_period_s: float = 60.0
    health_failures: int = 3
    grace_s: float = 60.0  # between the word to stop and the end by force
    memory_bytes: int = 0  # 0: without limit
    remove: tuple[str, ...] = ()  # folders that go when it has stopped
    note: Mapping[str, Any] = field(default_factory=dict)  # of those who wrote it
    changed: str = ""  # when it was asked to start anew

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ProcessSpec:
        """Return what `dataclasses.asdict` wrote; lists become tuples."""
        found: dict[str, Any] = {}
        for name, value in values.items():
            found[name] = tuple(value) if isinstance(value, list) else value
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """How a process is, as its keeper wrote it last."""

    generation: int = 0
    phase: Phase = "waiting"
    reason: str = ""
    pid: int = 0
    started_s: float = 0.0  # seconds since 1970
    restarts: int = 0
    exit_code: int | None = None  # of its last end; negative: the signal
    ended: str = ""  # why its keeper ended it, if it did
    last_words: tuple[str, ...] = ()


class KeptProcess:
    """A process with a keeper, by its folder.

    Args:
        folder: `spec.json`, `state.json`, `log.txt` and the keeper's lock are in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec_path = folder / "spec.json"
        self.state_path = folder / "state.json"
        self.log_path = folder / "log.txt"
        self.lock_path = folder / "keeper.lock"
        self.pid_path = folder / "keeper.pid"
        self.spec_lock_path = folder / "spec.lock"

    def read_spec(self) -> ProcessSpec | None:
        """Return what is wanted, None when nothing ever was."""
        found = read_json(self.spec_path)
        return None if found is None else ProcessSpec.of(found)

    def read_state(self) -> ProcessState:
        """Return how it is."""
        found = read_json(self.state_path)
        if found is None:
            return ProcessState()
        return ProcessState(**{**found, "last_words": tuple(found.get("last_words", ()))})

    @property
    def is_kept(self) -> bool:
        """Whether a keeper looks after it."""
        return is_locked(self.lock_path)

    def change(self, make: Callable[[ProcessSpec | None], ProcessSpec | None]) -> ProcessSpec | None:
        """Write what is wanted from now on, tell the keeper, and return it; None of `make`: as before."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.spec_lock_path):
            before = self.read_spec()
            wanted = make(before)
            if wanted is None:
                return before
            wanted = dataclasses.replace(wanted, generation=(before.generation if before else 0) + 1)
            write_json(self.spec_path, dataclasses.asdict(wanted))
        self.ensure()
        return wanted

    def ensure(self) -> None:
        """Start a keeper if one is wanted and none is there; tell the one that is there to look again."""
        spec = self.read_spec()
        if spec is None:
            return
        if self.signal(signal.SIGHUP):
            return
        if spec.running:
            self._start_keeper()
        else:
            remove_folders(spec)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the keeper; tell whether there is one."""
        if not self.is_kept:
            return False
        try:
            os.kill(int(self.pid_path.read_text(encoding="ascii")), number)
        except (OSError, ValueError):
            return self.is_kept  # it is about to start, and looks then
        return True

    def _start_keeper(self) -> None:
        handle = take_lock(self.lock_path)
        if handle is None:
            self.signal(signal.SIGHUP)  # another one was faster
            return
        try:
            self.pid_path.unlink(missing_ok=True)
            start_detached("deploy.local_keeper", str(self.folder), lock=handle, log=self.folder / "keeper.log")
        finally:
            os.close(handle)


def start_detached(module: str, *args: str, lock: int, log: Path) -> None:
    """Start a module that goes on by itself, with a lock that it holds from now on; see `detach`.

    Raises:
        UnavailableError: it could not be started.
    """
    # With -P the folder that it is started in cannot put its own modules in the place of others.
    argv = [sys.executable, "-P", "-m", module, *args, str(lock)]
    with log.open("wb") as target:
        try:
            done = subprocess.run(  # noqa: S603 - a list, no shell
                argv, stdin=subprocess.DEVNULL, stdout=target, stderr=target, pass_fds=(lock,), timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"{module} cannot be started: {error}") from error
    if done.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["see its log"]
        raise UnavailableError(f"{module} cannot be started: {said[0]} ({log})")


def detach() -> None:
    """Go on in a process that nobody has to wait for, in a session of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Let this process, just forked by `parent`, get a signal when that ends. Linux only; elsewhere it goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)
        if os.getppid() != parent:  # it has ended before that
            os._exit(1)


def remove_folders(spec: ProcessSpec) -> None:
    """Remove what goes with a process that has stopped."""
    for name in spec.remove:
        shutil.rmtree(name, ignore_errors=True)
