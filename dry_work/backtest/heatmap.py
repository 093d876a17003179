"""The metric of a sweep over two of its parameters, in and out of sample: as one HTML file, or as a picture.

A cell shows the set that is best in sample among those with its two values, and out of sample what that same set did
there; never the best out of sample, which nobody could have known.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from dry_work.backtest.optimize import Outcome, SweepResult, is_ranked
from dry_work.backtest.sweep_data import write_whole
from dry_work.errors import ConfigError

_MOST_VALUES = 40  # on an axis; more numbers are joined in bins
_BINS = 24
_PERCENT = ("return", "drawdown")
_BLUE, _WHITE, _RED = (0x1B, 0x5F, 0xA8), (0xF4, 0xF2, 0xEE), (0xB8, 0x3A, 0x24)
_CLIPPED = 0.02  # of the cells at either end may leave the scale, so that one of them does not drown the others


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """The best set in sample of those with these two values."""

    inside: float
    outside: float | None
    params: Mapping[str, Any]


class HeatMap(msgspec.Struct, frozen=True, kw_only=True):
    """Cells by column and row. `y` is empty when one parameter only was swept."""

    title: str
    metric: str
    x: str
    y: str
    columns: tuple[str, ...]  # labels
    rows: tuple[str, ...]
    cells: dict[tuple[int, int], Cell]  # by column and row
    best: tuple[int, int] | None
    has_split: bool
    others: tuple[str, ...]  # swept parameters that are on no axis

    @property
    def limit(self) -> float:
        """The end of the colour scale, above 0."""
        values = sorted(
            abs(value) for cell in self.cells.values() for value in (cell.inside, cell.outside) if value is not None
        )
        if not values:
            return 1.0
        return values[max(0, math.ceil(len(values) * (1 - _CLIPPED)) - 1)] or 1.0

    def format(self, value: float | None) -> str:
        """Return a value of the metric as it is shown."""
        if value is None:
            return "–"
        return f"{value:+.2%}" if self.metric in _PERCENT else f"{value:+.2f}"


def build_heatmap(result: SweepResult, axes: Sequence[str] = ()) -> HeatMap:
    """Return the map of a sweep.

    Args:
        result: with the outcomes, the best first.
        axes: one or two parameters; none: the two that have the most values.

    Raises:
        ConfigError: an axis is no swept parameter.
    """
    for name in axes:
        if name not in result.swept:
            raise ConfigError(f"--axes {name}: expected swept parameters: {', '.join(result.swept)}")
    if len(axes) > 2 or len(set(axes)) < len(axes):
        raise ConfigError(f"--axes {','.join(axes)}: expected one or two different parameters")
    ranked = [outcome for outcome in result.outcomes if is_ranked(outcome.row, result.metric)]
    chosen = list(axes) or _choose_axes(result)
    x, y = chosen[0], chosen[1] if len(chosen) > 1 else ""
    columns, column_of = _lay_out([outcome.params[x] for outcome in result.outcomes])
    rows, row_of = _lay_out([outcome.params[y] for outcome in result.outcomes]) if y else (("",), {})
    cells: dict[tuple[int, int], Cell] = {}
    for outcome in ranked:  # the best first, so the first of a cell stays
        place = (column_of[repr(outcome.params[x])], row_of[repr(outcome.params[y])] if y else 0)
        if place not in cells:
            cells[place] = _make_cell(outcome, result.metric)
    return HeatMap(
        title=result.agent,
        metric=result.metric,
        x=x,
        y=y,
        columns=columns,
        rows=rows,
        cells=cells,
        best=next(iter(cells), None),
        has_split=result.split_ns is not None,
        others=tuple(name for name in result.swept if name not in (x, y)),
    )


def _make_cell(outcome: Outcome, metric: str) -> Cell:
    figures = outcome.row.chosen_by
    inside = None if figures is None else figures.score(metric)
    assert inside is not None  # it is ranked
    outside = None if outcome.row.outside is None else outcome.row.outside.score(metric)
    return Cell(inside=inside, outside=outside, params=outcome.params)


def _choose_axes(result: SweepResult) -> list[str]:
    counts = {name: len({repr(outcome.params[name]) for outcome in result.outcomes}) for name in result.swept}
    widest = sorted(result.swept, key=lambda name: -counts[name])[:2]
    return [name for name in result.swept if name in widest]


def _lay_out(values: Sequence[Any]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the labels along an axis, and the place of each value by its `repr`."""
    distinct = {repr(value): value for value in values}
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct.values())
    if not numeric or len(distinct) <= _MOST_VALUES:
        ordered = sorted(distinct.items(), key=lambda item: item[1]) if numeric else list(distinct.items())
        return tuple(_label(value) for _, value in ordered), {key: i for i, (key, _) in enumerate(ordered)}
    low, high = min(distinct.values()), max(distinct.values())
    width = (high - low) / _BINS
    places = {key: min(_BINS - 1, int((value - low) / width)) for key, value in distinct.items()}
    return tuple(f"{low + (i + 0.5) * width:.3g}" for i in range(_BINS)), places


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _colour(value: float, limit: float) -> str:
    part = max(-1.0, min(1.0, value / limit))
    end = _BLUE if part > 0 else _RED
    mixed = (round(white + (colour - white) * abs(part)) for white, colour in zip(_WHITE, end, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


_STYLE = """
:root { color-scheme: light dark; --ink: #1d232b; --soft: #5d6875; --paper: #fff; --none: #c4cad1; --best: #111; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --soft: #9aa5b1; --paper: #14181d; --none: #4a545f; --best: #fff; }
}
body { margin: 0; padding: 24px; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: auto; }
h1 { font-size: 20px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 15px; margin: 0 0 4px; }
p { margin: 0 0 16px; color: var(--soft); max-width: 70em; }
.maps { display: flex; flex-wrap: wrap; gap: 24px; } figure { margin: 0; flex: 1 1 300px; min-width: 0; }
svg { width: 100%; height: auto; display: block; } text { fill: var(--soft); font-size: 12px; }
text.name { fill: var(--ink); } rect.none { fill: url(#none); } path.none { stroke: var(--none); stroke-width: 1.5; }
rect.best { fill: none; stroke: var(--best); stroke-width: 2.5; }
.scale { display: flex; align-items: center; gap: 10px; margin-top: 16px; color: var(--soft); max-width: 420px; }
.scale i { flex: 1; height: 12px; border-radius: 2px; }
"""


_HATCH = (
    '<defs><pattern id="none" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path class="none" d="M0 0V7"/></pattern></defs>'
)


def write_html(path: Path, heatmap: HeatMap, *, note: str = "") -> None:
    """Write one HTML file that needs no other.

    Args:
        path: of the file.
        heatmap: what is shown.
        note: a sentence under the title.

    Raises:
        StorageError: it cannot be written.
    """
    write_whole(path, build_html(heatmap, note=note).encode())


def build_html(heatmap: HeatMap, *, note: str = "") -> str:
    """Return the page."""
    limit = heatmap.limit
    parts = [_panel(heatmap, "in sample" if heatmap.has_split else "all data", limit, inside=True)]
    if heatmap.has_split:
        parts.append(_panel(heatmap, "out of sample, the same sets", limit, inside=False))
    ends = (heatmap.format(-limit), heatmap.format(limit))
    gradient = f"linear-gradient(90deg, {_colour(-1, 1)}, {_colour(0, 1)}, {_colour(1, 1)})"
    title = f"{heatmap.title}: {heatmap.metric} by {heatmap.x}" + (f" and {heatmap.y}" if heatmap.y else "")
    others = f"Each cell is the best set in sample over {', '.join(heatmap.others)}. " if heatmap.others else ""
    outlined = "Outlined: the set that is best in sample. Hatched: not tried, failed or without trades."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>
<h1>{html.escape(title)}</h1>
<p>{html.escape(note)} {html.escape(others)}{outlined}</p>
<div class="maps">{"".join(parts)}</div>
<div class="scale"><span>{ends[0]}</span><i style="background:{gradient}"></i><span>{ends[1]}</span></div>
</main></body></html>
"""


def _panel(heatmap: HeatMap, name: str, limit: float, *, inside: bool) -> str:
    columns, rows = len(heatmap.columns), len(heatmap.rows)
    left = 14 + 8 * max(len(label) for label in heatmap.rows) + (22 if heatmap.y else 0)
    size = max(14.0, min(48.0, 520 / columns))
    height = max(14.0, min(size, 520 / rows)) if heatmap.y else 48.0
    wide, tall = left + columns * size + 8, rows * height + 46
    shapes = []
    for column in range(columns):
        for row in range(rows):
            cell = heatmap.cells.get((column, row))
            at = f'x="{left + column * size:.1f}" y="{(rows - 1 - row) * height:.1f}"'
            box = f'{at} width="{size - 1:.1f}" height="{height - 1:.1f}"'
            value = None if cell is None else cell.inside if inside else cell.outside
            told = f"<title>{html.escape(_describe_cell(heatmap, cell))}</title>" if cell is not None else ""
            look = 'class="none"' if value is None else f'fill="{_colour(value, limit)}"'
            shapes.append(f"<rect {box} {look}>{told}</rect>")
    if heatmap.best is not None:
        column, row = heatmap.best
        at = f'x="{left + column * size:.1f}" y="{(rows - 1 - row) * height + 0.5:.1f}"'
        shapes.append(f'<rect class="best" {at} width="{size - 1:.1f}" height="{height - 2:.1f}"/>')
    widest = max(len(label) for label in heatmap.columns) * 8 + 6
    for column in range(0, columns, math.ceil(widest / size)):
        x, y = left + (column + 0.5) * size, rows * height + 15
        label = html.escape(heatmap.columns[column])
        shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{label}</text>')
    for row in range(0, rows, math.ceil(16 / height)):
        y = (rows - 0.5 - row) * height + 4
        label = html.escape(heatmap.rows[row])
        shapes.append(f'<text x="{left - 6}" y="{y:.1f}" text-anchor="end">{label}</text>')
    middle = left + columns * size / 2
    name_y = rows * height + 36
    shapes.append(f'<text class="name" x="{middle:.1f}" y="{name_y:.1f}" text-anchor="middle">{heatmap.x}</text>')
    if heatmap.y:
        centre = rows * height / 2
        turned = f'transform="rotate(-90 12 {centre:.1f})"'
        shapes.append(f'<text class="name" x="12" y="{centre:.1f}" text-anchor="middle" {turned}>{heatmap.y}</text>')
    label = html.escape(f"{heatmap.metric} {name}")
    return (
        f'<figure><h2>{label}</h2><svg viewBox="0 -2 {wide:.0f} {tall:.0f}" role="img" aria-label="{label}">'
        f"{_HATCH}{''.join(shapes)}</svg></figure>"
    )


def _describe_cell(heatmap: HeatMap, cell: Cell) -> str:
    params = ", ".join(f"{name}={value}" for name, value in cell.params.items())
    if not heatmap.has_split:
        return f"{params}: {heatmap.format(cell.inside)}"
    return f"{params}: {heatmap.format(cell.inside)} in sample, {heatmap.format(cell.outside)} out of sample"


def check_plot() -> None:
    """Check that a picture can be drawn.

    Raises:
        ConfigError: the library is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("--plot needs an extra: pip install 'dry-work[plot]'; the HTML heat map needs none") from None


def write_picture(path: Path, heatmap: HeatMap) -> None:
    """Write a picture; the ending of its name says of which kind, PNG or SVG for example.

    Raises:
        ConfigError: the library is missing, or does not know the kind.
        StorageError: it cannot be written.
    """
    check_plot()
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    ends = [tuple(channel / 255 for channel in colour) for colour in (_RED, _WHITE, _BLUE)]
    colours = LinearSegmentedColormap.from_list("signed", ends)
    panels = [("in sample" if heatmap.has_split else "all data", True)]
    if heatmap.has_split:
        panels.append(("out of sample, the same sets", False))
    rows = len(heatmap.rows)
    figure = Figure(figsize=(6.2 * len(panels) + 0.6, 2.6 if not heatmap.y else 5.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    limit, image = heatmap.limit, None
    for axis, (name, inside) in zip(axes, panels, strict=True):
        values = np.full((rows, len(heatmap.columns)), np.nan)
        for (column, row), cell in heatmap.cells.items():
            value = cell.inside if inside else cell.outside
            values[row, column] = np.nan if value is None else value
        shown = np.ma.masked_invalid(values)
        image = axis.imshow(shown, origin="lower", cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
        axis.patch.set(hatch="////", edgecolor="#c4cad1")
        axis.set_title(f"{heatmap.metric} {name}", fontsize=11)
        axis.set_xlabel(heatmap.x)
        axis.set_ylabel(heatmap.y)
        _label_axis(axis.xaxis, heatmap.columns)
        _label_axis(axis.yaxis, heatmap.rows)
        if heatmap.best is not None:
            column, row = heatmap.best
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#111", linewidth=2))
    if image is not None:
        figure.colorbar(image, ax=list(axes), shrink=0.9, format=lambda value, _: heatmap.format(value))
    figure.suptitle(heatmap.title, fontsize=12)
    content = BytesIO()
    kind = path.suffix.removeprefix(".") or "png"
    try:
        figure.savefig(content, format=kind, dpi=150)
    except ValueError:
        raise ConfigError(
            f"--plot {path}: {kind!r} is no kind of picture; expected a name that ends with .png"
        ) from None
    write_whole(path, content.getvalue())


def _label_axis(axis: Any, labels: Sequence[str], most: int = 20) -> None:
    places = range(0, len(labels), math.ceil(len(labels) / most))
    axis.set_ticks(list(places), [labels[i] for i in places])
