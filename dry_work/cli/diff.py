"""`dry-work diff`: what is different between two sessions, and why."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dry_work.engine.compare import Comparison


@click.command("diff")
@click.argument("a", metavar="A", type=click.Path())
@click.argument("b", metavar="[B]", type=click.Path(), required=False)
@click.option("--backtest", is_flag=True, help="Compare A with a backtest of its own recording.")
@click.option(
    "--recorded-source", is_flag=True, help="Test the source in the record, not the strategy's file as it is."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(a: str, b: str | None, backtest: bool, recorded_source: bool, as_json: bool) -> int:
    """Compare two sessions, or a session with a backtest of its recording, and explain each difference.

    A and B are folders of sessions or exported files. The backtest has the bars as they were received last: with their
    corrections, and none of them late. Causes are: late bar, revised bar, missing bar, latency, partial, rejection,
    price, fee, size; `follows` from a difference before it; `decision` when the bars were the same.

    \b
    Examples:
      dry-work diff monday.dwsession tuesday.dwsession
      dry-work diff .dry-work/recordings/20240611T133000Z-1f2e3d4c --backtest

    Exit codes: 0 no difference, 1 there are some, 2 they cannot be compared.
    """
    from dry_work.cli.replay import quiet_log
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED
    from dry_work.engine.compare import backtest_session, compare_sessions
    from dry_work.engine.replay import recorded_agent
    from dry_work.errors import ConfigError
    from dry_work.recording.flight_log import open_flight
    from dry_work.recording.session_trace import trace_session

    if backtest == (b is not None):
        raise ConfigError("diff: expected two sessions, or one and --backtest")
    with ExitStack() as stack:
        stack.enter_context(quiet_log())
        reader = stack.enter_context(open_flight(Path(a)))
        first = trace_session(reader)
        if b is not None:
            second = trace_session(stack.enter_context(open_flight(Path(b))))
        else:
            agent, notes = stack.enter_context(recorded_agent(reader.facts, recorded_source=recorded_source))
            for note in notes:
                click.echo(f"note: {note}")
            second = backtest_session(first, agent)
    comparison = compare_sessions(first, second)
    _print(comparison)
    if as_json:
        click.echo(json.dumps(to_json(comparison), allow_nan=False))
    return EXIT_FAILED if comparison.differences else EXIT_DONE


def _print(comparison: Comparison) -> None:
    from dry_work.cli.replay import minute

    for word, name, orders, value in zip(
        ("A", "B"), (comparison.a, comparison.b), comparison.orders, comparison.values, strict=True
    ):
        click.echo(f"{word}: {name}, {orders:,} orders, value {'not known' if value is None else f'{value:,.2f}'}")
    for note in comparison.notes:
        click.echo(f"note: {note}")
    for each in comparison.differences:
        click.echo(f"{minute(each.time_ns)} {each.symbol}: {each.cause}: {each.why}")
        click.echo(f"  A {each.a}")
        click.echo(f"  B {each.b}")
    counts = ", ".join(f"{count} {cause}" for cause, count in comparison.count_causes().items())
    click.echo(
        f"{comparison.same_orders:,} orders are the same; " + (f"differences: {counts}" if counts else "no difference")
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values; times are nanoseconds."""
    import msgspec

    content: dict[str, Any] = msgspec.to_builtins(comparison)
    content["causes"] = comparison.count_causes()
    return content
