"""`dry-work pubsub`: the embedded Pub/Sub server as a process of its own."""

from __future__ import annotations

import click
from click.core import ParameterSource

from dry_work.addresses import is_loopback_host
from dry_work.errors import ConfigError


@click.command("pubsub")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8085, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--project", envvar="GOOGLE_CLOUD_PROJECT", show_envvar=True, help="Project of the topics to create.")
@click.option("--topic", "topics", multiple=True, metavar="NAME", help="Create this topic at the start; repeatable.")
@click.option(
    "--max-backlog-mb",
    type=click.IntRange(min=10),
    default=256,
    show_default=True,
    help="Megabytes that wait for delivery, per subscription; beyond it the oldest messages are dropped.",
)
@click.pass_context
def command(
    context: click.Context, *, host: str, port: int, project: str | None, topics: tuple[str, ...], max_backlog_mb: int
) -> None:
    """Run a Pub/Sub server that Google's own clients talk to, without an account.

    Everything is in memory and ends with the process.

    \b
    Example:
        dry-work pubsub --project local --topic market-data --topic crypto-data
    """
    from dry_work.cli.signals import StopWaiter
    from dry_work.embedded.pubsub import EmbeddedPubSub

    if topics and not project:
        raise ConfigError("--topic needs the project to create it in: give --project or set GOOGLE_CLOUD_PROJECT")
    if not is_loopback_host(host):
        if context.get_parameter_source("host") is not ParameterSource.COMMANDLINE:
            raise ConfigError(
                f"host {host} is not of this machine's loopback; since there is no authentication, "
                "such a host must be given with --host on the command line"
            )
        click.echo(f"Warning: there is no authentication; whoever reaches {host} can read and publish.", err=True)
    with StopWaiter() as waiter:
        server = EmbeddedPubSub(
            host=host,
            port=port,
            topics=[f"projects/{project}/topics/{topic}" for topic in dict.fromkeys(topics)],
            max_backlog_bytes=max_backlog_mb * 1_000_000,
            on_failure=waiter.fail,
        )
        server.start()
        try:
            for topic in dict.fromkeys(topics):
                click.echo(f"Topic projects/{project}/topics/{topic} is there.")
            click.echo(f"Pub/Sub is listening on {server.target}; stop with Ctrl-C. Clients find it with")
            click.echo(f"export PUBSUB_EMULATOR_HOST={server.target}")
            code = waiter.wait_for_code()
        finally:
            server.stop()
    for error in waiter.errors:
        click.echo(f"Pub/Sub failed: {error!r}", err=True)
    context.exit(code)
