"""Rows of figures and their table. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, and the same of what it is compared with.

    `gain` says how many times better ours is: above 1 is better, whatever the unit. With `gains`, which are those of
    pairs of rounds, it is their median: what else the machine did meanwhile has hit both of a pair.
    """

    what: str
    ours: float
    unit: str
    higher_is_better: bool = False
    other: float | None = None
    other_name: str = ""
    bar: str = ""  # what the design asks for
    gains: tuple[float, ...] = ()

    @property
    def gain(self) -> float | None:
        """How many times better ours is, None when there is nothing to compare with."""
        if self.gains:
            return median(self.gains)
        if self.other is None or not self.ours or not self.other:
            return None
        return self.ours / self.other if self.higher_is_better else self.other / self.ours


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of `values` lie: the nearest one that was measured.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values were measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def median(values: Sequence[float]) -> float:
    """Return the median of the rounds."""
    return float(statistics.median(values))


def format_number(value: float) -> str:
    """Return a number with three figures, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [("what", "Dry Work", "compared with", "times better", "bar")]
    for row in rows:
        other = "" if row.other is None else f"{format_number(row.other)} {row.unit} ({row.other_name})"
        gain = "" if row.gain is None else f"{format_number(row.gain)}×"
        if len(row.gains) > 1:
            gain += f" ({format_number(min(row.gains))} to {format_number(max(row.gains))})"
        lines.append((row.what, f"{format_number(row.ours)} {row.unit}", other, gain, row.bar))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    shown.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(shown)
