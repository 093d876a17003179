"""Settings of health, metrics, logs and traces."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dry_work.errors import ConfigError
from dry_work.hub.observation_settings import ObservationSettings, read_observation_settings
from dry_work.observability.logging import LogSettings
from dry_work.observability.tracing import TracingSettings

DEFAULT = ObservationSettings(tracing=TracingSettings())


def read(**variables: str) -> ObservationSettings:
    return read_observation_settings(variables)


def test_without_variables_everything_is_as_documented() -> None:
    assert read() == DEFAULT
    assert (DEFAULT.host, DEFAULT.health_port, DEFAULT.metrics_port) == ("127.0.0.1", 8082, 9090)
    assert (DEFAULT.more_metrics_port, DEFAULT.has_more_metrics, DEFAULT.metrics_write_timeout_s) == (8088, False, 10.0)
    assert (DEFAULT.metrics_error_policy, DEFAULT.metrics_most_in_flight) == ("return", 0)
    assert (DEFAULT.grpc_health_port, DEFAULT.has_grpc_health, DEFAULT.check_interval_s) == (7654, True, 10.0)
    assert DEFAULT.logs == LogSettings(level="info", form="json", shows_source=True, exporter="stderr")
    assert DEFAULT.tracing == TracingSettings(
        exporter="otlp", url="http://localhost:4318", timeout_s=5.0, service_name="dry-work-hub", is_asked_for=False
    )


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("HUB_HEALTH_HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("HUB_BIND_HOST", "10.0.0.1", "host", "10.0.0.1"),
        ("HUB_HEALTH_HOST", "[::1]", "host", "::1"),
        ("STREAM_PROXY_HEALTH_PORT", "18082", "health_port", 18082),
        ("STREAM_PROXY_METRICS_PORT", "0", "metrics_port", 0),
        ("DISABLE_METRICS", "F", "has_more_metrics", True),
        ("METRICS_PORT", "18088", "more_metrics_port", 18088),
        ("METRICS_WRITE_TIMEOUT", "1m30s", "metrics_write_timeout_s", 90.0),
        ("METRICS_ERR_POLICY", "Panic", "metrics_error_policy", "panic"),
        ("METRICS_MAX_REQ_IN_FLIGHT", "3", "metrics_most_in_flight", 3),
        ("DISABLE_HEALTH", "true", "has_grpc_health", False),
        ("HEALTH_PORT", "17654", "grpc_health_port", 17654),
        ("HEALTH_PING_INTERVAL", "150ms", "check_interval_s", 0.15),
        ("DISABLE_TRACING", "1", "tracing", None),
        ("OTEL_ENABLED", "false", "tracing", None),
    ],
)
def test_each_variable_changes_its_setting(name: str, text: str, field: str, value: Any) -> None:
    assert read(**{name: text}) == msgspec.structs.replace(DEFAULT, **{field: value})


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("LOG_LEVEL", "WARN", "level", "warn"),
        ("RUST_LOG", "dry_work=trace,debug,tokio=warn", "level", "debug"),
        ("RUST_LOG", "trace", "level", "debug"),
        ("RUST_LOG", "hyper=off", "level", "info"),
        ("LOG_FMT", "logfmt", "form", "logfmt"),
        ("LOG_SRC", "0", "shows_source", False),
        ("LOG_EXPORTER", "stdout", "exporter", "stdout"),
    ],
)
def test_each_variable_of_logs_changes_its_setting(name: str, text: str, field: str, value: Any) -> None:
    assert read(**{name: text}).logs == msgspec.structs.replace(DEFAULT.logs, **{field: value})


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("OTEL_ENABLED", "true", "is_asked_for", True),
        ("DISABLE_TRACING", "f", "is_asked_for", True),
        ("TRACE_EXPORTER", "stdout", "exporter", "stdout"),
        ("TRACE_EXPORTER_URL", "http://c:4317/", "url", "http://c:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318", "url", "https://c:4318"),
        ("TRACE_EXPORTER_TIMEOUT", "3s", "timeout_s", 3.0),
        ("OTEL_SERVICE_NAME", "my-hub", "service_name", "my-hub"),
    ],
)
def test_each_variable_of_traces_changes_its_setting(name: str, text: str, field: str, value: Any) -> None:
    assert DEFAULT.tracing is not None
    assert read(**{name: text}).tracing == msgspec.structs.replace(DEFAULT.tracing, **{field: value})


def test_the_url_of_traces_goes_before_the_one_of_all_telemetry() -> None:
    found = read(TRACE_EXPORTER_URL="http://a:4318", OTEL_EXPORTER_OTLP_ENDPOINT="http://b:4318").tracing
    assert found is not None
    assert found.url == "http://a:4318"


@pytest.mark.parametrize(
    ("url", "speaks_grpc", "traces_url"),
    [
        ("http://c:4318", False, "http://c:4318/v1/traces"),
        ("http://c:4317", True, "http://c:4317/v1/traces"),
        ("https://c/otlp/traces", False, "https://c/otlp/traces"),
    ],
)
def test_a_collector_is_spoken_to_as_its_port_says(url: str, speaks_grpc: bool, traces_url: str) -> None:
    settings = TracingSettings(url=url)
    assert (settings.speaks_grpc, settings.traces_url) == (speaks_grpc, traces_url)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"HUB_HEALTH_HOST": "a b"}, "HUB_HEALTH_HOST='a b': expected an address"),
        ({"STREAM_PROXY_HEALTH_PORT": "65536"}, "STREAM_PROXY_HEALTH_PORT='65536': expected a whole number from 0"),
        ({"STREAM_PROXY_METRICS_PORT": "-1"}, "STREAM_PROXY_METRICS_PORT='-1': expected a whole number"),
        ({"DISABLE_METRICS": "maybe"}, "DISABLE_METRICS='maybe': expected one of 1, t, true, 0, f, false"),
        ({"METRICS_PORT": "x"}, "METRICS_PORT='x': expected a whole number"),
        ({"METRICS_WRITE_TIMEOUT": "10"}, "METRICS_WRITE_TIMEOUT='10': expected a duration with a unit"),
        ({"METRICS_WRITE_TIMEOUT": "0s"}, "METRICS_WRITE_TIMEOUT='0s': expected at least 1ms"),
        ({"METRICS_ERR_POLICY": "ignore"}, "METRICS_ERR_POLICY='ignore': expected one of return, continue, panic"),
        ({"METRICS_MAX_REQ_IN_FLIGHT": "1.5"}, "METRICS_MAX_REQ_IN_FLIGHT='1.5': expected a whole number"),
        ({"DISABLE_HEALTH": "2"}, "DISABLE_HEALTH='2': expected one of"),
        ({"HEALTH_PORT": "high"}, "HEALTH_PORT='high': expected a whole number"),
        ({"HEALTH_PING_INTERVAL": "soon"}, "HEALTH_PING_INTERVAL='soon': expected a duration"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL='loud': expected one of debug, info, warn, error"),
        ({"RUST_LOG": "loud"}, "RUST_LOG='loud': expected one of trace, debug"),
        ({"LOG_FMT": "xml"}, "LOG_FMT='xml': expected one of json, logfmt"),
        ({"LOG_SRC": "x"}, "LOG_SRC='x': expected one of"),
        ({"LOG_EXPORTER": "file"}, "LOG_EXPORTER='file': expected one of stderr, stdout"),
        ({"DISABLE_TRACING": "x"}, "DISABLE_TRACING='x': expected one of"),
        ({"OTEL_ENABLED": "x"}, "OTEL_ENABLED='x': expected one of"),
        ({"TRACE_EXPORTER": "jaeger"}, "TRACE_EXPORTER='jaeger': expected one of otlp, stdout"),
        ({"TRACE_EXPORTER_URL": "collector:4318"}, "TRACE_EXPORTER_URL='collector:4318': expected a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, "OTEL_EXPORTER_OTLP_ENDPOINT='x': expected a URL"),
        ({"TRACE_EXPORTER_TIMEOUT": "5"}, "TRACE_EXPORTER_TIMEOUT='5': expected a duration"),
        ({"LOG_LEVEL": "info", "RUST_LOG": "debug"}, "LOG_LEVEL and RUST_LOG are both set and differ"),
        ({"OTEL_ENABLED": "true", "DISABLE_TRACING": "true"}, "contradict each other"),
        ({"OTEL_ENABLED": "0", "DISABLE_TRACING": "f"}, "contradict each other"),
        ({"METRICS_PORT": "8082", "DISABLE_METRICS": "0"}, "STREAM_PROXY_HEALTH_PORT and METRICS_PORT are both 8082"),
        ({"HEALTH_PORT": "9090"}, "STREAM_PROXY_METRICS_PORT and HEALTH_PORT are both 9090"),
    ],
)
def test_what_is_wrong_is_told_with_its_name_and_value(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**variables)
    assert words in str(caught.value)


def test_credentials_in_the_collectors_url_are_refused_and_not_told() -> None:
    with pytest.raises(ConfigError, match="credentials do not belong") as caught:
        read(TRACE_EXPORTER_URL="http://user:topsecret@collector:4318")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_ENABLED": "true", "DISABLE_TRACING": "false"},
        {"LOG_LEVEL": "debug", "RUST_LOG": "debug,h2=info"},
        {"HEALTH_PORT": "9090", "DISABLE_HEALTH": "true"},
        {"STREAM_PROXY_HEALTH_PORT": "0", "STREAM_PROXY_METRICS_PORT": "0", "HEALTH_PORT": "0"},
        {"LOG_LEVEL": "", "DISABLE_HEALTH": " ", "TRACE_EXPORTER_URL": ""},
    ],
)
def test_what_agrees_and_what_is_empty_is_taken(variables: dict[str, str]) -> None:
    assert read(**variables).tracing is not None
