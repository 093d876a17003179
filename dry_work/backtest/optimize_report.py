"""What a sweep found: a table for people, one JSON object, and a Parquet file with a row for each parameter set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from rich.table import Table

from dry_work.backtest.optimize import Outcome, SweepResult
from dry_work.backtest.sweep_data import write_whole
from dry_work.backtest.sweep_task import Figures
from dry_work.wire.pubsub import encode_time

_SHOWN_SETS = 10
_WIDE = 110
_PARTS = (("", "whole"), ("in_", "inside"), ("out_", "outside"))
_PERCENT = ("return", "drawdown")


def build_tables(result: SweepResult, *, width: int = 80) -> list[Table | str]:
    """Return what is printed for people: the best sets, and whether to believe in them.

    Args:
        result: what was found.
        width: characters of the terminal; a narrow one gets fewer columns.
    """
    shown: list[Table | str] = []
    done = len(result.outcomes)
    sets = f"{done:,} of {result.asked:,} sets" if done < result.asked else f"{done:,} sets"
    by = f"by {result.metric} in sample" if result.split_ns is not None else f"by {result.metric}"
    table = Table(title=f"Best of {sets} {by}", title_justify="left", title_style="bold")
    table.add_column("#", justify="right")
    for name in result.swept:
        table.add_column(name, justify="right", overflow="fold")
    names = list(dict.fromkeys([result.metric, "return", *(["drawdown"] if width >= _WIDE else []), "trades"]))
    sides = [("in", "inside"), ("out", "outside")] if result.split_ns is not None else [("", "whole")]
    for name in names:
        for side, _ in sides:
            table.add_column(f"{name}\n{side}".strip(), justify="right", no_wrap=True)
    for number, outcome in enumerate(result.outcomes[:_SHOWN_SETS], 1):
        if outcome.row.error:
            break
        cells = [_format_param(outcome.params[name]) for name in result.swept]
        cells += [_format_figure(getattr(outcome.row, part), name) for name in names for _, part in sides]
        table.add_row(str(number), *cells)
    if table.row_count:
        shown.append(table)
    shown.extend(_describe_split(result))
    shown.extend(f"note: {note}" for note in result.notes)
    return shown


def _describe_split(result: SweepResult) -> list[str]:
    if result.split_ns is None:
        return ["no part of the data was kept back (--split none): nothing here tells of over-fitting"]
    at = encode_time(result.split_ns)[:16].replace("T", " ")
    lines = [f"in sample: {result.slices[0]:,} slices up to {at} UTC; out of sample: the {result.slices[1]:,} after it"]
    if result.rank_correlation is not None:
        lines.append(
            f"rank correlation of {result.metric} in and out of sample: {result.rank_correlation:+.2f} over "
            f"{result.compared:,} sets (near 0 or below: the choice says nothing about later data)"
        )
    if result.out_rank is not None:
        lines.append(f"the best set in sample is number {result.out_rank:,} of {result.compared:,} out of sample")
    return lines


def _format_param(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_figure(figures: Figures | None, name: str) -> str:
    if figures is None:
        return "–"
    if name == "trades":
        return f"{figures.trades:,}"
    value = figures.max_drawdown if name == "drawdown" else figures.score(name)
    if value is None:
        return "–"
    if name in _PERCENT:
        return f"{value:.2%}" if name == "drawdown" else f"{value:+.2%}"
    return f"{value:.2f}"


def build_json(result: SweepResult) -> dict[str, Any]:
    """Return the one object that `--json` prints. It holds no NaN."""
    return {
        "agent": result.agent,
        "sets": result.asked,
        "done": len(result.outcomes),
        "failed": result.failed,
        "swept": list(result.swept),
        "metric": result.metric,
        "split": None if result.split_ns is None else encode_time(result.split_ns),
        "slices_in_sample": result.slices[0],
        "slices_out_of_sample": result.slices[1],
        "rank_correlation": result.rank_correlation,
        "best_out_of_sample_rank": result.out_rank,
        "best": None if result.best is None else _outcome_json(result.best),
        "top": [_outcome_json(outcome) for outcome in result.outcomes[:_SHOWN_SETS] if not outcome.row.error],
        "fingerprint": result.fingerprint,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    parts = {"whole": row.whole, "in_sample": row.inside, "out_of_sample": row.outside}
    return {
        "params": {name: _json_value(value) for name, value in outcome.params.items()},
        **{name: None if figures is None else flatten_figures(figures) for name, figures in parts.items()},
        "seconds": round(row.seconds, 3),
    }


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_json_value(part) for part in value] if isinstance(value, list | tuple) else str(value)


def flatten_figures(figures: Figures) -> dict[str, float | int | None]:
    """Return the figures under their public names."""
    return {
        "return": figures.total_return,
        "sharpe": figures.sharpe,
        "sortino": figures.sortino,
        "calmar": figures.calmar,
        "max_drawdown": figures.max_drawdown,
        "trades": figures.trades,
        "fills": figures.fills,
        "final_value": figures.final_value,
    }


_COUNTS = ("trades", "fills")
_FIGURES = ("return", "sharpe", "sortino", "calmar", "max_drawdown", *_COUNTS, "final_value")


def write_results(path: Path, result: SweepResult) -> None:
    """Write every set as a row of a Parquet file, the best first.

    Columns: `param_<name>`; the figures of all data, with `in_` those up to the split, with `out_` those after it;
    `seconds`, `error`. What belongs to all rows is in the schema's metadata under `dry_work`.

    Raises:
        StorageError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = result.outcomes
    columns: dict[str, Any] = {}
    for name in rows[0].params if rows else ():
        columns[f"param_{name}"] = _param_array([outcome.params[name] for outcome in rows])
    for prefix, part in _PARTS:
        if part != "whole" and result.split_ns is None:
            continue
        figures = [{} if (found := getattr(outcome.row, part)) is None else flatten_figures(found) for outcome in rows]
        for name in _FIGURES:
            kind = pa.int64() if name in _COUNTS else pa.float64()
            columns[prefix + name] = pa.array([each.get(name) for each in figures], kind)
    columns["seconds"] = pa.array([outcome.row.seconds for outcome in rows], pa.float64())
    columns["error"] = pa.array([outcome.row.error or None for outcome in rows], pa.string())
    facts: Mapping[str, Any] = {
        "agent": result.agent,
        "fingerprint": result.fingerprint,
        "metric": result.metric,
        "split": None if result.split_ns is None else encode_time(result.split_ns),
        "rank_correlation": result.rank_correlation,
    }
    table = pa.table(columns).replace_schema_metadata({"dry_work": json.dumps(facts)})
    content = BytesIO()
    pq.write_table(table, content, compression="zstd")
    write_whole(path, content.getvalue())


def _param_array(values: list[Any]) -> Any:
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(kinds) == 1 and kinds <= {int, str, bool}:
        try:
            return pa.array(values)
        except (OverflowError, pa.ArrowInvalid):
            pass  # an integer beyond 64 bits
    return pa.array([None if value is None else str(value) for value in values], pa.string())
