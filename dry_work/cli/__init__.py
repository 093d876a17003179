"""The command line: one thin module per command, loaded when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from dry_work import __version__
from dry_work.errors import ConfigError, DryWorkError, VenueAuthError

# name: (module, one line for the list of commands)
COMMANDS = {
    "run": ("dry_work.cli.run", "Trade with a Backtrader strategy, on Alpaca paper or on the local stack."),
    "backtest": ("dry_work.cli.backtest", "Run a strategy on recorded bars."),
    "optimize": ("dry_work.cli.optimize", "Try many parameter sets, and judge the best on later data."),
    "deploy": ("dry_work.cli.deploy", "Deploy an agent: to this machine, or to Kubernetes by the deploy service."),
    "logs": ("dry_work.cli.logs", "Print what a deployed agent wrote."),
    "stop": ("dry_work.cli.stop", "Stop a deployed agent, or the local deploy service."),
    "restart": ("dry_work.cli.restart", "Start a deployed agent anew."),
    "rollback": ("dry_work.cli.rollback", "Deploy what an agent was before."),
    "setup": ("dry_work.cli.setup", "Print or make what a Google Cloud project needs once."),
    "halt": ("dry_work.cli.halt", "Stop an agent's orders, also when it hangs; or let it trade again."),
    "flatten": ("dry_work.cli.flatten", "Cancel all orders and close all positions, also of an agent that hangs."),
    "status": ("dry_work.cli.status", "Show agents: health, orders and positions, beside the venue's."),
    "new": ("dry_work.cli.new", "Make a folder with a strategy, its settings and a test."),
    "check": ("dry_work.cli.check", "Tell what a run would miss, and what fixes it."),
    "download": ("dry_work.cli.download", "Download history from Alpaca: stocks, crypto, options."),
    "record": ("dry_work.cli.record", "Record market data from Pub/Sub into a log and a catalog."),
    "replay": ("dry_work.cli.replay", "Run a recorded session again: the same decisions, or the first difference."),
    "diff": ("dry_work.cli.diff", "Compare sessions, or one with a backtest of its recording, by cause."),
    "sessions": ("dry_work.cli.sessions", "List recorded sessions; export one as a file."),
    "dashboard": ("dry_work.cli.dashboard", "Show an agent, or a recorded session, in a browser."),
    "data": ("dry_work.cli.data", "List recordings: what is there, gaps, damage."),
    "publish": ("dry_work.cli.publish", "Publish recorded bars to Pub/Sub."),
    "exchange": ("dry_work.cli.exchange", "Serve the simulated exchange, for any Alpaca program."),
    "hub": ("dry_work.cli.hub", "Share Alpaca's connections over Pub/Sub, WebSocket, gRPC, NATS and Redis."),
    "pubsub": ("dry_work.cli.pubsub", "Serve an embedded Pub/Sub for Google's own clients."),
    "health": ("dry_work.cli.health", "Tell whether an agent's heartbeat is fresh; the check of a container."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are named, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dry-work")
def cli() -> None:
    """Run an unchanged Backtrader strategy: on a local stack, on Alpaca paper trading, on GKE.

    \b
    Examples:
      dry-work new my-agent
      dry-work run --symbols symbols.txt --local --speed max
      dry-work check

    \b
    Completion for bash, zsh or fish, in the shell's start-up file:
      eval "$(_DRY_WORK_COMPLETE=bash_source dry-work)"
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 usage, 3 risk limit, 130 after SIGINT."""
    try:
        code = cli.main(args=args, prog_name="dry-work", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (ConfigError, VenueAuthError) as error:
        click.echo(f"dry-work: {error}", err=True)
        code = 2
    except DryWorkError as error:
        click.echo(f"dry-work: {error}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
