"""`dry-work data`: what recordings hold."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dry_work.recording.inventory import Holding, Inventory, LogFacts

DEFAULT_PATH = "recordings"
_DAYS_NAMED = 5


@click.command("data")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--compact",
    multiple=True,
    metavar="DIR",
    help="First bring the recorded logs below this folder into the catalog at PATH. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(paths: tuple[str, ...], compact: tuple[str, ...], as_json: bool) -> int:
    """List what recordings hold, what is missing in them, and what is damaged.

    PATH is a catalog, a file, a folder, a glob or gs://…; default: ./recordings. Stocks are compared with the regular
    sessions of the New York exchange, crypto pairs with the whole day. A minute in which a stock is not traded has no
    bar: a few missing ones are normal.

    \b
    Examples:
      dry-work data
      dry-work data gs://my-bucket/market --json
      dry-work data recordings --compact .dry-work

    The exit code is 1 when a file is damaged.
    """
    from rich.console import Console

    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED
    from dry_work.errors import ConfigError
    from dry_work.observability.logging import set_up_logging
    from dry_work.recording.inventory import take_inventory

    set_up_logging()
    if compact:
        if len(paths) > 1:
            raise ConfigError("--compact goes with one PATH, the catalog to write; several were given")
        _compact(compact, paths[0] if paths else DEFAULT_PATH)
    progress = _Progress()
    inventory = take_inventory(paths or (DEFAULT_PATH,), on_file=progress.show)
    progress.clear()
    console = Console(highlight=False)
    for part in build_tables(inventory):
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    if as_json:
        click.echo(json.dumps(to_json(inventory), allow_nan=False))
    is_damaged = bool(inventory.damaged) or any(log.is_damaged for log in inventory.logs)
    return EXIT_FAILED if is_damaged else EXIT_DONE


def _compact(folders: tuple[str, ...], location: str) -> None:
    from contextlib import closing

    from dry_work.errors import ConfigError
    from dry_work.recording.catalog import CatalogWriter
    from dry_work.recording.compaction import compact_sessions
    from dry_work.recording.log import SUFFIX, find_sessions
    from dry_work.storage import open_storage

    sessions = []
    for folder in folders:
        found = find_sessions(Path(folder).expanduser())
        if not found:
            raise ConfigError(f"--compact {folder}: no logs (*{SUFFIX}) below this folder")
        sessions.extend(found)
    with closing(open_storage(location)) as storage:
        report = compact_sessions(dict.fromkeys(sessions), CatalogWriter(storage))
    for sentence in report.describe():
        click.echo(sentence)


def build_tables(inventory: Inventory) -> list[Any]:
    """Return the inventory as tables and lines."""
    from rich.table import Table

    from dry_work.recording.gaps import describe_gap

    parts: list[Any] = []
    if inventory.holdings:
        table = Table(title="Recordings", title_justify="left")
        for name in ("kind", "symbol"):
            table.add_column(name, no_wrap=True)
        for name in ("rows", "from (UTC)", "to", "days", "missing bars"):
            table.add_column(name, justify="right", no_wrap=name != "missing bars")
        is_short = all(_day(held.first_ns) == _day(held.last_ns) for held in inventory.holdings)
        for held in inventory.holdings:
            table.add_row(*_cells(held, is_short))
        parts.append(table)
    for held in inventory.holdings:
        name = f"{held.symbol} {held.frame or held.kind}"
        missing = held.gaps.missing_days
        if missing:
            more = f" and {len(missing) - _DAYS_NAMED:,} more" if len(missing) > _DAYS_NAMED else ""
            days = ", ".join(day.isoformat() for day in missing[:_DAYS_NAMED])
            parts.append(f"{name}: missing days: {days}{more}")
        if held.gaps.largest and held.length_ns is not None and held.gaps.largest[0].bars > 1:
            largest = ", ".join(describe_gap(gap, held.length_ns) for gap in held.gaps.largest if gap.bars > 1)
            parts.append(f"{name}: largest gaps: {largest}")
    roots: dict[str, list[LogFacts]] = {}
    for log in inventory.logs:
        roots.setdefault(str(Path(log.folder).parent), []).append(log)
    for root, logs in roots.items():
        parts.append(f"Logs in {root}")
        table = Table()
        table.add_column("session", no_wrap=True)
        for name in ("messages", "MB", "last message (UTC)"):  # the name has the time of the start
            table.add_column(name, justify="right")
        table.add_column("end")
        for log in logs:
            table.add_row(*_log_cells(log))
        parts.append(table)
    parts.extend(f"damaged: {log.damage}" for log in inventory.logs if log.is_damaged)
    parts.extend(f"damaged: {sentence}" for sentence in inventory.damaged)
    return parts


def to_json(inventory: Inventory) -> dict[str, Any]:
    """Return the inventory as JSON values; times are RFC 3339."""
    return {
        "recordings": [
            {
                "kind": held.kind,
                "symbol": held.symbol,
                "timeframe": held.frame or None,
                "files": held.files,
                "rows": held.rows,
                "first": _time(held.first_ns),
                "last": _time(held.last_ns),
                "days": held.gaps.days,
                "missing_days": [day.isoformat() for day in held.gaps.missing_days],
                "expected_bars": held.gaps.expected_bars,
                "missing_bars": None if held.gaps.expected_bars is None else held.gaps.missing_bars,
                "largest_gaps": [
                    {"first": _time(gap.first_ns), "last": _time(gap.last_ns), "bars": gap.bars}
                    for gap in held.gaps.largest
                ],
            }
            for held in inventory.holdings
        ],
        "logs": [
            {
                "folder": log.folder,
                "written_by": log.writer,
                "messages": log.messages,
                "bytes": log.bytes,
                "first": _time(log.first_ns) if log.first_ns else None,
                "last": _time(log.last_ns) if log.last_ns else None,
                "closed": log.is_closed,
                "damaged": log.is_damaged,
                "damage": log.damage or None,
            }
            for log in inventory.logs
        ],
        "damaged": list(inventory.damaged),
    }


def _cells(held: Holding, is_short: bool) -> list[str]:
    gaps = held.gaps
    days = f"{gaps.days:,}" + (f" of {gaps.days + len(gaps.missing_days):,}" if gaps.missing_days else "")
    missing = ""
    if gaps.expected_bars is not None:
        share = 100 * gaps.missing_bars / max(gaps.expected_bars, 1)
        missing = f"{gaps.missing_bars:,}" + (f" ({share:.1f}%)" if share >= 0.05 else "")
    times = (
        [_minute(held.first_ns), _minute(held.last_ns)[11:]] if is_short else [_day(held.first_ns), _day(held.last_ns)]
    )
    return [f"{held.kind} {held.frame}".strip(), held.symbol, f"{held.rows:,}", *times, days, missing]


def _log_cells(log: LogFacts) -> list[str]:
    end = "damaged" if log.is_damaged else ("closed" if log.is_closed else "open")
    last = _minute(log.last_ns) if log.last_ns else ""
    return [Path(log.folder).name, f"{log.messages:,}", f"{log.bytes / 1e6:,.1f}", last, end]


def _day(time_ns: int) -> str:
    return _minute(time_ns)[:10]


def _minute(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_ns // 1_000_000_000))


def _time(time_ns: int) -> str:
    from dry_work.wire.pubsub import encode_time

    return encode_time(time_ns)


class _Progress:
    """Files read so far, on a terminal and for long work only."""

    def __init__(self) -> None:
        self._shown_s = time.monotonic()
        self._is_shown = False

    def show(self, number: int, total: int) -> None:
        now_s = time.monotonic()
        if sys.stderr.isatty() and now_s - self._shown_s >= 0.5:
            self._shown_s = now_s
            self._is_shown = True
            click.echo(f"\r{number:,} of {total:,} files", err=True, nl=False)

    def clear(self) -> None:
        if self._is_shown:
            click.echo("\r" + " " * 40 + "\r", err=True, nl=False)
