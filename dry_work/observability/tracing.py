"""Spans of OpenTelemetry. Off, which they are until `start_tracing`, a span costs a look at a variable.

Spans leave on a thread of OpenTelemetry's own. A collector that is away costs one warning: what it does not take is
dropped, and nobody waits for it but `stop`, as long as the settings say.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from dry_work.errors import ConfigError

OTLP, STDOUT = "otlp", "stdout"
GRPC_PORT = 4317  # of a collector; on any other it is taken to speak HTTP
TRACES_PATH = "/v1/traces"
BATCH_EVERY_S = 1.0
INSTALL = "pip install 'dry-work[otel]'"

_log = structlog.get_logger(__name__)


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where spans go."""

    exporter: str = OTLP  # or stdout
    url: str = "http://localhost:4318"  # of the collector
    timeout_s: float = 5.0  # of one export, and of the last one at the end
    service_name: str = "dry-work-hub"
    is_asked_for: bool = False  # in so many words: then it is an error when it cannot be

    @property
    def speaks_grpc(self) -> bool:
        """Tell whether the collector is spoken to in gRPC."""
        return urlsplit(self.url).port == GRPC_PORT

    @property
    def traces_url(self) -> str:
        """The whole URL for traces over HTTP."""
        return self.url if urlsplit(self.url).path.strip("/") else self.url.rstrip("/") + TRACES_PATH


class SpanLink(msgspec.Struct, frozen=True):
    """A span that was recorded, for those that are to be its children and for lines in the log."""

    trace_id: str  # as the collector shows them: hexadecimal
    span_id: str
    context: Any  # OpenTelemetry's

    @property
    def fields(self) -> dict[str, str]:
        """What stands in a line of the log."""
        return {"trace_id": self.trace_id, "span_id": self.span_id}


class Span:
    """A span that is under way; the one of tracing that is off takes all and keeps nothing."""

    def set(self, **attributes: str | float | bool) -> None:
        """Note attributes."""


class _OpenSpan(Span):
    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, **attributes: str | float | bool) -> None:
        self._span.set_attributes(_name_all(attributes))


_NO_SPAN = nullcontext(Span())
_tracer: Any = None  # OpenTelemetry's; None: tracing is off


def is_tracing() -> bool:
    """Tell whether tracing is on."""
    return _tracer is not None


def trace(name: str, **attributes: str | float | bool) -> AbstractContextManager[Span]:
    """Return a context that is a span; within it, those begun in the same task are its children.

    Args:
        attributes: `a_b` is written as `a.b`.
    """
    return _NO_SPAN if _tracer is None else _open_span(_tracer, name, attributes)


def record_span(
    name: str, begin_ns: int, end_ns: int, *, parent: SpanLink | None = None, **attributes: str | float | bool
) -> SpanLink | None:
    """Record a span that is over; return it for its children, None while tracing is off.

    Args:
        begin_ns, end_ns: since 1970.
        parent: what it is a part of.
        attributes: as of `trace`.
    """
    if _tracer is None:
        return None
    context = parent.context if parent is not None else None
    span = _tracer.start_span(name, context=context, start_time=begin_ns, attributes=_name_all(attributes))
    span.end(end_time=end_ns)
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    ids = span.get_span_context()
    return SpanLink(f"{ids.trace_id:032x}", f"{ids.span_id:016x}", set_span_in_context(NonRecordingSpan(ids)))


def start_tracing(settings: TracingSettings) -> Callable[[], None]:
    """Turn tracing on; return what turns it off, and sends what waits within the time-out. It may be called twice.

    Raises:
        ConfigError: tracing was asked for, and OpenTelemetry is not installed.
    """
    global _tracer
    try:
        exporter = _build_exporter(settings)
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        reason = f"tracing needs a package that is not installed ({error.name}): {INSTALL}"
        if settings.is_asked_for:
            raise ConfigError(f"{reason}, or set OTEL_ENABLED=false") from error
        _log.info("tracing is off", reason=reason)
        return lambda: None
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)  # each failure is told once, here
    provider = TracerProvider(resource=Resource.create({"service.name": settings.service_name}), shutdown_on_exit=False)
    telling: Any = _TellingExporter(exporter, settings.url)
    provider.add_span_processor(BatchSpanProcessor(telling, schedule_delay_millis=BATCH_EVERY_S * 1e3))
    _tracer = mine = provider.get_tracer("dry_work")

    def stop() -> None:
        global _tracer
        if _tracer is mine:
            _tracer = None
        # In a thread: the processor waits longer than it is told when its exporter hangs.
        ending = threading.Thread(target=provider.shutdown, name="tracing-stop", daemon=True)
        ending.start()
        ending.join(settings.timeout_s)
        if ending.is_alive():
            _log.warning("spans were given up: the collector does not take them in time", url=settings.url)

    return stop


@contextlib.contextmanager
def tracing(settings: TracingSettings | None) -> Iterator[None]:
    """Trace within the context; None: do not.

    Raises:
        ConfigError: as `start_tracing`.
    """
    stop = start_tracing(settings) if settings is not None else None
    try:
        yield
    finally:
        if stop is not None:
            stop()


@contextlib.contextmanager
def _open_span(tracer: Any, name: str, attributes: dict[str, Any]) -> Iterator[Span]:
    with tracer.start_as_current_span(name, attributes=_name_all(attributes)) as span:
        yield _OpenSpan(span)


def _name_all(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in attributes.items()}


def _build_exporter(settings: TracingSettings) -> Any:
    if settings.exporter == STDOUT:
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n")
    if settings.speaks_grpc:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        is_plain = urlsplit(settings.url).scheme == "http"
        return GrpcExporter(endpoint=settings.url, insecure=is_plain, timeout=settings.timeout_s)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=settings.traces_url, timeout=settings.timeout_s)


class _TellingExporter:
    """An exporter that tells once that its spans are not taken, and once that they are again."""

    def __init__(self, exporter: Any, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._is_failing = False

    def export(self, spans: Sequence[Any]) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            _log.warning("the collector takes no spans: they are dropped", url=self._url)
        elif self._is_failing and not is_failing:
            _log.info("the collector takes spans again", url=self._url)
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))
