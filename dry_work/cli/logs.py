"""`dry-work logs`: what a deployed agent wrote."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import click

from dry_work.cli.deploy_target import choose_target, target_options
from dry_work.errors import ConfigError

_AGO = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@click.command("logs")
@click.argument("agent")
@target_options
@click.option("--since", metavar="TIME", help="Only lines after: 10m, 2h, 1d, or 2026-01-02T15:04:05Z.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=200, show_default=True, help="Only the last N lines.")
@click.option("--build", "of_build", is_flag=True, help="Lines of the newest build, unless that went well.")
@click.option("--follow", "-f", is_flag=True, help="Print what comes, until Ctrl-C.")
def command(
    agent: str,
    *,
    target: str | None,
    url: str | None,
    token_file: Path | None,
    folder: Path | None,
    since: str | None,
    limit: int,
    of_build: bool,
    follow: bool,
) -> int:
    """Print what a deployed agent wrote, oldest first; before it has ever run, what its build wrote.

    \b
    Examples:
      dry-work logs my-agent --since 10m
      dry-work logs my-agent --follow
      dry-work logs my-agent --url https://us-central1-my-project.cloudfunctions.net
    """
    from dry_work.cli.deploy_watch import follow_logs, print_lines

    after = None if since is None else parse_since(since, now=dt.datetime.now(dt.UTC))
    client = choose_target(target, url, token_file, folder).open(start=False)
    answer = client.call("getTradingAgentLogs", agentId=agent, since=after, limit=limit)
    if of_build or not answer["lines"]:
        for line in answer["buildLines"]:
            click.echo(line)
    if of_build:
        return 0
    last = print_lines(answer["lines"], after)
    if not answer["lines"] and not answer["buildLines"]:
        click.echo(f"{agent} has written nothing{' since then' if after else ''}", err=True)
    if follow:
        follow_logs(client, agent, since=last)
    return 0


def parse_since(text: str, *, now: dt.datetime) -> str:
    """Return the time that `text` means, as the service takes it.

    Raises:
        ConfigError: it is neither a time nor a length.
    """
    match = _AGO.fullmatch(text)
    if match:
        found = now - dt.timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    else:
        try:
            found = dt.datetime.fromisoformat(text)
        except ValueError:
            allowed = "a length such as 10m or a time such as 2026-01-02T15:04:05Z"
            raise ConfigError(f"--since {text!r}: expected {allowed}") from None
        found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
    return found.isoformat().replace("+00:00", "Z")
