"""Where an agent's spans go: by OpenTelemetry's own variables, and nowhere without them."""

from __future__ import annotations

import json

import pytest

from dry_work.errors import ConfigError
from dry_work.observability.logging import render_google
from dry_work.observability.settings import read_agent_tracing, read_watch_settings

BASE, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({BASE: "http://c:4318"}, "http://c:4318/v1/traces"),
        ({BASE: "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({BASE: "https://c/otlp"}, "https://c/otlp/v1/traces"),
        ({TRACES: "https://c/mine"}, "https://c/mine"),
        ({BASE: "http://a:1", TRACES: "http://b:2/x"}, "http://b:2/x"),
    ],
)
def test_the_endpoint_says_where(environment: dict[str, str], url: str) -> None:
    found = read_agent_tracing(environment)
    assert found is not None
    assert (found.traces_url, found.service_name, found.timeout_s) == (url, "dry-work-agent", 5.0)
    assert read_watch_settings(environment).is_on


def test_port_4317_is_gRPC_and_name_and_time_out_are_taken() -> None:
    found = read_agent_tracing({
        BASE: "http://c:4317", "OTEL_SERVICE_NAME": "mine", "OTEL_EXPORTER_OTLP_TIMEOUT": "250",
    })  # fmt: skip
    assert found is not None
    assert (found.speaks_grpc, found.service_name, found.timeout_s) == (True, "mine", 0.25)


def test_spans_can_go_to_the_console() -> None:
    found = read_agent_tracing({"OTEL_TRACES_EXPORTER": "console"})
    assert found is not None
    assert found.exporter == "stdout"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {BASE: ""},
        {BASE: "http://c:1", "OTEL_SDK_DISABLED": "true"},
        {BASE: "http://c:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_it_is_off(environment: dict[str, str]) -> None:
    assert read_agent_tracing(environment) is None
    assert not read_watch_settings(environment).is_on


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({BASE: "c:4318"}, f"{BASE}='c:4318'"),
        ({TRACES: "http://user:hush@c"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "otlp, console, none"),
        ({BASE: "http://c", "OTEL_SDK_DISABLED": "perhaps"}, "OTEL_SDK_DISABLED='perhaps'"),
        ({BASE: "http://c", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT='soon'"),
    ],
)
def test_what_cannot_be_read_is_named(environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_agent_tracing(environment)
    assert told in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_line_for_google_cloud_names_its_trace() -> None:
    event = {"event": "order", "trace_id": "ab", "span_id": "cd"}
    with_project = json.loads(render_google(None, "", dict(event), project="p"))
    assert with_project["logging.googleapis.com/trace"] == "projects/p/traces/ab"
    assert with_project["logging.googleapis.com/spanId"] == "cd"
    assert json.loads(render_google(None, "", dict(event)))["logging.googleapis.com/trace"] == "ab"
    assert "trace_id" not in with_project
