"""`dry-work halt`: stop an agent's orders from outside, or let it trade again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add AGENT, --state-dir and --reason."""
    options = (
        click.argument("agent", required=False),
        click.option(
            "--state-dir", type=click.Path(), metavar="DIR", help="The agent's state directory. Default: ./.dry-work."
        ),
        click.option("--reason", default="by hand", metavar="TEXT", help="Why, for the journal and the agent's log."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("halt")
@agent_options
@click.option("--release", is_flag=True, help="Let the agent trade again; losses count from now.")
def command(agent: str | None, state_dir: str | None, reason: str, release: bool) -> int:
    """Stop the orders of an agent that runs on this machine, also when its strategy hangs.

    From then on no order leaves. Open orders that may open or enlarge a position are canceled; those that protect one
    stay ([risk] open_orders says otherwise). It lasts, over restarts too, until --release or `dry-work run
    --resume-trading`. Without AGENT it is the one that is running.

    \b
    Examples:
      dry-work halt
      dry-work halt my-agent --reason "news"
      dry-work halt my-agent --release

    Exit codes: 0 done, 1 halted but open orders could not be dealt with, 2 no such agent.
    """
    operator = build_operator(agent, state_dir)
    done = operator.release(reason) if release else operator.halt(reason)
    return 0 if done else 1


def build_operator(agent: str | None, state_dir: str | None, tell: Callable[[str], None] = click.echo) -> Any:
    """Return the operator of an agent.

    Args:
        tell: takes lines for people.

    Raises:
        ConfigError: there is no such agent, or several.
    """
    from dry_work import settings as s
    from dry_work.broker.operator import Operator
    from dry_work.orders.risk_limits import RiskLimits

    folder = Path.cwd()
    environment = s.read_environment(folder)

    def choose_credentials(mode: str) -> s.Credentials:
        if mode == "local":
            from dry_work.embedded.stack import CREDENTIALS

            return CREDENTIALS
        return s.read_credentials(environment)

    limits = s.parse_risk(s.read_toml(folder / "dry-work.toml", "risk"), local=True) or RiskLimits()
    return Operator(
        find_place(agent, state_dir),
        tell=tell,
        credentials=choose_credentials,
        limits=limits,
        account_id=s.parse_account_id(s.read_variable(environment, "ALPACA_ACCOUNT_ID")),
    )


def find_place(agent: str | None, state_dir: str | None) -> Any:
    """Return where an agent keeps its state.

    Raises:
        ConfigError: there is no such agent, or several.
    """
    from dry_work import settings as s
    from dry_work.broker.operator import find_agent

    folder = Path.cwd()
    environment = s.read_environment(folder)
    toml = s.read_toml(folder / "dry-work.toml")
    named = agent or s.read_variable(environment, "AGENT_ID") or str(toml.get("agent_id", "")) or None
    given = state_dir or toml.get("state_dir")
    roots = [Path(given)] if given else [s.DEFAULT_STATE_DIR]
    if not given and s.POD_STATE_DIR.is_dir():
        roots.append(s.POD_STATE_DIR)
    return find_agent(named, roots)
