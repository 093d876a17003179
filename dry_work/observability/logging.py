"""structlog for the command line: warnings and worse on stderr, one line each."""

from __future__ import annotations

import logging
import os
import sys

import structlog

LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}


def set_up_logging(level: str | None = None) -> None:
    """Send logs of `level` and above to stderr; default `LOG_LEVEL`, otherwise warnings.

    Raises:
        ConfigError: for a level that is none.
    """
    from dry_work.errors import ConfigError

    name = (level or os.environ.get("LOG_LEVEL", "").strip() or "warn").lower()
    if name not in LEVELS:
        raise ConfigError(f"LOG_LEVEL={name!r}: expected one of {', '.join(LEVELS)}")
    number = LEVELS[name]
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(message)s")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # stderr as it is when something is logged
        cache_logger_on_first_use=False,
    )
