"""`dry-work stop`: stop a deployed agent, or the local deploy service with all that it runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dry_work.cli.deploy_target import choose_target, target_options, translated
from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from dry_work.cli.deploy_target import Target


@click.command("stop")
@click.argument("agent", required=False)
@target_options
@click.option("--delete-state", is_flag=True, help="Remove the agent's volume too: its orders journal and recordings.")
@click.option("--service", is_flag=True, help="Stop the local service, its agents and its exchange.")
def command(
    agent: str | None,
    *,
    target: str | None,
    url: str | None,
    token_file: Path | None,
    folder: Path | None,
    delete_state: bool,
    service: bool,
) -> int:
    """Stop a deployed agent in order: open requests end, its journal is kept, its positions stay as they are.

    With --service everything of the local target ends; agents that were not stopped come back with the next `dry-work
    deploy`. With --delete-state as well, all agents are stopped and their state and the exchange's accounts go.

    \b
    Examples:
      dry-work stop my-agent
      dry-work stop my-agent --delete-state
      dry-work stop --service
    """
    if (agent is None) != service:
        raise ConfigError("name an agent, or give --service to stop the local deploy service")
    chosen = choose_target(target, url, token_file, folder)
    if service:
        if not chosen.is_local:
            raise ConfigError("--service is of the local target: leave out --url")
        return _stop_service(chosen, delete_state=delete_state)
    from dry_work.cli.deploy_wait import wait_until_gone

    client = chosen.open(start=False)
    answer = client.call("stopTradingAgent", agentId=agent, deleteState=delete_state)
    assert agent is not None
    wait_until_gone(chosen, answer)
    click.echo(f"stopped   {agent}" + (", its state is removed" if delete_state else ""))
    return 0


def _stop_service(target: Target, *, delete_state: bool) -> int:
    from deploy.local_service import stop_target

    folder = target.folder
    if delete_state and folder.documents.exists():
        client = target.open(start=False)
        for found in client.call("listTradingAgents")["agents"]:
            if found["status"]:
                client.call("stopTradingAgent", agentId=found["agentId"], deleteState=True)
    with translated():
        was_running = stop_target(folder)
    if delete_state:
        shutil.rmtree(folder.exchange, ignore_errors=True)
        shutil.rmtree(folder.agents, ignore_errors=True)
    said = "stopped   the local deploy service, its agents and its exchange"
    click.echo(said if was_running else "the local deploy service does not run")
    return 0
