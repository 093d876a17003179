"""`dry-work deploy`: from sources to an agent that runs, on this machine or by the deploy service on Kubernetes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.cli.deploy_target import choose_target, target_options, translated
from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from dry_work.cli.deploy_source import Source
    from dry_work.cli.deploy_target import Target


@click.command("deploy")
@click.argument("path", default=".", metavar="[PATH]")
@click.option("--agent-id", metavar="ID", help="The agent. Default: agent_id of its dry-work.toml, then its name.")
@target_options
@click.option("--symbols", type=click.Path(path_type=Path), metavar="FILE", help="Of a single file: what it trades.")
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of a single file.")
@click.option("--plan", is_flag=True, help="Show what would be made and changed, and the way back; change nothing.")
@click.option("--no-wait", is_flag=True, help="Return when the build has begun.")
@click.option("--follow", is_flag=True, help="Then print what the agent writes, until Ctrl-C.")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Local target: agents get the variables of this file, Alpaca's keys among them. Default: they trade on the "
    "simulated exchange.",
)
@click.option("--data", multiple=True, metavar="PATH", help="Local exchange: recorded bars. Default: synthetic days.")
@click.option("--speed", metavar="X", help="Local exchange: data seconds a second. Default: 60.")
@click.option("--cash", metavar="AMOUNT", help="Local exchange: cash of a new account. Default: 100000.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), metavar="N", help="Local target: port of the service. Default: 8190."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(
    path: str,
    *,
    agent_id: str | None,
    target: str | None,
    url: str | None,
    token_file: Path | None,
    folder: Path | None,
    symbols: Path | None,
    params: tuple[str, ...],
    plan: bool,
    no_wait: bool,
    follow: bool,
    as_json: bool,
    **local: Any,
) -> int:
    """Deploy the agent in the folder PATH, or one strategy file, and wait until it runs or has failed.

    The sources are checked here first, without running them. The local target is the same service on this machine: it
    is started when it does not run, stays, and keeps agents as processes that trade on the simulated exchange.

    \b
    Examples:
      dry-work deploy my-agent --target local
      dry-work deploy agents/sma_cross.py -p fast_period=5
      dry-work deploy my-agent --plan
      dry-work deploy my-agent --url https://us-central1-my-project.cloudfunctions.net

    Exit codes: 0 deployed, 1 it failed, 2 usage, configuration or sources that cannot be deployed.
    """
    from dry_work.cli.deploy_source import read_source
    from dry_work.engine.agents import parse_params

    if plan and (no_wait or follow):
        raise ConfigError("--plan changes nothing: leave out --no-wait and --follow")
    if no_wait and follow:
        raise ConfigError("--follow waits: leave out --no-wait")
    # A plan for a cluster needs no service.
    chosen = choose_target(None if plan and target == "cluster" and not url else target, url, token_file, folder)
    given = {name: value for name, value in local.items() if value not in (None, ())}
    is_cluster = not chosen.is_local or target == "cluster"
    if is_cluster and given:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} goes with the local target")
    source = read_source(path, symbols=symbols, params=parse_params(params))
    with translated():
        from deploy.ids import check_agent_id

        name = check_agent_id(agent_id or source.name)
    if plan:
        from dry_work.cli.deploy_plan import plan_cluster, plan_local

        answer = plan_cluster(source, name, chosen) if is_cluster else plan_local(source, name, chosen, given)
        click.echo(answer.text, nl=False)
        if as_json:
            click.echo(json.dumps(answer.values))
        return answer.exit_code
    return _deploy(source, name, chosen, given, wait=not no_wait, follow=follow, as_json=as_json)


def _deploy(
    source: Source, name: str, target: Target, given: dict[str, Any], *, wait: bool, follow: bool, as_json: bool
) -> int:
    from dry_work.cli.deploy_client import RefusedError
    from dry_work.cli.deploy_local import prepare
    from dry_work.cli.deploy_watch import follow_logs, watch

    for note in source.summary.notes:
        click.echo(f"note      {note}")
    if target.is_local:
        click.echo(f"trades on {prepare(target, given).describe()}")
    client = target.open(port=given.get("port"))
    click.echo(f"service   {client.url}/")
    try:
        status = client.call("getTradingAgentStatus", agentId=name)
    except RefusedError as error:
        if error.kind != "PERMISSION_DENIED":
            raise
        status = client.call("createTradingAgent", agentId=name, name=name)
        click.echo(f"agent     {name}, new")
    else:
        click.echo(f"agent     {name}, {status['status'] or 'not deployed yet'}")
    digest = client.upload(name, source.archive.content)["sourceDigest"]
    click.echo(f"source    {source.describe()}")
    is_running = status.get("rollout", {}).get("phase", "missing") != "missing"
    if status["status"] == "deployed" and status.get("sourceDigest") == digest and is_running:
        click.echo(f"unchanged this source is deployed already, by the build {status['buildId']}")
        answer, code = status, 0
    else:
        answer, code = client.call("deployTradingAgent", agentId=name, sourceDigest=digest), 0
        click.echo(f"build     {answer['buildId']}")
        if wait:
            answer, code = watch(client, name, build_id=answer["buildId"])
    if as_json:
        click.echo(json.dumps(answer))
    if code == 0 and follow:
        follow_logs(client, name, since=None)
    return code
