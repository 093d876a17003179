"""Lets the log's lines be seen by the dashboard too, and leaves them where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from dry_work.clock import Clock
from dry_work.dashboard.snapshot import LogLine

TEXT_LENGTH = 600
_LEVELS = {"debug": "info", "warn": "warning", "critical": "error", "exception": "error", "fatal": "error"}


class LogTap:
    """Hands each line that is logged to `add`, on the thread that logs it.

    Args:
        add: returns at once.
        clock: the machine's.
    """

    def __init__(self, add: Callable[[LogLine], None], *, clock: Clock) -> None:
        self._add = add
        self._clock = clock
        self._before: list[Any] | None = None
        self._handler = _Handler(self)

    def start(self) -> None:
        """Begin to listen: to structlog, and to warnings of the standard library's loggers."""
        if self._before is not None:
            return
        self._before = list(structlog.get_config()["processors"])
        structlog.configure(processors=[self._process, *self._before])
        logging.getLogger().addHandler(self._handler)

    def stop(self) -> None:
        """Leave the log as it was. May be called twice."""
        if self._before is None:
            return
        left = [each for each in structlog.get_config()["processors"] if each != self._process]
        structlog.configure(processors=left)
        logging.getLogger().removeHandler(self._handler)
        self._before = None

    def add(self, text: str, level: str = "info") -> None:
        """Take a line that goes elsewhere than into a log."""
        level = _LEVELS.get(level, level)
        self._add(LogLine(self._clock.time_ns() // 1_000_000, level, text[:TEXT_LENGTH]))

    def _process(self, _logger: object, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        facts = ", ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "exc_info"))
        text = str(event.get("event", ""))
        self.add(f"{text}: {facts}" if facts else text, name)
        return event


class _Handler(logging.Handler):
    def __init__(self, tap: LogTap) -> None:
        super().__init__(logging.WARNING)
        self._tap = tap

    def emit(self, record: logging.LogRecord) -> None:
        self._tap.add(f"{record.name}: {record.getMessage()}", record.levelname.lower())
