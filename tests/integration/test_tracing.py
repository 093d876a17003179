"""Spans on their way to a collector, which may be away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from dry_work.clock import SystemClock
from dry_work.hub.upstreams.frame_times import FrameTimes
from dry_work.observability import tracing
from dry_work.observability.tracing import TracingSettings, is_tracing, record_span, start_tracing, trace

from .alpaca_upstream import wait_until
from .otlp_collector import GrpcCollector, HttpCollector, attributes_of


@contextmanager
def collector_of(build: Callable[[], HttpCollector | GrpcCollector]) -> Iterator[HttpCollector | GrpcCollector]:
    collector = build()
    try:
        yield collector
    finally:
        collector.close()


@pytest.mark.parametrize("build", [HttpCollector, GrpcCollector])
def test_spans_arrive_with_their_names_times_and_parents(build: Callable[[], HttpCollector | GrpcCollector]) -> None:
    with collector_of(build) as collector:
        stop = start_tracing(TracingSettings(url=collector.url, service_name="a-hub"))
        with trace("outer", order_id="17") as span:
            span.set(action_outcome="accepted", tries=2)
            with trace("inner"):
                pass
        record_span("done", 1_000, 3_000, feed="sip")
        stop()
        assert not is_tracing()
        (outer,), (inner,), (done,) = (collector.named(name) for name in ("outer", "inner", "done"))
        assert collector.services == {"a-hub"}
    assert attributes_of(outer) == {"order.id": "17", "action.outcome": "accepted", "tries": 2}
    assert (inner.parent_span_id, inner.trace_id) == (outer.span_id, outer.trace_id)
    assert (done.start_time_unix_nano, done.end_time_unix_nano) == (1_000, 3_000)
    assert outer.start_time_unix_nano <= inner.start_time_unix_nano < outer.end_time_unix_nano
    if isinstance(collector, HttpCollector):
        assert set(collector.paths) == {"/v1/traces"}


def test_a_span_tells_what_went_wrong_in_it() -> None:
    with collector_of(HttpCollector) as collector:
        stop = start_tracing(TracingSettings(url=collector.url))
        with pytest.raises(ZeroDivisionError), trace("broken"):
            raise ZeroDivisionError("by nothing")
        stop()
        (span,) = collector.named("broken")
    assert span.status.message == "ZeroDivisionError: by nothing"


def test_a_collector_that_is_away_costs_one_warning_and_no_waiting() -> None:
    with structlog.testing.capture_logs() as logs:
        stop = start_tracing(TracingSettings(url="http://127.0.0.1:9", timeout_s=1.0))
        begun_s = time.monotonic()
        for _ in range(100):
            with trace("lost"):
                pass
        assert time.monotonic() - begun_s < 30.0  # waiting would make it a hundred seconds
        wait_until(lambda: any("takes no spans" in entry["event"] for entry in logs), "it is told", 30.0)
        with trace("lost too"):
            pass
        stop()
        stop()
    warnings = [entry["event"] for entry in logs if "takes no spans" in entry["event"]]
    assert warnings == ["the collector takes no spans: they are dropped"]
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("OtelBatch")], "it ends", 60.0)


def test_a_collector_that_comes_back_gets_the_spans_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "BATCH_EVERY_S", 0.05)
    with collector_of(HttpCollector) as collector, structlog.testing.capture_logs() as logs:
        assert isinstance(collector, HttpCollector)
        collector.status = 400  # not one that is tried again
        stop = start_tracing(TracingSettings(url=collector.url))
        with trace("refused"):
            pass
        wait_until(lambda: logs, "the refusal is told", 30.0)
        collector.status = 200
        with trace("taken"):
            pass
        stop()
        assert [span.name for span in collector.all] == ["taken"]
    assert [entry["event"] for entry in logs] == [
        "the collector takes no spans: they are dropped",
        "the collector takes spans again",
    ]


def test_spans_can_go_to_stdout_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    stop = start_tracing(TracingSettings(exporter="stdout", service_name="mine"))
    with trace("first"), trace("second"):
        pass
    stop()
    spans = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [span["name"] for span in spans] == ["second", "first"]
    assert spans[0]["resource"]["attributes"]["service.name"] == "mine"


def test_off_nothing_is_kept_and_nothing_is_loaded() -> None:
    assert not is_tracing()
    with trace("nothing", a=1) as span:
        span.set(b=2)
    with trace("nothing") as other:
        assert other is span
    record_span("nothing", 1, 2)


class _SteppedClock(SystemClock):
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


def test_of_a_feeds_frames_one_a_second_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[dict[str, Any]] = []
    clock = _SteppedClock()
    times = FrameTimes("iex", clock)
    times.note(99.5, 10)
    monkeypatch.setattr("dry_work.hub.upstreams.frame_times.is_tracing", lambda: True)
    monkeypatch.setattr(
        "dry_work.hub.upstreams.frame_times.record_span",
        lambda name, begin_ns, end_ns, **more: spans.append({"name": name, "ns": end_ns - begin_ns, **more}),
    )
    for step_s in (0.0, 0.5, 0.25, 0.25):
        clock.now_s += step_s
        times.note(clock.now_s - 0.25, 100)
    common = {"name": "upstream.frame", "ns": 250_000_000, "feed": "iex"}
    assert spans == [
        {**common, "batch_frames": 1, "batch_bytes": 100},
        {**common, "batch_frames": 3, "batch_bytes": 300},
    ]
    assert times.read().total == 5
    assert times.read().sum == pytest.approx(1.5)
