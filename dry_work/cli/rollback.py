"""`dry-work rollback`: deploy what an agent was before."""

from __future__ import annotations

from pathlib import Path

import click

from dry_work.cli.deploy_target import choose_target, target_options


@click.command("rollback")
@click.argument("agent")
@target_options
def command(agent: str, *, target: str | None, url: str | None, token_file: Path | None, folder: Path | None) -> int:
    """Deploy the source that was deployed before; after a failed deployment, the last one that was deployed.

    \b
    Example:
      dry-work rollback my-agent
    """
    from dry_work.cli.deploy_watch import watch

    client = choose_target(target, url, token_file, folder).open(start=False)
    answer = client.call("rollbackTradingAgent", agentId=agent)
    status = client.call("getTradingAgentStatus", agentId=agent)
    click.echo(f"rollback  {agent} to the source {status['sourceDigest'][:12]}")
    click.echo(f"build     {answer['buildId']}")
    return watch(client, agent, build_id=answer["buildId"])[1]
