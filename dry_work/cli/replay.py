"""`dry-work replay`: run a recorded session again, and compare or ask."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.cli.options import complete_files

if TYPE_CHECKING:
    from dry_work.engine.moment import Moment
    from dry_work.engine.replay import ReplayResult
    from dry_work.engine.replay_flight import Divergence
    from dry_work.engine.what_if import WhatIfResult

_SHOWN_FILLS = 8
_CRITICAL = 50


@click.command("replay")
@click.argument("place", metavar="DIR|FILE", type=click.Path())
@click.option("--until", metavar="TIME", help="Stop behind this time (UTC), and show what the strategy saw then.")
@click.option(
    "--agent", shell_complete=complete_files, metavar="FILE.py:Class", help="Ask what another strategy would have done."
)
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Ask what another parameter would.")
@click.option(
    "--session", metavar="ID", help="Which session, when DIR holds several; the beginning of its name is enough."
)
@click.option("--recorded-source", is_flag=True, help="Run the source in the record, not the strategy's file as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(
    place: str,
    until: str | None,
    agent: str | None,
    params: tuple[str, ...],
    session: str | None,
    recorded_source: bool,
    as_json: bool,
) -> int:
    """Run a recorded session again: the same code on the recorded inputs has to come to the same decisions.

    DIR is a session's folder or a state directory, FILE an exported session. Nothing is sent anywhere.

    \b
    Examples:
      dry-work replay .dry-work
      dry-work replay session.dwsession --until 2024-06-11T15:30
      dry-work replay .dry-work --agent other.py:Cross -p fast=10

    With --agent or -p: as long as its orders are those of the record, fills come from there; from the first other order
    on they come from the simulated exchange, rule set backtrader.

    Exit codes: 0 the same (or the question is answered), 1 something differs or the recording is damaged, 2 it cannot
    be replayed.
    """
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED
    from dry_work.engine.agents import parse_params
    from dry_work.engine.replay import recorded_agent, replay_session
    from dry_work.errors import ConfigError
    from dry_work.recording.flight_log import open_flight
    from dry_work.recording.session_list import find_session
    from dry_work.settings import parse_moment

    until_ns = None if until is None else parse_moment(until, name="--until", whole_day=True)
    given = parse_params(params)
    if agent is not None and recorded_source:
        raise ConfigError("--agent and --recorded-source exclude each other: name the one that is to run")
    folder = Path(place) if session is None else find_session(Path(place), session)
    with (
        quiet_log(),
        open_flight(folder) as reader,
        recorded_agent(reader.facts, spec=agent, params=given, recorded_source=recorded_source) as (strategy, notes),
    ):
        for note in notes:
            click.echo(f"note: {note}")
        if agent is not None or given:
            from dry_work.engine.what_if import ask_what_if

            answer = ask_what_if(reader, strategy, until_ns=until_ns)
            _print_answer(answer)
            if as_json:
                click.echo(json.dumps(answer_to_json(answer), allow_nan=False))
            return EXIT_DONE
        result = replay_session(reader, strategy, until_ns=until_ns, notes=notes)
    is_damaged = bool(reader.problem) and not reader.is_cut
    _print_result(result, place)
    if as_json:
        click.echo(json.dumps(result_to_json(result), allow_nan=False))
    return EXIT_DONE if result.is_same and not is_damaged else EXIT_FAILED


def _print_result(result: ReplayResult, place: str) -> None:
    click.echo(f"session {result.session}: {result.agent}, {result.slices:,} slices replayed")
    if result.divergence is not None:
        _print_divergence(result.divergence)
        for number, cause in enumerate(result.causes):
            click.echo(f"  {'cause' if not number else 'or'}: {cause}")
    else:
        click.echo(f"the same: {result.decisions:,} decisions, and the books of {result.turns:,} turns")
    if result.problem:
        click.echo(f"up to here only: {result.problem}")
    if result.moment is not None:
        _print_moment(result.moment)


def _print_divergence(divergence: Divergence) -> None:
    at = minute(divergence.time_ns) if divergence.time_ns else "the start"
    click.echo(
        f"first difference: {divergence.what} at {at}, slice {divergence.slice_number:,} (turn {divergence.turn:,})"
    )
    for word, lines in (("recorded", divergence.recorded), ("replayed", divergence.replayed)):
        for number, line in enumerate(lines):
            click.echo(f"  {word if not number else '':9} {line}")


def _print_moment(moment: Moment) -> None:
    from rich.console import Console
    from rich.table import Table

    from dry_work.engine.replay_flight import describe_books

    at = f"at {minute(moment.time_ns)} UTC" if moment.time_ns else "before the first slice"
    click.echo(f"{at}, account value {moment.value:,.2f}")
    for line in describe_books(moment.books):
        click.echo(f"  {line}")
    table = Table(title="Indicators", title_justify="left", show_header=False)
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, value in moment.indicators:
        table.add_row(name, "none yet" if value is None else f"{value:,.6g}")
    console = Console(highlight=False)
    if moment.indicators:
        console.print(table, markup=False)
    for bar in moment.bars:
        click.echo(
            f"  input bar {bar.symbol} {minute(bar.ts_event_ns)}: open {bar.open:g}, high {bar.high:g}, "
            f"low {bar.low:g}, close {bar.close:g}, volume {bar.volume:g}"
        )
    for line in moment.inputs:
        click.echo(f"  input {line}")
    for line in moment.decisions:
        click.echo(f"  decided {line}")


def _print_answer(answer: WhatIfResult) -> None:
    click.echo(f"session {answer.session}: what {answer.agent} would have done, {answer.slices:,} slices")
    if answer.divergence is None:
        click.echo(f"the same {answer.decisions:,} decisions: all fills are the record's")
    else:
        click.echo(f"the same {answer.decisions:,} decisions, then another one")
        _print_divergence(answer.divergence)
        click.echo(
            f"fills: the first {answer.fills_from_record:,} are the record's; from slice "
            f"{answer.divergence.slice_number:,} on orders are matched with the bars behind them, rule set backtrader"
        )
        click.echo(f"handover: {answer.handover}")
    for fill in answer.fills[-_SHOWN_FILLS:]:
        at = str(fill["time"])[:16].replace("T", " ")
        click.echo(f"  {at} {fill['side']} {fill['qty']:g} {fill['symbol']} at {fill['price']:,.10g}")
    recorded = "not known" if answer.recorded_end_value is None else f"{answer.recorded_end_value:,.2f}"
    click.echo(
        f"{len(answer.orders):,} orders, {len(answer.fills):,} fills; value {answer.start_value:,.2f} → "
        f"{answer.end_value:,.2f}; the session ended with {recorded}"
    )
    if answer.problem:
        click.echo(f"up to here only: {answer.problem}")


def result_to_json(result: ReplayResult) -> dict[str, Any]:
    """Return a replay as JSON values; times are nanoseconds."""
    import msgspec

    content: dict[str, Any] = msgspec.to_builtins(result, enc_hook=str)
    content["same"] = result.is_same
    return content


def answer_to_json(answer: WhatIfResult) -> dict[str, Any]:
    """Return an answer as JSON values; times are nanoseconds."""
    import msgspec

    content: dict[str, Any] = msgspec.to_builtins(answer, enc_hook=str)
    content["rules"] = "backtrader"
    return content


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keep the code of a session from logging again what it has logged then."""
    import structlog

    before = structlog.get_config()
    structlog.configure(**{**before, "wrapper_class": structlog.make_filtering_bound_logger(_CRITICAL)})
    try:
        yield
    finally:
        structlog.configure(**before)


def minute(time_ns: int) -> str:
    """Return a time for people."""
    from dry_work.wire.pubsub import encode_time

    return encode_time(time_ns)[:16].replace("T", " ")
