"""Parameter sets on a Dask cluster. The data go to each worker once, and to workers that join later.

A worker process runs one set at a time, whatever its number of threads: Backtrader keeps state of its own for a
process, and its work is Python's. So a machine is best given as many worker processes of one thread as it has cores.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from dry_work import __version__
from dry_work.backtest.grid import ParamSet
from dry_work.backtest.sweep_data import CachedRecording, SharedRecording, cache_folder, write_whole
from dry_work.backtest.sweep_task import Evaluator, SweepJob, SweepRow
from dry_work.errors import ConfigError, DryWorkError

_TICK_S = 0.25
_CONNECT_S = 10.0
_WORKERS_S = 30.0
_CLOSE_S = 5.0
_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)
_TRIES = 2
_AHEAD = 2  # sets sent to a worker process at a time, so that none waits for the next


class RemoteJob:
    """All that a worker of a cluster needs but the parameters. Pickled, it brings its data along.

    Args:
        job: what the sets have in common.
        data: the bars.
        sources: the strategy's files by name, its own first; none for a strategy that is installed there.
    """

    def __init__(
        self, job: SweepJob, data: SharedRecording | CachedRecording, sources: Mapping[str, bytes], name: str
    ) -> None:
        self.job = job
        self.data = data
        self.sources = dict(sources)
        self.name = name  # of the sweep, unlike any other


_lock = threading.Lock()
_evaluators: dict[str, Evaluator] = {}  # of this worker process, by the name of the sweep


def evaluate_remote(remote: RemoteJob, key: str, texts: dict[str, str]) -> SweepRow:
    """Run one set in this worker process."""
    with _lock:
        evaluator = _evaluators.get(remote.name)
        if evaluator is None:
            job = remote.job
            if remote.sources:
                folder = cache_folder() / f"agent-{remote.name}"
                for name, content in remote.sources.items():
                    path = folder / PurePosixPath(name)
                    if not path.is_file():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_whole(path, content)
                _, colon, class_name = job.agent.partition(":")
                job = msgspec.structs.replace(job, agent=f"{folder / next(iter(remote.sources))}{colon}{class_name}")
            _evaluators.clear()
            evaluator = _evaluators[remote.name] = Evaluator(job, remote.data.load())
        return evaluator.evaluate(key, texts)


def describe_worker() -> str:
    """Return the version of Dry Work in this worker process."""
    return __version__


def forget_remote(name: str, fingerprint: str) -> None:
    """Remove what a sweep left in this worker process and its machine's cache."""
    _evaluators.pop(name, None)
    shutil.rmtree(cache_folder() / f"agent-{name}", ignore_errors=True)
    for path in cache_folder().glob(f"{fingerprint}-*.columns"):
        path.unlink(missing_ok=True)


