"""Settings of what tells how the hub is: health, metrics, logs and traces. From the environment, pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from dry_work.errors import ConfigError
from dry_work.hub.settings import DEFAULT_HOST
from dry_work.hub.variables import read_count, read_duration, read_flag
from dry_work.observability.logging import JSON, LOGFMT, STDERR, STDOUT, LogSettings
from dry_work.observability.settings import check_collector
from dry_work.observability.tracing import OTLP, TracingSettings
from dry_work.settings import read_variable

ERROR_POLICIES = ("return", "continue", "panic")
DEFAULT_COLLECTOR = "http://localhost:4318"
SERVICE_NAME = "dry-work-hub"

_LEVELS = ("debug", "info", "warn", "error")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")


class ObservationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub tells of itself, and where. Port 0 takes any free one."""

    host: str = DEFAULT_HOST
    has_tls: bool = False  # with the certificate of the client ports
    health_port: int = 8082
    metrics_port: int = 9090
    has_more_metrics: bool = False  # a listener of its own on `more_metrics_port`
    more_metrics_port: int = 8088
    metrics_write_timeout_s: float = 10.0
    metrics_error_policy: str = "return"
    metrics_most_in_flight: int = 0  # 0: no limit
    has_grpc_health: bool = True
    grpc_health_port: int = 7654
    check_interval_s: float = 10.0  # of what the hub depends on
    logs: LogSettings = LogSettings(level="info", form=JSON, shows_source=True)
    tracing: TracingSettings | None = None


def read_observation_settings(environment: Mapping[str, str]) -> ObservationSettings:
    """Return the settings that the environment says; empty counts as unset.

    Raises:
        ConfigError: naming the variable, its value and what is allowed.
    """
    settings = ObservationSettings(
        host=_read_host(environment),
        has_tls=read_flag(environment, "HUB_HEALTH_TLS", default=False),
        health_port=read_count(environment, "STREAM_PROXY_HEALTH_PORT", default=8082, most=65_535),
        metrics_port=read_count(environment, "STREAM_PROXY_METRICS_PORT", default=9090, most=65_535),
        has_more_metrics=not read_flag(environment, "DISABLE_METRICS", default=True),
        more_metrics_port=read_count(environment, "METRICS_PORT", default=8088, most=65_535),
        metrics_write_timeout_s=read_duration(environment, "METRICS_WRITE_TIMEOUT", 10.0, least_s=0.001),
        metrics_error_policy=_read_choice(environment, "METRICS_ERR_POLICY", ERROR_POLICIES),
        metrics_most_in_flight=read_count(environment, "METRICS_MAX_REQ_IN_FLIGHT", default=0, most=1_000_000),
        has_grpc_health=not read_flag(environment, "DISABLE_HEALTH", default=False),
        grpc_health_port=read_count(environment, "HEALTH_PORT", default=7654, most=65_535),
        check_interval_s=read_duration(environment, "HEALTH_PING_INTERVAL", 10.0, least_s=0.001),
        logs=_read_logs(environment),
        tracing=_read_tracing(environment),
    )
    _check_ports(settings)
    return settings


def _read_logs(environment: Mapping[str, str]) -> LogSettings:
    level = read_variable(environment, "LOG_LEVEL").lower()
    if level and level not in _LEVELS:
        raise ConfigError(f"LOG_LEVEL={level!r}: expected one of {', '.join(_LEVELS)}")
    other = _read_rust_log(read_variable(environment, "RUST_LOG"))
    if level and other and level != other:
        raise ConfigError("LOG_LEVEL and RUST_LOG are both set and differ: set one of them")
    return LogSettings(
        level=level or other or "info",
        form=_read_choice(environment, "LOG_FMT", (JSON, LOGFMT)),
        shows_source=read_flag(environment, "LOG_SRC", default=True),
        exporter=_read_choice(environment, "LOG_EXPORTER", (STDERR, STDOUT)),
    )


def _read_rust_log(text: str) -> str:
    """Return the general level of a list of filters; those of modules are of other programs' modules."""
    found = ""
    for part in filter(None, (part.strip().lower() for part in text.split(","))):
        if "=" in part:
            continue
        if part != "trace" and part not in _LEVELS:
            raise ConfigError(f"RUST_LOG={text!r}: expected one of trace, {', '.join(_LEVELS)} as the general level")
        found = "debug" if part == "trace" else part
    return found


def _read_tracing(environment: Mapping[str, str]) -> TracingSettings | None:
    """Return None when tracing is off."""
    enabled, disabled = read_variable(environment, "OTEL_ENABLED"), read_variable(environment, "DISABLE_TRACING")
    is_enabled = read_flag(environment, "OTEL_ENABLED", default=True)
    is_disabled = read_flag(environment, "DISABLE_TRACING", default=False)
    if enabled and disabled and is_enabled == is_disabled:
        raise ConfigError(
            f"OTEL_ENABLED={enabled!r} and DISABLE_TRACING={disabled!r} contradict each other: set one of them"
        )
    exporter = _read_choice(environment, "TRACE_EXPORTER", (OTLP, STDOUT))
    own, shared = read_variable(environment, "TRACE_EXPORTER_URL"), "OTEL_EXPORTER_OTLP_ENDPOINT"
    name = "TRACE_EXPORTER_URL" if own else shared
    url = check_collector(own or read_variable(environment, shared) or DEFAULT_COLLECTOR, name)
    timeout_s = read_duration(environment, "TRACE_EXPORTER_TIMEOUT", 5.0, least_s=0.001)
    if is_disabled or not is_enabled:
        return None
    return TracingSettings(
        exporter=exporter,
        url=url,
        timeout_s=timeout_s,
        service_name=read_variable(environment, "OTEL_SERVICE_NAME") or SERVICE_NAME,
        is_asked_for=bool(enabled or disabled),
    )


def _read_host(environment: Mapping[str, str]) -> str:
    name = "HUB_HEALTH_HOST" if read_variable(environment, "HUB_HEALTH_HOST") else "HUB_BIND_HOST"
    host = read_variable(environment, name) or DEFAULT_HOST
    if not _HOST.fullmatch(host.strip("[]")):
        raise ConfigError(f"{name}={host!r}: expected an address or a host name, such as 127.0.0.1 or 0.0.0.0")
    return host.strip("[]")


def _check_ports(settings: ObservationSettings) -> None:
    taken = {"STREAM_PROXY_HEALTH_PORT": settings.health_port, "STREAM_PROXY_METRICS_PORT": settings.metrics_port}
    if settings.has_more_metrics:
        taken["METRICS_PORT"] = settings.more_metrics_port
    if settings.has_grpc_health:
        taken["HEALTH_PORT"] = settings.grpc_health_port
    names: dict[int, str] = {}
    for name, port in taken.items():
        if port and (other := names.setdefault(port, name)) != name:
            raise ConfigError(f"{other} and {name} are both {port}: each needs a port of its own")


def _read_choice(environment: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """Return what a variable says; the first of `allowed` when it is not set."""
    text = read_variable(environment, name).lower() or allowed[0]
    if text not in allowed:
        raise ConfigError(f"{name}={text!r}: expected one of {', '.join(allowed)}")
    return text
