"""A run that is watched: metrics while it goes on, alerts and heartbeats at a real receiver. Off, nothing is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .otlp_collector import HttpCollector, attributes_of

STRATEGY = """
import pathlib, time
import backtrader as bt

class Mine(bt.Strategy):
    def next(self):
        if len(self) == 3:
            self.buy(size=1)
        if len(self) == 5:
            self.buy(size=1e9)
        if len(self) == 60:
            pathlib.Path("there").touch()
            while not pathlib.Path("seen").exists():
                time.sleep(0.01)
        if len(self) == 70:
            raise RuntimeError("gone wrong")
"""


def test_a_run_shows_metrics_and_tells_of_a_refusal_and_of_its_failure(tmp_path: Path) -> None:
    taken: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.do_GET()

        def do_GET(self) -> None:
            taken.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    receiver = f"127.0.0.1:{server.server_address[1]}"
    (tmp_path / "mine.py").write_text(STRATEGY)
    (tmp_path / "symbols.txt").write_text("SPY\n")
    environment = {
        **os.environ,
        "DRY_WORK_ALERTS": f"json://{receiver}/hush-hush",
        "DRY_WORK_HEARTBEAT_URL": f"http://{receiver}/beat",
        "DISABLE_METRICS": "false",
        "METRICS_PORT": "0",
    }
    run = subprocess.Popen(
        [sys.executable, "-m", "dry_work", "run", "--local", "--plain", "--agent", "mine.py:Mine"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(120, run.kill)
    watchdog.start()
    try:
        assert run.stdout is not None
        lines: list[str] = []
        address = ""
        for line in run.stdout:
            lines.append(line)
            if found := re.search(r"metrics: (http://\S+)/metrics", line):
                address = found[1]
                break
        assert address, lines
        while not (tmp_path / "there").exists():
            assert run.poll() is None, "".join(lines) + run.stdout.read()
        while "/beat" not in taken:
            assert run.poll() is None
        answers = {}
        for path in ("/metrics", "/healthz", "/readyz"):
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                answers[path] = answer.read().decode()
        (tmp_path / "seen").touch()
        rest = run.stdout.read()
        assert run.wait(60) == 1, rest
    finally:
        watchdog.cancel()
        run.kill()
        run.wait(30)
        assert run.stdout is not None
        run.stdout.close()
        server.shutdown()
        thread.join(30)
        server.server_close()
    values = dict(line.rsplit(" ", 1) for line in answers["/metrics"].splitlines() if not line.startswith("#"))
    assert (answers["/healthz"], answers["/readyz"]) == ("OK\n", "READY\n")
    assert values["dry_work_slices_total"] in ("59", "60")
    assert values['dry_work_stage_seconds_count{stage="next"}'] == "59"
    assert values['dry_work_stage_seconds_count{stage="request"}'] == "1"
    assert values['dry_work_order_notifications_total{status="rejected"}'] == "1"
    assert values['dry_work_order_notifications_total{status="completed"}'] == "1"
    assert values['dry_work_risk_state{state="active"}'] == "1"
    assert float(values["dry_work_memory_bytes"]) > 1e7
    told = "\n".join(taken)
    assert "order rejected" in told
    assert "run failed" in told
    assert "gone wrong" in told
    assert "hush-hush" not in "".join(lines) + rest


def test_a_run_that_is_not_watched_loads_nothing_of_it() -> None:
    code = "import sys, dry_work.engine.runner; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "dry_work.engine.runner" in loaded
    assert (
        loaded
        & {
            "apprise",
            "opentelemetry.sdk",
            "dry_work.engine.order_lines",
            "dry_work.engine.telemetry",
            "dry_work.observability.metrics_server",
        }
        == set()
    )


def test_a_run_writes_one_line_for_each_slice_and_each_order_that_has_ended(tmp_path: Path) -> None:
    (tmp_path / "seen").touch()
    (tmp_path / "mine.py").write_text(STRATEGY)
    (tmp_path / "symbols.txt").write_text("SPY\n")
    done = subprocess.run(
        [sys.executable, "-m", "dry_work", "run", "--local", "--plain", "--agent", "mine.py:Mine"],
        cwd=tmp_path, env={**os.environ, "LOG_FMT": "google", "LOG_LEVEL": "info"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    slices = [line for line in lines if line["message"] == "slice"]
    orders = [line for line in lines if line["message"] == "order"]
    assert len(slices) == 69  # the last one raised
    assert all(line["received_ns"] <= line["began_ns"] <= line["done_ns"] for line in slices)
    assert [(line["status"], line["filled"]) for line in orders] == [("completed", 1), ("rejected", 0)]
    assert orders[0]["request_ms"] > 0
    way = ["hub_ns", "received_ns", "began_ns", "placed_ns", "sent_ns", "answered_ns", "accepted_ns", "first_fill_ns",
           "last_fill_ns", "ended_ns"]  # fmt: skip
    times = [orders[0][name] for name in way]
    assert times == sorted(times)
    assert orders[0]["slice"] == 3
    assert orders[0]["bar_end_ns"] == slices[2]["end_ns"]
    stages = {"transport", "barrier", "next", "queue", "request", "acknowledgement", "fill", "total"}
    assert {name.removesuffix("_ms") for name in orders[0] if name.endswith("_ms")} == stages
    assert [line["risk"] for line in orders] == ["passed", "order_value"]
    assert "sent_ns" not in orders[1]
    assert "risk limit" in orders[1]["reason"]
    assert not any("logging.googleapis.com/trace" in line for line in lines)
    assert all(line["logging.googleapis.com/labels"]["agent"] for line in (*slices, *orders))


def test_spans_of_slices_and_orders_reach_a_collector_and_stand_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "seen").touch()
    (tmp_path / "mine.py").write_text(STRATEGY)
    (tmp_path / "symbols.txt").write_text("SPY\n")
    collector = HttpCollector()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dry_work", "run", "--local", "--plain", "--agent", "mine.py:Mine"],
            cwd=tmp_path,
            env={
                **os.environ, "LOG_FMT": "google", "LOG_LEVEL": "info", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                "GOOGLE_CLOUD_PROJECT": "my-project",
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        collector.close()
    assert done.returncode == 1, done.stderr
    assert collector.services == {"dry-work-agent"}
    assert set(collector.paths) == {"/v1/traces"}
    slices = {span.span_id.hex(): span for span in collector.named("slice")}
    assert len(slices) == 69
    by_status = {attributes_of(span)["status"]: span for span in collector.named("order")}
    assert set(by_status) == {"completed", "rejected"}
    filled = by_status["completed"]
    origin = slices[filled.parent_span_id.hex()]
    assert attributes_of(origin)["bars"] == 1
    assert origin.trace_id == filled.trace_id
    assert origin.start_time_unix_nano <= filled.start_time_unix_nano <= filled.end_time_unix_nano
    parts = [span for span in collector.all if span.parent_span_id == filled.span_id]
    assert {span.name for span in parts} == {
        f"order.{name}" for name in ("queue", "request", "acknowledgement", "fill")
    }
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["message"] == "order" and line["status"] == "completed"]
    assert line["logging.googleapis.com/spanId"] == filled.span_id.hex()
    trace = f"/traces/{filled.trace_id.hex()}"
    assert line["logging.googleapis.com/trace"] == f"projects/my-project{trace}"
    told = [
        line for line in lines if line["message"] == "slice" and line["logging.googleapis.com/trace"].endswith(trace)
    ]
    assert [line["logging.googleapis.com/spanId"] for line in told] == [origin.span_id.hex()]
