"""Metrics in Prometheus' text format 0.0.4: values that know their names, and a histogram that is cheap to fill. Pure.

Names are written as they are given. `prometheus_client` writes `_total` behind every counter's name that lacks it.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

import msgspec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

# Upper bounds in seconds: from a frame with one item to one that holds the event loop up.
BOUNDS_S = (0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

Labels = Mapping[str, str]


class HistogramCounts(msgspec.Struct, frozen=True):
    """A histogram at one moment."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]  # of each bucket alone; one more than bounds, the last for what is above all of them
    sum: float

    @property
    def total(self) -> int:
        """Values in all."""
        return sum(self.counts)


class Histogram:
    """Counts values in buckets.

    Args:
        bounds: upper bounds, which belong to their buckets, in rising order.
    """

    def __init__(self, bounds: Sequence[float] = BOUNDS_S) -> None:
        if not bounds or list(bounds) != sorted(set(bounds)):
            raise ValueError(f"bounds {bounds!r}: expected one or more, each above the one before")
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> HistogramCounts:
        """Return the counts as they are now."""
        return HistogramCounts(self._bounds, tuple(self._counts), self._sum)


class Metric:
    """One metric with its values.

    Args:
        name: written as it is.
        kind: counter, gauge or histogram.
        documentation: one line.
    """

    def __init__(self, name: str, kind: str, documentation: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a metric: expected letters, digits, _ and :")
        self.name = name
        self.kind = kind
        self.documentation = documentation
        self._lines: list[tuple[str, tuple[tuple[str, str], ...], float]] = []

    def add(self, value: float, **labels: str) -> Metric:
        """Add a value."""
        self._lines.append((self.name, tuple(labels.items()), value))
        return self

    def add_histogram(self, counts: HistogramCounts, **labels: str) -> Metric:
        """Add a histogram."""
        given = tuple(labels.items())
        total = 0
        for bound, count in zip((*counts.bounds, math.inf), counts.counts, strict=True):
            total += count
            self._lines.append((f"{self.name}_bucket", (*given, ("le", _format(bound))), total))
        self._lines.append((f"{self.name}_sum", given, counts.sum))
        self._lines.append((f"{self.name}_count", given, total))
        return self

    def encode(self) -> str:
        """Return the metric in the text format."""
        text = self.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines = [f"# HELP {self.name} {text}", f"# TYPE {self.name} {self.kind}"]
        for name, labels, value in self._lines:
            shown = ",".join(f'{label}="{_escape(text)}"' for label, text in labels)
            lines.append(f"{name}{{{shown}}} {_format(value)}" if shown else f"{name} {_format(value)}")
        return "\n".join(lines) + "\n"


def encode_metrics(metrics: Iterable[Metric]) -> bytes:
    """Return metrics in the text format."""
    return "".join(metric.encode() for metric in metrics).encode()


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _format(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) else repr(float(value))
