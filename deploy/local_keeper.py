"""Keeps one process running: what a kubelet is for a pod. One small process for each agent, which outlives the service.

Started with a folder and the descriptor of its lock. It reads `spec.json` at the start and at SIGHUP; at SIGTERM it
stops the process and ends, and the process comes back with the next keeper. One thread: signals and output come
through one selector.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from deploy.errors import DeployError
from deploy.local_files import base_environment, locked, read_env_file, write_json
from deploy.local_spec import KeptProcess, Phase, ProcessSpec, ProcessState, detach, die_with_parent, remove_folders

_BACKOFF_S = (0.5, 60.0)  # the first wait after a crash, and the longest
_GOOD_RUN_S = 60.0  # after which the waits begin anew
_LOOK_S = 0.1  # while something is about to happen
_MEMORY_S = 5.0
_PROBE_S = 20.0  # that a check may take
_LAST_WORDS = 6
_LINE_BYTES = 16_384
_OPEN_FILES = 4_096
_MTIME_SLACK_S = 0.05  # files are stamped with the clock of the last tick


class RotatingLog:
    """Lines with their times, in a file that is put aside when it is long.

    Args:
        keep: how many are put aside.
    """

    def __init__(self, path: Path, *, max_bytes: int = 5 << 20, keep: int = 3) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._last = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._file = path.open("ab")

    def write(self, line: str, time: dt.datetime) -> None:
        """Add a line."""
        # Each line has a time of its own, so that whoever asks for those after it gets the next one.
        self._last = max(time.astimezone(dt.UTC), self._last + dt.timedelta(microseconds=1))
        stamp = self._last.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with contextlib.suppress(OSError):  # a full disk is no reason to stop what trades
            self._file.write(f"{stamp} {line}\n".encode("utf-8", "replace"))
            self._file.flush()
            if self._file.tell() >= self._max_bytes:
                self._rotate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._keep - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._file = self._path.open("ab")


class Keeper:
    """Runs one process as its specification says.

    Args:
        now_s: seconds since 1970.
        monotonic: seconds.
    """

    def __init__(
        self,
        kept: KeptProcess,
        *,
        now_s: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept = kept
        self._now_s, self._monotonic = now_s, monotonic
        self._log = RotatingLog(kept.log_path)
        self._spec: ProcessSpec | None = None
        self._state = ProcessState()
        self._written: ProcessState | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._probe: subprocess.Popen[bytes] | None = None
        self._probe_since_s = 0.0
        self._started_s = 0.0  # of the child, monotonic
        self._next_s = 0.0  # the next start, monotonic
        self._backoff_s = _BACKOFF_S[0]
        self._grace_s = 0.0  # of the child, by the specification that it was started with
        self._kill_at_s: float | None = None  # a stop is under way
        self._next_probe_s = 0.0
        self._next_memory_s = 0.0
        self._failures = 0
        self._why = ""  # why the keeper ends the child
        self._partial = b""
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._leaving = False
        self._reload = True
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Keep the process until it is wanted no more, or until SIGTERM."""
        with self._wakeups():
            self._kept.pid_path.write_text(str(os.getpid()), encoding="ascii")
            while True:
                wait_s = self._step()
                self._write_state()
                if wait_s is None:
                    break
                self._listen(wait_s)
        self._log.close()

    # Steps

    def _step(self) -> float | None:
        """Do what is due, and return for how long there is nothing to do; None: for ever."""
        if self._reload:
            self._reload = False
            self._read_spec()
        spec = self._spec
        if spec is None:
            return None
        if self._child is not None:
            self._look_at_child(self._child, spec)
        if self._child is None:
            if self._leaving or not spec.running:
                if not self._finish(spec):
                    return 0.0
                self._set("stopped", "")
                return None
            wait_s = max(self._next_s - self._monotonic(), 0.0)
            if wait_s > 0:
                return wait_s
            if not self._needs_met(spec):
                self._set("waiting", f"waits for {Path(spec.needs).name}")
                return _LOOK_S
            self._start(spec)
        if self._kill_at_s is not None or self._probe is not None or self._state.phase == "starting":
            return _LOOK_S
        due_s = [self._next_probe_s] if spec.health_argv else []
        due_s += [self._next_memory_s] if spec.memory_bytes else []
        return max(min(due_s) - self._monotonic(), _LOOK_S) if due_s else 3_600.0

    def _read_spec(self) -> None:
        spec = self._kept.read_spec()
        if spec is None or (self._spec is not None and spec.generation == self._spec.generation):
            return
        self._spec = spec
        self._backoff_s, self._next_s = _BACKOFF_S[0], 0.0
        pid = self._child.pid if self._child else 0
        self._state = ProcessState(generation=spec.generation, pid=pid, started_s=self._state.started_s)
        self._words.clear()
        if self._child is not None:
            self._end("")

    def _finish(self, spec: ProcessSpec) -> bool:
        """Remove what goes with the process, unless it is wanted again meanwhile; tell whether all is done."""
        if spec.running:
            return True
        with locked(self._kept.spec_lock_path):
            newest = self._kept.read_spec()
            if newest is not None and newest.generation != spec.generation:
                self._reload = True
                return False
            remove_folders(spec)
        return True

    def _end(self, why: str) -> None:
        """Ask the child to end; some time later it is killed."""
        if self._child is None or self._kill_at_s is not None:
            return
        self._why = why
        self._kill_at_s = self._monotonic() + self._grace_s
        self._set("stopping", why)
        self._say(f"stopping{': ' + why if why else ''}")
        _signal_group(self._child, signal.SIGTERM)

    def _needs_met(self, spec: ProcessSpec) -> bool:
        return not spec.needs or KeptProcess(Path(spec.needs)).read_state().phase == "ready"

    def _start(self, spec: ProcessSpec) -> None:
        if spec.ready_file:
            Path(spec.ready_file).unlink(missing_ok=True)
        try:
            environment = base_environment(os.environ)
            if spec.env_file:
                environment |= read_env_file(Path(spec.env_file))
            self._child = subprocess.Popen(  # noqa: S603 - a list, no shell
                spec.argv,
                cwd=spec.cwd,
                env={**environment, **spec.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_prepare_child, os.getpid()),  # noqa: PLW1509 - there is one thread
            )
        except (OSError, DeployError) as error:
            self._ended(None, str(error))
            return
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        self._selector.register(self._child.stdout, selectors.EVENT_READ)
        self._started_s, self._grace_s = self._monotonic(), spec.grace_s
        self._kill_at_s, self._why, self._failures, self._partial = None, "", 0, b""
        self._next_probe_s = self._started_s + spec.health_delay_s
        self._next_memory_s = self._started_s + _MEMORY_S
        self._state = dataclasses.replace(self._state, pid=self._child.pid, started_s=self._now_s())
        self._set("starting", "the process is starting")
        self._say(f"started, pid {self._child.pid}")

    def _look_at_child(self, child: subprocess.Popen[bytes], spec: ProcessSpec) -> None:
        code = child.poll()
        now_s = self._monotonic()
        if code is not None:
            self._collect(child, code)
            return
        if self._leaving:
            self._end("")
        if self._kill_at_s is not None:
            if now_s >= self._kill_at_s:
                self._say(f"did not stop within {self._grace_s:g} s and is killed")
                self._kill_at_s = now_s + _LOOK_S * 10
                _signal_group(child, signal.SIGKILL)
            return
        if self._probe is not None:
            self._look_at_probe(self._probe, spec)
        elif self._state.phase == "starting":
            if self._is_ready_file_there(spec):
                self._begin_probe(spec.ready_argv)
        elif spec.health_argv and now_s >= self._next_probe_s:
            self._next_probe_s = now_s + spec.health_period_s
            self._begin_probe(spec.health_argv)
        if spec.memory_bytes and now_s >= self._next_memory_s:
            self._next_memory_s = now_s + _MEMORY_S
            used = _read_memory(child.pid)
            if used > spec.memory_bytes:
                limit = spec.memory_bytes >> 20
                self._end(f"it needs more memory than its limit: {used >> 20} MiB of {limit} MiB")

    def _is_ready_file_there(self, spec: ProcessSpec) -> bool:
        if not spec.ready_file:
            return True
        with contextlib.suppress(OSError):
            return Path(spec.ready_file).stat().st_mtime >= self._state.started_s - _MTIME_SLACK_S
        return False

    def _begin_probe(self, argv: tuple[str, ...]) -> None:
        if not argv:
            self._set("ready", "")
            return
        self._probe_since_s = self._monotonic()
        self._probe = subprocess.Popen(  # noqa: S603 - a list, no shell
            argv,
            cwd=self._kept.folder,
            env=base_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _look_at_probe(self, probe: subprocess.Popen[bytes], spec: ProcessSpec) -> None:
        code = probe.poll()
        if code is None:
            if self._monotonic() - self._probe_since_s < _PROBE_S:
                return
            probe.kill()
        output, _ = probe.communicate()
        self._probe = None
        if code == 0:
            self._failures = 0
            self._set("ready", "")
            return
        said = output.decode("utf-8", "replace").strip().splitlines()[-1:] or ["the check did not answer"]
        if self._state.phase == "starting":
            self._set("starting", said[0])
            return
        self._failures += 1
        self._say(f"not well ({self._failures} of {spec.health_failures}): {said[0]}")
        self._set("unready", said[0])
        if self._failures >= spec.health_failures:
            self._end(f"it was not well {self._failures} times: {said[0]}")

    def _collect(self, child: subprocess.Popen[bytes], code: int) -> None:
        """Take note that the child has ended."""
        _signal_group(child, signal.SIGKILL)  # what it has left behind
        if self._probe is not None:
            self._probe.kill()
            self._probe.communicate()
            self._probe = None
        assert child.stdout is not None
        self._read_output(child)
        if self._partial:
            self._take_line(self._partial)
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.stdout)
        child.stdout.close()
        self._child = None
        was_stop, self._kill_at_s = self._kill_at_s is not None, None
        self._ended(code, self._why, is_crash=not was_stop or bool(self._why))

    def _ended(self, code: int | None, why: str, *, is_crash: bool = True) -> None:
        self._state = dataclasses.replace(self._state, pid=0)
        if not is_crash:
            self._say("stopped")
            self._set("waiting", "the process is about to start")
            return
        now_s = self._monotonic()
        if now_s - self._started_s > _GOOD_RUN_S:
            self._backoff_s = _BACKOFF_S[0]
        self._next_s = now_s + self._backoff_s
        told = why or f"ended with exit code {code}"
        self._say(f"{told}; starts again in {self._backoff_s:g} s")
        self._backoff_s = min(self._backoff_s * 2, _BACKOFF_S[1])
        self._state = dataclasses.replace(
            self._state,
            restarts=self._state.restarts + 1,
            exit_code=code,
            ended=why,
            last_words=tuple(self._words),
        )
        self._set("backoff", told)

    # Output, signals, state

    def _listen(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            if self._child is not None and key.fileobj is self._child.stdout:
                if not self._read_output(self._child):
                    self._selector.unregister(key.fileobj)
            elif isinstance(key.fileobj, int):
                with contextlib.suppress(BlockingIOError):
                    numbers = os.read(key.fileobj, 1_024)
                    self._leaving = self._leaving or signal.SIGTERM in numbers
                    self._reload = self._reload or signal.SIGHUP in numbers

    def _read_output(self, child: subprocess.Popen[bytes]) -> bool:
        """Take what the child has written; tell whether there may be more."""
        assert child.stdout is not None
        for _ in range(64):  # so that a flood of output cannot hold up the rest
            try:
                chunk = os.read(child.stdout.fileno(), 65_536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            for line in lines:
                self._take_line(line)
            while len(self._partial) > _LINE_BYTES:
                self._take_line(self._partial[:_LINE_BYTES])
                self._partial = self._partial[_LINE_BYTES:]
        return True

    def _take_line(self, line: bytes) -> None:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        self._log.write(text, self._time())
        if text.strip():
            self._words.append(text.strip())

    def _say(self, text: str) -> None:
        self._log.write(f"[dry-work] {text}", self._time())

    def _time(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._now_s(), dt.UTC)

    def _set(self, phase: Phase, reason: str) -> None:
        self._state = dataclasses.replace(self._state, phase=phase, reason=reason)

    def _write_state(self) -> None:
        if self._state != self._written:
            write_json(self._kept.state_path, dataclasses.asdict(self._state))
            self._written = self._state

    @contextlib.contextmanager
    def _wakeups(self) -> Iterator[None]:
        """Let signals be read like output."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._selector.register(reader, selectors.EVENT_READ)
        numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        earlier = signal.set_wakeup_fd(writer)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            os.close(reader)
            os.close(writer)


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _prepare_child(parent: int) -> None:
    """Set what holds for the process from its first moment on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold keys
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    # A keeper that is killed takes its process along, in order: nobody would look after it any more.
    die_with_parent(signal.SIGTERM, parent)


def _read_memory(pid: int) -> int:
    """Return the bytes of memory that a process uses; 0 where that cannot be seen."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    detach()
    Keeper(KeptProcess(Path(sys.argv[1]))).run()
