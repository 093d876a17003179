"""Waiting for the word to stop. Main thread only."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dry_work.wakeup import Wakeup

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@contextmanager
def stop_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the exit code that belongs to it on SIGTERM (0) and SIGINT (130) while the block runs."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        handle(EXIT_DONE if number == signal.SIGTERM else EXIT_INTERRUPTED)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopWaiter:
    """Takes SIGTERM, SIGINT and failures from the beginning of its `with` block on, so that none is lost.

    A command that runs until it is stopped enters it before it prints that it is ready.
    """

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._wakeup = Wakeup()
        self._codes: list[int] = []
        self._signals = stop_signals(self._on_stop)

    def __enter__(self) -> StopWaiter:
        self._signals.__enter__()
        return self

    def __exit__(self, *what: object) -> None:
        self._signals.__exit__(None, None, None)

    def fail(self, error: BaseException) -> None:
        """Let `wait` return 1 because of `error`; from any thread."""
        self.errors.append(error)
        self._on_stop(EXIT_FAILED)

    def _on_stop(self, code: int) -> None:
        self._codes.append(code)
        self._wakeup.set()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Sleep until SIGTERM (returns 0), SIGINT (130) or `fail` (1), at most `timeout_s` seconds (then None)."""
        if not self._codes:
            self._wakeup.wait(timeout_s)
        return self._codes[0] if self._codes else None

    def wait_for_code(self) -> int:
        """Sleep until there is an exit code and return it."""
        while True:
            code = self.wait()
            if code is not None:
                return code
