"""`dry-work backtest`: a strategy on recorded feeds."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import click

from dry_work.cli.options import Choices, build_shared, check_frames, complete_files, feed_options, strategy_options
from dry_work.cli.views import check_views, print_json, view_options, write_views
from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from dry_work.backtest.run import BacktestSettings
    from dry_work.engine.agents import Agent
    from dry_work.feeds.recorded import Recording

_Command = TypeVar("_Command", bound=Callable[..., Any])


def backtest_options(command: _Command) -> _Command:
    """Add what every command that runs backtests takes, but for the strategy's own options."""
    options = (
        click.option(
            "--data",
            multiple=True,
            shell_complete=complete_files,
            metavar="PATH",
            help="Recorded bars: a file, a folder, a glob or gs://... May be repeated. Default: a synthetic day.",
        ),
        click.option("--source", metavar="KIND", help="What bars are made of: bars, trades, quotes or auto (default)."),
        click.option("--recorded", metavar="FRAME", help="Length of the recorded bars. Default: the catalog's, or 1m."),
        click.option("--start", metavar="TIME", help="Trade from this date or ISO time on (UTC)."),
        click.option("--end", metavar="TIME", help="Trade up to this date, whole, or ISO time (UTC)."),
        click.option("--cash", metavar="AMOUNT", help="Cash at the start. Default: 100000."),
        feed_options,
        click.option(
            "--warmup",
            type=click.IntRange(0, 1_000_000),
            metavar="N",
            help="Bars of each symbol before the strategy is called. Default: 0.",
        ),
        click.option("--commission", metavar="RATE", help="0.1% of the value, or 0.005/share. Default: none."),
        click.option("--slippage", metavar="RATE", help="0.05% of the price, or 0.01 dollars. Default: none."),
        click.option("--max-volume", metavar="PART", help="An order takes at most so much of a bar's volume: 10%."),
        click.option("--fees", metavar="NAME", help="alpaca: what Alpaca passes on. Default: none."),
        click.option(
            "--guard/--no-guard",
            default=None,
            help="Match limits and stops only with bars after they were made (on), or as BackBroker does (off).",
        ),
        click.option("--engine", metavar="NAME", help="lean (default), or stock: Backtrader's own."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("backtest")
@strategy_options
@backtest_options
@click.option("--verify", is_flag=True, help="Run on both engines and compare every record.")
@view_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.pass_context
def command(
    context: click.Context, /, *, verify: bool, report: str | None, plot: str | None, as_json: bool, **options: Any
) -> None:
    """Run a Backtrader strategy on recorded bars, with the fills of a run on the local stack.

    The engine `lean` gives the results of Backtrader's own to the last digit, faster; --verify proves it on your
    strategy.

    \b
    Examples:
      dry-work backtest --data recordings/
      dry-work backtest --data recordings/ --agent my.py:Cross -p fast=10 --report report.html
      dry-work backtest --data recordings/ --verify --commission 0.1%
    """
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED
    from dry_work.errors import StrategyError
    from dry_work.observability.logging import set_up_logging
    from dry_work.settings import read_environment, read_toml

    folder = Path.cwd()
    set_up_logging(read_environment(folder).get("LOG_LEVEL"))
    toml = folder / "dry-work.toml"
    settings = build_backtest_settings(options, read_toml(toml, "backtest"), read_toml(toml))
    check_views(report, plot)

    from dry_work.backtest.run import describe_data, load_recording
    from dry_work.engine.agents import load_agent

    agent = load_agent(settings.agent, settings.params)
    recording = load_recording(settings)
    click.echo(f"data: {describe_data(settings, recording)}")
    try:
        code = _verify(settings, recording, agent) if verify else EXIT_DONE
        if code == EXIT_DONE:
            code = _run(settings, recording, agent, report=report, plot=plot, as_json=as_json)
    except StrategyError as error:
        traceback.print_exception(error.__cause__ or error)
        click.echo(f"dry-work: {error}", err=True)
        code = EXIT_FAILED
    context.exit(code)


def build_backtest_settings(options: Mapping[str, Any], *tables: Mapping[str, Any]) -> BacktestSettings:
    """Return the settings of a backtest from options and the tables of `dry-work.toml`, the one that wins first.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    from dry_work import settings as s
    from dry_work.backtest import costs
    from dry_work.backtest.run import ENGINES, BacktestSettings
    from dry_work.feeds.recorded_market import MarketSource

    choices = Choices(options, *tables)
    engine = str(choices.get("engine", ENGINES[0]))
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine!r}: expected {' or '.join(ENGINES)}")
    charged: dict[str, Any] = {}
    for name, parse in (
        ("commission", costs.parse_commission),
        ("slippage", costs.parse_slippage),
        ("max_volume", costs.parse_volume_share),
        ("fees", costs.parse_fees),
    ):
        given = choices.get(name)
        if given is not None:
            charged.update(parse(str(given)))
    source = str(choices.get("source", "auto"))
    if source not in get_args(MarketSource):
        raise ConfigError(f"--source {source!r}: expected {', '.join(get_args(MarketSource))}")
    frames = {name: choices.get(name) for name in ("timeframe", "recorded")}
    timeframe, recorded = (
        None if given is None else s.parse_timeframe(str(given), option=f"--{name}") for name, given in frames.items()
    )
    shared = build_shared(choices)
    if timeframe is not None:
        check_frames(timeframe, shared["resample"])
    start, end = (choices.get(name) for name in ("start", "end"))
    start_ns = None if start is None else s.parse_moment(str(start), name="--start")
    end_ns = None if end is None else s.parse_moment(str(end), name="--end", whole_day=True)
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise ConfigError(f"--start {start} is not before --end {end}")
    return BacktestSettings(
        data=choices.texts("data"),
        source=cast("MarketSource", source),
        recorded=recorded,
        cash=s.parse_cash(str(choices.get("cash", "100000"))),
        timeframe=timeframe,
        warmup=int(choices.get("warmup", 0)),
        engine=engine,
        guard=bool(choices.get("guard", True)),
        costs=costs.Costs(**charged),
        start_ns=start_ns,
        end_ns=end_ns,
        **shared,
    )


def _run(
    settings: BacktestSettings,
    recording: Recording,
    agent: Agent,
    *,
    report: str | None,
    plot: str | None,
    as_json: bool,
) -> int:
    from rich.console import Console

    from dry_work.backtest.run import run_backtest
    from dry_work.cli.signals import EXIT_DONE, stop_signals
    from dry_work.engine.result import build_tables

    codes: list[int] = []
    running: list[Any] = []

    def stop(code: int) -> None:
        codes.append(code)
        if len(codes) > 1 or not running:
            raise KeyboardInterrupt  # the strategy does not return, or nothing runs yet
        running[0].runstop()

    with stop_signals(stop):
        result = run_backtest(settings, recording, agent, watch=running.append)
    if codes:
        click.echo("stopped: the figures are those up to then")
    console = Console(soft_wrap=False, highlight=False)
    for part in build_tables(result):
        console.print(part)
    write_views(result, recording, report=report, plot=plot)
    if as_json:
        print_json(result, recording)
    return codes[0] if codes else EXIT_DONE


def _verify(settings: BacktestSettings, recording: Recording, agent: Agent) -> int:
    from dry_work.backtest.run import verify_backtest
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED

    found = verify_backtest(settings, recording, agent)
    for line in str(found).splitlines():
        click.echo(f"verify: {line}")
    return EXIT_DONE if found.difference is None else EXIT_FAILED
