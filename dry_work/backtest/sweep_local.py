"""Parameter sets on the cores of this machine: one worker process for each job, all over one copy of the data.

Workers are started afresh, not forked: the parent may have threads (gRPC has), and a forked child would have their
locks without them. They inherit the descriptor of the columns and map them. A worker that dies is replaced, and its set
is tried once more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, BinaryIO

from dry_work.backtest.grid import ParamSet
from dry_work.backtest.sweep_data import SharedRecording
from dry_work.backtest.sweep_task import SweepJob, SweepRow
from dry_work.backtest.sweep_worker import Ready, Refused, Start
from dry_work.errors import ConfigError, DryWorkError

_MAIN = "from dry_work.backtest.sweep_worker import main; main()"
_TICK_S = 0.25
_STOP_S = 5.0
_TRIES = 2
_MOST_FAILED_STARTS = 3
_STDERR_BYTES = 65_536
# A worker has one core: numeric libraries are to start no threads for more.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def count_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use: its affinity, and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = cgroup.read_text(encoding="ascii").split()
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


class _Worker:
    """A worker process and what it is doing."""

    def __init__(self, job: SweepJob, data: SharedRecording) -> None:
        ours, theirs = socket.socketpair()
        self.stderr: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        descriptors = (theirs.fileno(), data.fileno())
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _MAIN, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.stderr,
                pass_fds=descriptors,
                env={**dict.fromkeys(_ONE_THREAD, "1"), **os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
                start_new_session=True,  # Ctrl-C is for the parent
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        self.is_ready = False
        self.task: int | None = None
        self.begun_s = 0.0
        with contextlib.suppress(OSError):  # it died already; its end is noticed as that of any other
            self.connection.send(Start(job=job, path=_import_path()))

    def give(self, task: int, one: ParamSet) -> None:
        self.task, self.begun_s = task, time.monotonic()
        with contextlib.suppress(OSError):
            self.connection.send((one.key, one.texts))

    def describe_end(self) -> str:
        """Return how the process ended, and the last it said."""
        code = self.process.wait(_STOP_S)
        how = f"exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"{name}" + (", perhaps for lack of memory" if -code == signal.SIGKILL else "")
        self.stderr.seek(max(0, self.stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        said = self.stderr.read().decode("utf-8", "replace").strip().splitlines()
        fatal = next((line for line in said if line.startswith("Fatal Python error")), said[-1] if said else "")
        return f"its worker died ({how})" + (f": {fatal}" if fatal else "")

    def close(self) -> None:
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(_STOP_S)
        self.stderr.close()


def _import_path() -> list[str]:
    return [str(Path.cwd()) if entry == "" else entry for entry in sys.path]


class LocalExecutor:
    """Runs parameter sets in worker processes. `request_stop` is for signal handlers, all else for one thread.

    Args:
        job: what the sets have in common.
        data: the bars, shared with the workers.
        jobs: how many workers there are at most.
        timeout_s: a set that takes longer is given up; None: no limit.
    """

    def __init__(self, job: SweepJob, data: SharedRecording, *, jobs: int, timeout_s: float | None = None) -> None:
        self.notes: list[str] = []
        self._job = job
        self._data = data
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._is_stopped = False
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._failed_starts = 0

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers there are."""
        return [worker.process.pid for worker in self._workers]

    def describe(self) -> str:
        """Return where the sets are run, for people."""
        return f"{self._jobs} {'worker process' if self._jobs == 1 else 'worker processes'}"

    def run(self, sets: Sequence[ParamSet], tick: Callable[[], None]) -> Iterator[SweepRow]:
        """Yield the row of each set as it comes, in any order, until all are there or `request_stop` was called.

        Args:
            sets: to be run.
            tick: called a few times a second.

        Raises:
            ConfigError: no worker can work; says why.
        """
        waiting = deque(range(len(sets)))
        tries = [0] * len(sets)
        left = len(sets)
        try:
            while left and not self._is_stopped:
                self._fill(sets, waiting)
                sources: list[Any] = [worker.connection for worker in self._workers]
                found = wait([*sources, self._wake_out], _TICK_S)
                tick()
                for worker in [worker for worker in self._workers if worker.connection in found]:
                    for row in self._take(worker, sets, waiting, tries):
                        left -= 1
                        yield row
                for worker in self._late():
                    task = worker.task
                    assert task is not None
                    self._drop(worker)
                    left -= 1
                    yield SweepRow(
                        key=sets[task].key,
                        seconds=time.monotonic() - worker.begun_s,
                        error=f"given up after --timeout {self._timeout_s:g} seconds",
                        died=True,
                    )
        finally:
            for worker in list(self._workers):
                self._drop(worker)

    def request_stop(self) -> None:
        """Let `run` end soon, without the sets that are under way."""
        self._is_stopped = True
        with contextlib.suppress(OSError):
            self._wake_in.send(b"x")

    def close(self) -> None:
        """End the workers. May be called twice."""
        for worker in list(self._workers):
            self._drop(worker)
        self._wake_in.close()
        self._wake_out.close()

    def _fill(self, sets: Sequence[ParamSet], waiting: deque[int]) -> None:
        """Give every worker that is free a set, and start workers that are missing."""
        for worker in self._workers:
            if worker.is_ready and worker.task is None and waiting:
                task = waiting.popleft()
                worker.give(task, sets[task])
        free = sum(worker.task is None for worker in self._workers)
        for _ in range(min(self._jobs - len(self._workers), len(waiting) - free)):
            try:
                self._workers.append(_Worker(self._job, self._data))
            except OSError as error:
                if not self._workers:
                    raise ConfigError(f"no worker process can be started: {error.strerror}") from None
                self._jobs = len(self._workers)
                self.notes.append(f"only {self._jobs} workers could be started: {error.strerror}")
                return

    def _take(
        self, worker: _Worker, sets: Sequence[ParamSet], waiting: deque[int], tries: list[int]
    ) -> Iterator[SweepRow]:
        """Read what a worker says, or learn that it died."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._bury(worker, sets, waiting, tries)
            return
        match message:
            case Ready():
                worker.is_ready = True
                self._failed_starts = 0
            case Refused(reason=reason):
                raise ConfigError(reason)
            case SweepRow() as row:
                worker.task = None
                if waiting:  # at once, before the row is dealt with
                    task = waiting.popleft()
                    worker.give(task, sets[task])
                yield row
            case _:
                raise DryWorkError(f"a worker said {message!r}, which is no message of it")

    def _bury(
        self, worker: _Worker, sets: Sequence[ParamSet], waiting: deque[int], tries: list[int]
    ) -> Iterator[SweepRow]:
        how, task = worker.describe_end(), worker.task
        self._drop(worker)
        if task is None:
            self._failed_starts += not worker.is_ready
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise ConfigError(f"no worker process can be started: {how.removeprefix('its ')}")
            return
        tries[task] += 1
        if tries[task] < _TRIES:
            waiting.append(task)  # at the end: what kills workers shall not hold up the others
            return
        yield SweepRow(
            key=sets[task].key,
            seconds=time.monotonic() - worker.begun_s,
            error=how.replace("died", "died twice", 1),
            died=True,
        )

    def _late(self) -> list[_Worker]:
        if self._timeout_s is None:
            return []
        now_s = time.monotonic()
        return [w for w in self._workers if w.task is not None and now_s - w.begun_s > self._timeout_s]

    def _drop(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        worker.close()