class ClusterExecutor:
    """Runs parameter sets on the workers of a Dask scheduler. `request_stop` is for signal handlers.

    Args:
        job: what the sets have in common.
        data: the bars.
        address: of the scheduler, for example tcp://host:8786.
        sources: the strategy's files by name, its own first.
        name: of the sweep, unlike any other.

    Raises:
        ConfigError: no scheduler or no worker there, or workers without this version of Dry Work.
    """

    def __init__(
        self, job: SweepJob, data: SharedRecording, *, address: str, sources: Mapping[str, bytes], name: str
    ) -> None:
        try:
            import distributed
        except ModuleNotFoundError:
            raise ConfigError("--scheduler needs an extra: pip install 'dry-work[cluster]'") from None
        self.notes: list[str] = []
        self._distributed: Any = distributed
        self._address = address
        self._remote = RemoteJob(job, data, sources, name)
        self._is_stopped = False
        # What it would log of lost workers and connections is dealt with here.
        loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "distributed.utils")]
        self._levels = [(logger, logger.level) for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            self._client: Any = self._distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            self._restore_levels()
            raise ConfigError(f"--scheduler {address}: no Dask scheduler answers: {error}") from None
        try:
            self._workers = self._check_workers()
        except BaseException:
            self.close()
            raise

    def _check_workers(self) -> int:
        try:
            self._client.wait_for_workers(1, timeout=_WORKERS_S)
        except TimeoutError:
            raise ConfigError(f"--scheduler {self._address}: no worker joined within {_WORKERS_S:g} s") from None
        try:
            versions = self._client.run(describe_worker)
        except Exception as error:
            raise ConfigError(
                f"--scheduler {self._address}: its workers cannot run Dry Work {__version__}: "
                f"{type(error).__name__}: {error}; install it there"
            ) from error
        for worker, version in versions.items():
            if version != __version__:
                raise ConfigError(
                    f"--scheduler {self._address}: {worker} has Dry Work {version}, expected {__version__} as here"
                )
        threads = [int(worker["nthreads"]) for worker in self._list_workers()]
        if max(threads, default=1) > 1:
            self.notes.append(
                f"{sum(count > 1 for count in threads)} of {len(threads)} workers have several threads; each runs one "
                "set at a time: start one worker process of one thread for each core"
            )
        return len(versions)

    def _list_workers(self) -> list[Mapping[str, Any]]:
        return list(self._client.scheduler_info(n_workers=-1)["workers"].values())

    def describe(self) -> str:
        """Return where the sets are run, for people."""
        return f"{self._workers} {'worker' if self._workers == 1 else 'workers'} of {self._address}"

    def run(self, sets: Sequence[ParamSet], tick: Callable[[], None]) -> Iterator[SweepRow]:
        """Yield the row of each set as it comes, in any order, until all are there or `request_stop` was called.

        Raises:
            ConfigError: the workers cannot run the strategy; says why.
            DryWorkError: the scheduler was lost.
        """
        try:
            yield from self._run(sets, tick)
        except (OSError, *_CANCELLED) as error:
            raise DryWorkError(
                f"--scheduler {self._address}: connection lost; what is done is kept, and the same command goes on"
            ) from error

    def _run(self, sets: Sequence[ParamSet], tick: Callable[[], None]) -> Iterator[SweepRow]:
        remote: Any = None
        waiting = deque(range(len(sets)))
        suspects: deque[int] = deque()  # under way when workers died: run one at a time, after all others
        tries = [0] * len(sets)
        pending: dict[Any, int] = {}
        looked_s = seen_s = time.monotonic()
        try:
            while (waiting or suspects or pending) and not self._is_stopped:
                now_s = time.monotonic()
                if remote is None or now_s - looked_s > 1:
                    looked_s, self._workers = now_s, len(self._list_workers())
                seen_s = now_s if self._workers else seen_s
                if now_s - seen_s > _WORKERS_S:
                    raise DryWorkError(
                        f"--scheduler {self._address}: no worker for {_WORKERS_S:g} s; what is done is kept"
                    )
                if not self._workers:
                    remote = None
                    self._wait(list(pending))
                    tick()
                    continue
                if remote is None:
                    remote = self._client.scatter(self._remote, broadcast=True, hash=False)
                while (waiting and len(pending) < self._workers * _AHEAD) or (suspects and not pending):
                    task = waiting.popleft() if waiting else suspects.popleft()
                    tries[task] += 1
                    arguments = (remote, sets[task].key, sets[task].texts)
                    pending[self._client.submit(evaluate_remote, *arguments, pure=False, retries=0)] = task
                self._wait(list(pending))
                tick()
                for future in [future for future in pending if future.status != "pending"]:
                    task = pending.pop(future)
                    row = self._read(future, sets[task])
                    if row is not None:
                        yield row
                        continue
                    if self._client.status != "running":
                        raise ConnectionError("the sets under way are lost")
                    remote = None  # the workers that held it are gone
                    if tries[task] < _TRIES:
                        suspects.append(task)
                    else:
                        yield SweepRow(key=sets[task].key, seconds=0.0, error="its worker died twice", died=True)
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                self._client.cancel([future for future in (*pending, remote) if future is not None], force=True)

    def _wait(self, futures: list[Any]) -> None:
        """Wait until one is done, or until it is time to look around."""
        if not futures:
            time.sleep(_TICK_S)
        else:
            with self._client.as_current(), contextlib.suppress(TimeoutError, *_CANCELLED):
                self._distributed.wait(futures, timeout=_TICK_S, return_when="FIRST_COMPLETED")
        if self._client.status not in ("running", "connecting"):
            raise ConnectionError("the client was closed")

    def _read(self, future: Any, one: ParamSet) -> SweepRow | None:
        """Return the row of a set, None when it was lost with its worker."""
        try:
            if future.status == "finished":
                row = future.result(timeout=_CONNECT_S)
                assert isinstance(row, SweepRow)
                return row
            error = future.exception(timeout=_CONNECT_S) if future.status == "error" else None
        except (OSError, *_CANCELLED):
            return None
        if error is None:
            return None
        if isinstance(error, self._distributed.KilledWorker):
            return SweepRow(key=one.key, seconds=0.0, error="its worker died several times", died=True)
        if isinstance(error, DryWorkError):
            raise error
        raise DryWorkError(f"--scheduler {self._address}: a worker failed: {type(error).__name__}: {error}")

    def request_stop(self) -> None:
        """Let `run` end soon. Sets under way on the cluster are run to their end there, and their rows are lost."""
        self._is_stopped = True

    def close(self) -> None:
        """Clean up on the workers and leave the cluster. May be called twice."""
        with contextlib.suppress(Exception):  # it may be gone
            if self._client.status == "running":
                self._client.run(forget_remote, self._remote.name, self._remote.data.fingerprint)
        with contextlib.suppress(Exception):
            self._client.close(timeout=_CLOSE_S)
        self._restore_levels()

    def _restore_levels(self) -> None:
        for logger, level in self._levels:
            logger.setLevel(level)


def read_sources(spec: str, folder: Path, files: Sequence[Path]) -> dict[str, bytes]:
    """Return files by their name below `folder`, the strategy's own first; none when it is no file.

    Args:
        spec: as it was asked for.
        folder: of the strategy's file.
        files: its own first.
    """
    where = spec.partition(":")[0]
    if not (where.endswith(".py") or "/" in where):
        return {}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
