"""`dry-work flatten`: cancel all orders and close all positions of an agent's account."""

from __future__ import annotations

import click

from dry_work.cli.halt import agent_options, build_operator


@click.command("flatten")
@agent_options
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1.0, 3600.0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the last fill.",
)
def command(agent: str | None, state_dir: str | None, reason: str, timeout_s: float) -> int:
    """Cancel all open orders and close all positions at market, then halt the agent; also when its strategy hangs.

    It is the whole account that is flattened, whoever made the orders and positions in it. The agent's own process does
    it; when that does not answer or does not run, this one does, with the credentials in the environment. It may be
    repeated and run twice at once: no position is closed twice. Without AGENT it is the one that is running.

    \b
    Examples:
      dry-work flatten
      dry-work flatten my-agent --reason "end of the experiment"

    Exit codes: 0 nothing is left, 1 something is left (it is printed), 2 no such agent, or another account's
    credentials.
    """
    return 0 if build_operator(agent, state_dir).flatten(reason, timeout_s=timeout_s) else 1
