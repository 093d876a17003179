"""`dry-work restart`: start a deployed agent anew."""

from __future__ import annotations

from pathlib import Path

import click

from dry_work.cli.deploy_target import choose_target, target_options


@click.command("restart")
@click.argument("agent")
@target_options
def command(agent: str, *, target: str | None, url: str | None, token_file: Path | None, folder: Path | None) -> int:
    """Start a deployed agent anew as it was built; one that was stopped comes back.

    \b
    Example:
      dry-work restart my-agent
    """
    from dry_work.cli.deploy_watch import watch, watch_rollout

    client = choose_target(target, url, token_file, folder).open(start=False)
    answer = client.call("restartTradingAgent", agentId=agent)
    click.echo(f"restart   {agent}, build {answer['buildId']}")
    if answer["status"] == "deploying":
        return watch(client, agent)[1]
    return watch_rollout(client, agent)
