"""Write `metrics.md` beside this file from the metrics that are exported: `python docs/reference/write_metrics.py`."""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from source_notes import build_table, code

from dry_work.engine.telemetry_metrics import STAGES, RunCounts, build_run_metrics
from dry_work.hub.core import ConnectionState
from dry_work.hub.metrics import BUILDERS, HubCounts
from dry_work.hub.ports import SinkStatus, TopicStatus
from dry_work.hub.upstreams.connection import FeedStatus
from dry_work.market.completeness import Completeness
from dry_work.market.market_state import DataHealth, SymbolHealth
from dry_work.observability.metrics import BOUNDS_S, Histogram, HistogramCounts, Metric
from dry_work.orders.risk import RiskState

PAGE = Path(__file__).with_name("metrics.md")

HEAD = """\
# Metrics

Written by `python docs/reference/write_metrics.py` from what is exported; a test compares the two. The format is
Prometheus' text format 0.0.4. A histogram has the series `_bucket` (label `le`), `_sum` and `_count`. How to switch
them on, and what to make of them: [an agent](../howto/observe.md), [the hub](../howto/observe-hub.md).
"""

# What a label's values are, where they are no names of the user's own.
LABELS = {
    "agent": "the agent's id",
    "mode": "local, paper or live",
    "symbol": "as it is traded, such as `BRK.B` or `BTC/USD`",
    "stage": "see below",
    "event": "what was counted",
    "arrival": ", ".join(Completeness.__struct_fields__),
    "status": "of Backtrader's orders: Submitted, Accepted, Completed, Rejected, …",
    "state": ", ".join(state.value for state in RiskState),
    "limit": "day_loss, drawdown",
    "result": "sent, failed, held_back",
    "outcome": "in_bar; late, when the bar was closed; taken_back, reports that take a trade back; malformed",
    "feed": "the upstream, such as stocks or trading_paper",
    "message_type": "such as stock_bar, stock_trade, option_quote, order_update, other",
    "error_type": "lost, fatal, malformed, or `code_` and Alpaca's number",
    "sink": "pubsub, websocket, grpc, nats, redis",
}

_SAMPLE = Histogram()
_SAMPLE.observe(0.001)


def build_page() -> str:
    """Return the page."""
    hub = build_hub_sample()
    stages = build_table(["stage", "time"], [[code(name), text] for name, text in STAGES.items()])
    agent = build_run_metrics(build_run_sample())
    metrics = [*agent, *(metric for build in BUILDERS for metric in build(hub))]
    parts = [
        HEAD,
        "## The agent\n\n`dry-work run` with `DISABLE_METRICS=false`, on `METRICS_PORT`.\n",
        _build_metrics(agent) + "\n",
        f"Stages, in the order in which a bar and its order go through them:\n\n{stages}\n",
        "## The hub\n\n`dry-work hub`, on `STREAM_PROXY_METRICS_PORT` and `STREAM_PROXY_HEALTH_PORT`.\n",
        _build_metrics([metric for build in BUILDERS for metric in build(hub)]) + "\n",
        "## Labels\n",
        build_table(["label", "values"], [[code(label), LABELS[label]] for label in _list_labels(metrics)]) + "\n",
        "## Buckets\n\nUpper bounds of the hub's histogram, in seconds: "
        + ", ".join(f"{bound:g}" for bound in BOUNDS_S)
        + ".\n",
    ]
    return "\n".join(parts)


def build_run_sample() -> RunCounts:
    """Return counts with something in each of their fields, so that every label is there."""
    counts: RunCounts = _fill(
        RunCounts,
        stages={name: _SAMPLE.read() for name in STAGES},
        risk_state=RiskState.ACTIVE.value,
        data=DataHealth(symbols=(SymbolHealth(symbol="name", bars=Completeness()),)),
    )
    return counts


def build_hub_sample() -> HubCounts:
    """Return counts with something in each of their fields."""
    return HubCounts(
        feeds=[FeedStatus(feed="sip", state=ConnectionState.CONNECTED, processing=_SAMPLE.read())],
        sinks=[SinkStatus(name="websocket", is_ready=True, clients=1)],
        topics=[TopicStatus(topic="market-data")],
    )


def _fill(kind: type[Any], **given: Any) -> Any:
    """Return a struct whose texts, numbers and tables are not empty."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if typing.get_origin(hint) is Mapping or typing.get_origin(hint) is typing.get_origin(Mapping[str, int]):
            value = typing.get_args(hint)[1]
            found[field.name] = {"name": _SAMPLE.read() if value is HistogramCounts else 1}
        elif hint in (str, int, float, bool):
            found[field.name] = hint(1)
    return kind(**{**found, **given})


def read_labels(metric: Metric) -> list[str]:
    """Return the names of a metric's labels; `le` belongs to every histogram."""
    found = dict.fromkeys(re.findall(r'[{,]([a-z_]+)="', metric.encode()))
    return [label for label in found if label != "le"]


def _build_metrics(metrics: Iterable[Metric]) -> str:
    rows = []
    for metric in metrics:
        if not metric.documentation:
            raise SystemExit(f"{metric.name} has no documentation")
        labels = " ".join(code(label) for label in read_labels(metric))
        rows.append([code(metric.name), metric.kind, labels, metric.documentation])
    return build_table(["metric", "type", "labels", "meaning"], rows)


def _list_labels(metrics: Iterable[Metric]) -> list[str]:
    found = dict.fromkeys(label for metric in metrics for label in read_labels(metric))
    missing = [label for label in found if label not in LABELS]
    if missing:
        raise SystemExit(f"labels without a note in {Path(__file__).name}: {', '.join(missing)}")
    return list(found)


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
