"""structlog for the command line: one line each, on stderr unless it is said otherwise.

A command for people shows warnings and worse, coloured on a terminal; a service writes JSON or logfmt, for machines.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import msgspec
import structlog

from dry_work.errors import ConfigError

LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}
_SEVERITIES = {"warn": "WARNING", "exception": "ERROR"}
CONSOLE, JSON, LOGFMT, GOOGLE = "console", "json", "logfmt", "google"
STDERR, STDOUT = "stderr", "stdout"


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged, how, and where to."""

    level: str = "warn"
    form: str = CONSOLE  # json, logfmt, google
    shows_source: bool = False  # file and line of the call
    exporter: str = STDERR  # stdout
    project: str = ""  # of Google Cloud, of the traces that lines belong to


def set_up_logging(level: str | None = None, *, project: str = "") -> None:
    """Send logs of `level` and above to stderr; default `LOG_LEVEL`, otherwise warnings. `LOG_FMT` says how.

    Args:
        project: of Google Cloud, where its traces are looked for.

    Raises:
        ConfigError: for a level or a form that is none.
    """
    name = (level or os.environ.get("LOG_LEVEL", "").strip() or "warn").lower()
    form = os.environ.get("LOG_FMT", "").strip().lower() or CONSOLE
    if form not in (CONSOLE, JSON, LOGFMT, GOOGLE):
        raise ConfigError(f"LOG_FMT={form!r}: expected one of {CONSOLE}, {JSON}, {LOGFMT}, {GOOGLE}")
    apply_log_settings(LogSettings(level=name, form=form, project=project))


def apply_log_settings(settings: LogSettings) -> None:
    """Log from now on as the settings say, libraries' warnings too.

    Raises:
        ConfigError: for a level that is none.
    """
    if settings.level not in LEVELS:
        raise ConfigError(f"LOG_LEVEL={settings.level!r}: expected one of {', '.join(LEVELS)}")
    number = LEVELS[settings.level]
    stream = sys.stdout if settings.exporter == STDOUT else sys.stderr
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level]
    if settings.form == CONSOLE:
        logging.basicConfig(level=max(number, logging.WARNING), stream=stream, format="%(levelname)s %(message)s")
        renderer: Any = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    else:
        renderer = {JSON: render_json, GOOGLE: functools.partial(render_google, project=settings.project)}.get(
            settings.form, render_logfmt
        )
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_LineFormatter(renderer, shows_source=settings.shows_source))
        logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    if settings.shows_source:
        parameters = structlog.processors.CallsiteParameter
        shared.append(structlog.processors.CallsiteParameterAdder({parameters.FILENAME, parameters.LINENO}))
        shared.append(_join_source)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        processors=[
            *shared,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        # The stream as it is when something is logged.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stdout if settings.exporter == STDOUT else sys.stderr),
        cache_logger_on_first_use=False,
    )


def render_json(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    """Return an event as one line of JSON: timestamp, level, event, then the rest."""
    return json.dumps(_order(event), default=str, ensure_ascii=False)


def render_logfmt(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    """Return an event as one line of logfmt: timestamp, level, event, then the rest."""
    return " ".join(f"{name}={_quote(value)}" for name, value in _order(event).items())


def render_google(_: object, __: str, event: MutableMapping[str, Any], *, project: str = "") -> str:
    """Return an event as one line of JSON with the fields that Google Cloud's logging knows.

    `trace_id` and `span_id` become the fields that show a line with its trace in `project`.

    Source: https://cloud.google.com/logging/docs/structured-logging
    """
    level = str(event.pop("level", "info"))
    shown: dict[str, Any] = {
        "severity": _SEVERITIES.get(level, level.upper()),
        "message": event.pop("event", ""),
        "timestamp": event.pop("timestamp", ""),
    }
    if "exception" in event:  # where Error Reporting looks for it
        shown["stack_trace"] = event.pop("exception")
    labels = {name: str(event.pop(name)) for name in ("agent", "logger", "source") if name in event}
    if labels:
        shown["logging.googleapis.com/labels"] = labels
    if trace_id := event.pop("trace_id", ""):
        shown["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace_id}" if project else trace_id
    if span_id := event.pop("span_id", ""):
        shown["logging.googleapis.com/spanId"] = span_id
    return json.dumps({**shown, **event}, default=str, ensure_ascii=False)


def _order(event: Mapping[str, Any]) -> dict[str, Any]:
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return {**first, **{name: value for name, value in event.items() if name not in first}}


def _quote(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    if text and all(sign.isprintable() and sign not in ' "=\\' for sign in text):
        return text
    return json.dumps(text, ensure_ascii=False)


def _join_source(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["source"] = f"{event.pop('filename')}:{event.pop('lineno')}"
    return event


class _LineFormatter(logging.Formatter):
    """Writes what libraries log by the standard library in the form of our own lines."""

    def __init__(self, renderer: Any, *, shows_source: bool) -> None:
        super().__init__()
        self._renderer = renderer
        self._shows_source = shows_source

    def format(self, record: logging.LogRecord) -> str:
        stamp = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat().replace("+00:00", "Z")
        event: dict[str, Any] = {
            "timestamp": stamp,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if self._shows_source:
            event["source"] = f"{record.filename}:{record.lineno}"
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        line: str = self._renderer(None, "", event)
        return line
