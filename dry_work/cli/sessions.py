"""`dry-work sessions`: what was recorded of runs; export one as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dry_work.recording.session_list import SessionSummary

_EXPORT = "export"
_WIDTH = 110  # a narrower table would be cut within its numbers


@click.command("sessions")
@click.argument("arguments", nargs=-1, metavar="[STATE_DIR | export ID FILE]")
@click.option("--state-dir", type=click.Path(), metavar="DIR", help="Where sessions are. Default: ./.dry-work.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(arguments: tuple[str, ...], state_dir: str | None, as_json: bool) -> int:
    """List recorded sessions: period, agent, orders, profit, gaps, exit. Damaged ones come with the reason.

    `export` writes one of them into a single file, which `dry-work replay FILE` runs on any machine. It holds the
    source of the strategy, its orders and the orders journal, but no keys.

    \b
    Examples:
      dry-work sessions
      dry-work sessions /var/lib/trading-agent --json
      dry-work sessions export 20240611T133000Z-1f2e3d4c bad-day.dwsession
    """
    from dry_work.cli.signals import EXIT_DONE
    from dry_work.errors import ConfigError
    from dry_work.recording.flight_log import export_session
    from dry_work.recording.session_list import find_session, list_sessions
    from dry_work.settings import choose_state_dir

    if arguments[:1] == (_EXPORT,):
        if len(arguments) != 3:
            raise ConfigError("sessions export: expected the id of a session and the name of a new file")
        root = Path(state_dir) if state_dir is not None else choose_state_dir(None, agent_id="")[0]
        folder = find_session(root, arguments[1])
        size = export_session(folder, Path(arguments[2]))
        click.echo(f"{folder.name}: {arguments[2]}, {size / 1e6:,.1f} MB; dry-work replay {arguments[2]}")
        if as_json:
            click.echo(json.dumps({"session": folder.name, "file": arguments[2], "bytes": size}))
        return EXIT_DONE
    if len(arguments) > 1 or (arguments and state_dir is not None):
        raise ConfigError("sessions: expected one state directory, or `export ID FILE`")
    root = Path(arguments[0] if arguments else state_dir or choose_state_dir(None, agent_id="")[0])
    found = list_sessions(root)
    if not found:
        click.echo(f"no sessions below {root}")
    else:
        _print(found)
    if as_json:
        click.echo(json.dumps({"sessions": [to_json(each) for each in found]}, allow_nan=False))
    return EXIT_DONE


def _print(found: list[SessionSummary]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Sessions", title_justify="left", box=None, pad_edge=False)
    table.add_column("session", no_wrap=True)
    table.add_column("agent")
    for name in ("period (UTC)", "orders", "fills", "profit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("exit", no_wrap=True)
    for each in found:
        table.add_row(*_cells(each))
    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    console.print(table, markup=False)
    for each in found:
        gaps = each.describe_gaps()
        if gaps:
            console.print(f"{each.name}: gaps: {gaps}", markup=False, soft_wrap=True)
        if each.problem:
            console.print(f"{each.name}: {each.problem}", markup=False, soft_wrap=True)
        elif each.detail:
            console.print(f"{each.name}: {each.exit}: {each.detail}", markup=False, soft_wrap=True)


def _cells(each: SessionSummary) -> list[str]:
    from dry_work.cli.replay import minute
    from dry_work.recording.flight_log import NO_FLIGHT

    if not each.agent:
        return [each.name, "", "", "", "", "", "no flight" if each.problem == NO_FLIGHT else "damaged"]
    period = ""
    if each.first_ns:
        last = minute(each.last_ns)
        first = minute(each.first_ns)
        period = f"{first} – {last[11:] if last[:10] == first[:10] else last}"
    profit = "" if each.profit is None else f"{each.profit:+,.2f}"
    where, _, name = each.agent.rpartition("/")
    agent = f"{name if where else each.agent}" + (f" ({each.params})" if each.params else "")
    return [each.name, agent, period, f"{each.orders:,}", f"{each.fills:,}", profit, each.exit]


def to_json(summary: SessionSummary) -> dict[str, Any]:
    """Return a session as JSON values; times are nanoseconds."""
    import msgspec

    content: dict[str, Any] = msgspec.to_builtins(summary)
    content["profit"] = summary.profit
    return content
