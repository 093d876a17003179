"""`dry-work check`: tells what a run would miss, and what fixes it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import click

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
_INDENT = " " * 10


@click.command("check")
@click.option("--symbols", type=click.Path(), metavar="FILE", help="Symbols to look up. Default: as `dry-work run`.")
@click.option("--live", is_flag=True, help="Look at the account with real money, not at the one on paper.")
@click.option("--state-dir", type=click.Path(), metavar="DIR", help="State directory. Default: as `dry-work run`.")
@click.option("--feed", metavar="WAY", help="Way of market data: pubsub, nats, redis, ws or grpc. Default: as `run`.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 120.0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait for each request.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(
    *, symbols: str | None, live: bool, state_dir: str | None, feed: str | None, timeout_s: float, as_json: bool
) -> int:
    """Look at everything that `dry-work run` needs in this folder: account, permissions, symbols, market data, the way
    that it comes, clock, calendar, disk, versions.

    Nothing is traded; a subscription is made and ended at once, as a run would need it. Each line is ok, a warning or
    failed, with what fixes it. The exit code is 0 when nothing has failed and 1 otherwise.

    \b
    Examples:
      dry-work check
      dry-work check --symbols symbols.txt --json
      dry-work check --feed nats
    """
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED
    from dry_work.clock import SystemClock
    from dry_work.engine.diagnosis import diagnose
    from dry_work.engine.findings import Finding, Outcome
    from dry_work.observability.logging import set_up_logging

    set_up_logging("error")  # the findings say it
    findings: list[Finding] = []
    for finding in diagnose(
        Path.cwd(), clock=SystemClock(), symbols=symbols, live=live, state_dir=state_dir, feed=feed, timeout_s=timeout_s
    ):
        findings.append(finding)
        show(finding.outcome.value, finding.part, finding.text, finding.remedy)
    counts = {outcome: sum(finding.outcome is outcome for finding in findings) for outcome in Outcome}
    click.echo(", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count))
    if as_json:
        found = [finding.to_json() for finding in findings]
        click.echo(json.dumps({"ok": not counts[Outcome.FAILED], "findings": found}))
    return EXIT_FAILED if counts[Outcome.FAILED] else EXIT_DONE


def show(outcome: str, part: str, text: str, remedy: str) -> None:
    """Print a finding, and below it what fixes it."""
    click.echo(f"{click.style(f'{outcome:<8}', fg=_COLOURS[outcome])}  {click.style(part, bold=True)}: {text}")
    if remedy:
        click.echo(textwrap.indent(f"fix: {remedy}", _INDENT))
