"""Settings of what tells how an agent is: metrics, alerts, heartbeat, logs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dry_work.errors import ConfigError
from dry_work.observability.alerts import mask_url, split_urls
from dry_work.observability.logging import GOOGLE, JSON, LEVELS, LOGFMT
from dry_work.observability.tracing import OTLP, STDOUT, TRACES_PATH, TracingSettings
from dry_work.settings import parse_url, read_variable

DEFAULT_METRICS_PORT = 8088
DEFAULT_METRICS_SYMBOLS = 500
AGENT_SERVICE = "dry-work-agent"
_ON, _OFF = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")


class WatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a run tells of itself beside its orders. Its `repr` never shows URLs."""

    has_metrics: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int = DEFAULT_METRICS_PORT
    metrics_symbols: int = DEFAULT_METRICS_SYMBOLS  # symbols with series of their own; of more, the oldest data
    alert_urls: tuple[str, ...] = ()
    heartbeat_url: str = ""
    heartbeat_s: float = 60.0
    stale_s: float = 300.0  # without a slice while a market is open
    lost_s: float = 30.0  # without a connection
    has_lines: bool = False  # one in the log for each slice and each order that has ended
    tracing: TracingSettings | None = None

    @property
    def is_on(self) -> bool:
        """Tell whether anything is to be told."""
        return (
            self.has_metrics
            or bool(self.alert_urls)
            or bool(self.heartbeat_url)
            or self.has_lines
            or bool(self.tracing)
        )

    def __repr__(self) -> str:
        told = ", ".join(map(mask_url, self.alert_urls))
        return f"WatchSettings(metrics={self.has_metrics}, alerts=[{told}], heartbeat={bool(self.heartbeat_url)})"


def read_watch_settings(environment: Mapping[str, str], toml: Mapping[str, Any] | None = None) -> WatchSettings:
    """Return the settings that the environment says, and where it is silent the table `[alerts]`.

    Raises:
        ConfigError: naming the setting and what is allowed; of a URL only the scheme is shown.
    """
    table = dict(toml or {})
    heartbeat_url = read_variable(environment, "DRY_WORK_HEARTBEAT_URL") or _text(table, "heartbeat_url")
    if heartbeat_url:
        try:
            parse_url(heartbeat_url, name="DRY_WORK_HEARTBEAT_URL")
        except ConfigError:
            raise ConfigError(
                f"DRY_WORK_HEARTBEAT_URL={mask_url(heartbeat_url)}: expected a URL of http or https"
            ) from None
    host = read_variable(environment, "DRY_WORK_METRICS_HOST") or "127.0.0.1"
    if not _HOST.fullmatch(host):
        raise ConfigError(f"DRY_WORK_METRICS_HOST={host!r}: expected an address or a host name, such as 0.0.0.0")
    return WatchSettings(
        has_metrics=not _read_switch(environment, "DISABLE_METRICS", default=True),
        metrics_host=host,
        metrics_port=_read_count(environment, "METRICS_PORT", DEFAULT_METRICS_PORT, 65_535),
        metrics_symbols=_read_count(environment, "DRY_WORK_METRICS_SYMBOLS", DEFAULT_METRICS_SYMBOLS, 100_000),
        alert_urls=_read_urls(environment, table),
        heartbeat_url=heartbeat_url,
        heartbeat_s=_seconds(environment, table, "heartbeat_seconds", 60.0),
        stale_s=_seconds(environment, table, "stale_seconds", 300.0),
        lost_s=_seconds(environment, table, "lost_seconds", 30.0),
        # Lines for people are few: these are for machines.
        has_lines=read_variable(environment, "LOG_FMT").lower() in (JSON, LOGFMT, GOOGLE)
        and LEVELS.get(read_variable(environment, "LOG_LEVEL").lower(), 30) <= LEVELS["info"],
        tracing=read_agent_tracing(environment),
    )


def read_agent_tracing(environment: Mapping[str, str]) -> TracingSettings | None:
    """Return where spans of an agent go by OpenTelemetry's own variables; None: nowhere, which is the default.

    Raises:
        ConfigError: naming the variable, its value and what is allowed.
    """
    base, traces = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    exporter = read_variable(environment, "OTEL_TRACES_EXPORTER").lower()
    if exporter not in ("", "otlp", "console", "none"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER={exporter!r}: expected one of otlp, console, none")
    name = traces if read_variable(environment, traces) else base
    url = read_variable(environment, name)
    is_off = _read_switch(environment, "OTEL_SDK_DISABLED", default=False) or exporter == "none"
    if is_off or (not url and exporter != "console"):
        return None
    url = check_collector(url, name) if url else ""
    if name == base and urlsplit(url).path.strip("/"):
        url += TRACES_PATH  # what is set is the root of all signals
    timeout_ms = _read_count(environment, "OTEL_EXPORTER_OTLP_TIMEOUT", 5_000, 3_600_000)
    return TracingSettings(
        exporter=STDOUT if exporter == "console" else OTLP,
        url=url,
        timeout_s=max(timeout_ms, 1) / 1e3,
        service_name=read_variable(environment, "OTEL_SERVICE_NAME") or AGENT_SERVICE,
        is_asked_for=True,
    )


def check_collector(text: str, name: str) -> str:
    """Return the URL of a collector without a slash at its end.

    Raises:
        ConfigError: it is none, or carries credentials, which have a variable of their own.
    """
    if "@" in text:
        raise ConfigError(f"{name}: credentials do not belong into a URL; set OTEL_EXPORTER_OTLP_HEADERS")
    return parse_url(text, name=name)


def _read_urls(environment: Mapping[str, str], table: Mapping[str, Any]) -> tuple[str, ...]:
    text = read_variable(environment, "DRY_WORK_ALERTS")
    given = table.get("urls", [])
    if not isinstance(given, list) or not all(isinstance(url, str) for url in given):
        raise ConfigError("[alerts] urls: expected a list of texts")
    urls = split_urls(text) if text else tuple(given)
    for number, url in enumerate(urls, 1):
        if "://" not in url:
            raise ConfigError(f"DRY_WORK_ALERTS: number {number} is not a URL; expected such as slack://…")
    return urls


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"[alerts] {name}: expected a text")
    return value.strip()


def _seconds(environment: Mapping[str, str], table: Mapping[str, Any], name: str, default: float) -> float:
    variable = f"DRY_WORK_{'' if name.startswith('heartbeat') else 'ALERT_'}{name.upper()}"
    text = read_variable(environment, variable)
    shown = f"{variable}={text!r}" if text else f"[alerts] {name}={table.get(name)!r}"
    value = text or table.get(name, default)
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(value, bool) or not 1.0 <= seconds <= 86_400.0:
        raise ConfigError(f"{shown}: expected seconds from 1 to 86400")
    return seconds


def _read_switch(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = read_variable(environment, name).lower()
    if text and text not in (*_ON, *_OFF):
        raise ConfigError(f"{name}={text!r}: expected true or false")
    return text in _ON if text else default


def _read_count(environment: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = read_variable(environment, name)
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > most:
        raise ConfigError(f"{name}={text!r}: expected a whole number from 0 to {most}")
    return int(text)
