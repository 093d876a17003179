"""`dry-work run`: trade with a strategy."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dry_work.cli.options import Choices, build_shared, check_frames, complete_files, feed_options, strategy_options
from dry_work.cli.views import check_views, print_json, view_options, write_views
from dry_work.errors import ConfigError

_DEFAULT_WARMUP = 100
_FEEDS = ("pubsub", "nats", "redis", "ws", "grpc")


@click.command("run")
@strategy_options
@click.option("--local", is_flag=True, help="Run on the embedded stack: no account, no cloud.")
@click.option("--live", is_flag=True, help="Trade with real money. Without it, Dry Work trades on paper.")
@click.option(
    "--data",
    multiple=True,
    shell_complete=complete_files,
    metavar="PATH",
    help="Recorded bars for --local: a file, a folder or a glob. May be repeated. Default: a synthetic day.",
)
@click.option("--speed", metavar="X|max", help="Data seconds a second for --local; max is lock-step. Default: max.")
@click.option("--cash", metavar="AMOUNT", help="Cash of the local account. Default: 100000.")
@feed_options
@click.option(
    "--feed",
    metavar="|".join(_FEEDS),
    help="Which way market data comes from the hub (DRY_WORK_FEED). Default: pubsub.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0, 10_000),
    metavar="N",
    help=f"Bars of history for each symbol before the start. Default: {_DEFAULT_WARMUP}, 0 with --local.",
)
@click.option(
    "--lookback",
    metavar="N|all",
    help="Bars that each line holds in memory at least; it holds more when more is read. Default: 256.",
)
@click.option(
    "--state-dir",
    type=click.Path(),
    metavar="DIR",
    help="Where orders journal, lease and heartbeat are. Default: ./.dry-work.",
)
@click.option(
    "--resume-trading",
    is_flag=True,
    help="Trade again after a limit or `dry-work halt` has stopped it; losses count from now.",
)
@click.option("--take-over", is_flag=True, help="Take a subscription that another state directory left behind.")
@view_options
@click.option(
    "--dashboard",
    is_flag=False,
    flag_value="",
    metavar="[HOST:PORT]",
    help="Show the run in a browser. Default: 127.0.0.1:8070; on anything but loopback a token is asked for.",
)
@click.option("--plain", is_flag=True, help="Print lines instead of the live view that a terminal gets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(
    as_json: bool, plain: bool, report: str | None, plot: str | None, dashboard: str | None, **options: Any
) -> int:
    """Trade with a Backtrader strategy on Alpaca paper trading, with market data from the hub, or on the local stack.

    \b
    Examples:
      dry-work run --local
      dry-work run --local --data recordings/ --agent my.py:Cross -p fast=10
      dry-work run --local --speed 60 --plain
      dry-work run --symbols symbols.txt --dashboard

    On a terminal a live view shows symbols, positions and the last orders; elsewhere progress lines are printed.
    """
    from dry_work.cli.signals import stop_signals

    # Before there is anything to stop in order, and after it, a signal ends the program with its exit code.
    with stop_signals(sys.exit):
        if dashboard is None:
            return _trade(options, as_json=as_json, plain=plain, report=report, plot=plot)
        return _trade_in_sight(dashboard, options, as_json=as_json, plain=plain, report=report, plot=plot)


def _trade_in_sight(address: str, options: Mapping[str, Any], *, as_json: bool, **shown: Any) -> int:
    """Trade with a dashboard. On a terminal it stays after a local run's end, which may come within seconds."""
    from dry_work.cli.signals import StopWaiter
    from dry_work.dashboard.live import RunDashboard
    from dry_work.dashboard.settings import parse_dashboard
    from dry_work.settings import read_environment, read_variable

    token = read_variable(read_environment(Path.cwd()), "DRY_WORK_DASHBOARD_TOKEN")
    with contextlib.closing(RunDashboard(parse_dashboard(address, token=token))) as dashboard:
        code = _trade(options, as_json=as_json, observer=dashboard, **shown)
        if code == 0 and options.get("local") and dashboard.link and not as_json and sys.stdout.isatty():
            click.echo(f"the run has ended; {dashboard.link} stays until Ctrl-C")
            with StopWaiter() as waiter:
                waiter.wait_for_code()
    return code


def _trade(
    options: Mapping[str, Any],
    *,
    as_json: bool,
    plain: bool,
    report: str | None,
    plot: str | None,
    observer: Any = None,
) -> int:
    from dry_work.observability.settings import read_watch_settings
    from dry_work.settings import read_environment, read_toml, read_variable

    folder = Path.cwd()
    toml = folder / "dry-work.toml"
    settings = build_settings(options, read_toml(toml), read_environment(folder), read_toml(toml, "risk"))
    watch = read_watch_settings(read_environment(folder), read_toml(toml, "alerts"))
    if settings.mode != "local" and (report or plot):
        raise ConfigError("--report and --plot go with --local: other runs have no recording to draw prices from")
    check_views(report, plot)

    import signal

    from rich.console import Console

    from dry_work.cli.live_view import LiveView, can_draw
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED, stop_signals
    from dry_work.engine.result import build_tables
    from dry_work.engine.runner import Runner
    from dry_work.errors import StrategyError
    from dry_work.observability.logging import set_up_logging

    set_up_logging(project=settings.project or read_variable(read_environment(folder), "GOOGLE_CLOUD_PROJECT"))
    telemetry = None
    if watch.is_on:
        from dry_work.engine.observers import join_observers
        from dry_work.engine.telemetry import RunTelemetry

        telemetry = RunTelemetry(watch, name=settings.agent_id or settings.agent or "dry-work")
        observer = join_observers(observer, telemetry)
    view: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if plain or not can_draw(sys.stdout):
        runner = Runner(settings, tell=click.echo, observer=observer)
    else:
        view = live_view = LiveView(sys.stdout)
        runner = Runner(settings, tell=live_view.tell, show=live_view.show, observer=observer)
        live_view.follow(runner.refresh)
    try:
        # The view is left last, when no signal can interrupt it any more: the terminal is to be as it was.
        with view, stop_signals(runner.request_stop):
            if telemetry is not None:
                telemetry.describe_end = lambda: runner.stopped_by_limit
            try:
                with telemetry or contextlib.nullcontext():
                    result = runner.run()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except StrategyError as error:
        traceback.print_exception(error.__cause__ or error)
        click.echo(f"dry-work: {error}", err=True)
        return EXIT_FAILED
    if runner.stopped_by_limit:
        click.echo(f"stopped: {runner.stopped_by_limit}")
    elif runner.stop_code is not None:
        click.echo("stopped" + ("" if runner.stop_code == EXIT_DONE else " by Ctrl-C"))
    console = Console(soft_wrap=False, highlight=False)
    for part in build_tables(result):
        console.print(part)
    if runner.recording is not None:
        write_views(result, runner.recording, report=report, plot=plot)
    if as_json:
        print_json(result, runner.recording)
    return EXIT_DONE if runner.stop_code is None else runner.stop_code


def build_settings(
    options: Mapping[str, Any],
    toml: Mapping[str, Any],
    environment: Mapping[str, str],
    risk: Mapping[str, Any] | None = None,
) -> Any:
    """Return the settings of a run. An option wins over the environment, the environment over `dry-work.toml`.

    Args:
        options: of the command line, by name.
        toml: the table `[run]`.
        environment: variables by name.
        risk: the table `[risk]`.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    from dry_work import settings as s

    choices = Choices(options, toml)
    local, live = bool(options.get("local")), bool(options.get("live"))
    if local and live:
        raise ConfigError("--local and --live exclude each other: local runs trade with no account")
    data, speed = choices.texts("data"), options.get("speed")
    if not local and (data or speed is not None or options.get("cash") is not None):
        if options.get("data") or speed is not None or options.get("cash") is not None:
            raise ConfigError("--data, --speed and --cash go with --local; without it prices and cash come from Alpaca")
        data = ()
    warmup = choices.get("warmup", 0 if local else _DEFAULT_WARMUP)
    if local and warmup:
        raise ConfigError("--warmup has no history to draw from with --local: leave it out, or start the data earlier")
    agent_id = s.read_variable(environment, "AGENT_ID") or str(toml.get("agent_id", ""))
    state_dir, given = s.choose_state_dir(choices.get("state_dir"), agent_id=agent_id)
    timeframe = s.parse_timeframe(str(choices.get("timeframe", "1m")))

    def choice(name: str, variable: str, words: tuple[str, str], *, default: str = "") -> bool:
        given = s.read_variable(environment, variable) or str(toml.get(name, default or words[0]))
        return s.parse_choice(given, words, name=name, variable=variable)

    lookback = choices.get("lookback")
    shared: dict[str, Any] = {
        **build_shared(choices),
        "lookback": None if lookback is None else s.parse_lookback(lookback),
        "timeframe": timeframe,
        "warmup": int(warmup),
        "state_dir": state_dir,
        "state_dir_given": given,
        "agent_id": s.parse_agent_id(agent_id) if agent_id else "",
        "take_over": bool(options.get("take_over")),
        "resume_trading": bool(options.get("resume_trading")),
        "risk": s.parse_risk(risk or {}, local=local),
        "journal_days": s.parse_journal_days(
            s.read_variable(environment, "DRY_WORK_JOURNAL_DAYS")
            or str(toml.get("journal_days", s.DEFAULT_JOURNAL_DAYS))
        ),
        "stale_s": s.parse_stale(
            s.read_variable(environment, "DRY_WORK_STALE_S") or str(toml.get("stale_s", s.DEFAULT_STALE_S))
        ),
        "stops_when_stale": choice("stale_action", "DRY_WORK_STALE_ACTION", ("tell", "stop")),
        "drops_late": choice("late", "DRY_WORK_LATE", ("next", "drop")),
        "tells_revised": choice("revised", "DRY_WORK_REVISED", ("record", "tell")),
        "wants_statuses": choice("statuses", "DRY_WORK_STATUSES", ("off", "on"), default="on"),
    }
    check_frames(timeframe, shared["resample"])
    if timeframe.length_ns % 60_000_000_000:
        raise ConfigError(f"--timeframe {timeframe.text}: expected whole minutes, since the data are minute bars")
    feed = s.parse_feed(
        str(options.get("feed") or s.read_variable(environment, "DRY_WORK_FEED") or toml.get("feed") or "pubsub")
    )
    if local:
        return s.RunSettings(
            mode="local",
            feed=s.FeedSettings(name=feed),
            data=data,
            speed=s.parse_speed(str(choices.get("speed", "max"))),
            cash=s.parse_cash(str(choices.get("cash", "100000"))),
            **shared,
        )
    return _add_venue(shared, environment, live=live, feed=feed)


def _add_venue(shared: dict[str, Any], environment: Mapping[str, str], *, live: bool, feed: str) -> Any:
    from dry_work import settings as s
    from dry_work.feeds.addresses import read_feed_settings

    account_id = s.parse_account_id(s.read_variable(environment, "ALPACA_ACCOUNT_ID"))
    credentials = s.read_credentials(environment, hint=", or try --local, which needs no account")
    default_url, default_data_url = s.choose_venue_urls(account_id, live=live)
    alpaca_url = s.parse_url(s.read_variable(environment, "ALPACA_URL") or default_url, name="ALPACA_URL")
    s.check_live(credentials, alpaca_url, live=live, account_id=account_id)
    simulated = alpaca_url != default_url
    # Beside a simulated exchange the history comes from it too, unless it is named.
    data_url = s.read_variable(environment, "ALPACA_DATA_URL") or (alpaca_url if simulated else default_data_url)
    project = s.read_variable(environment, "GOOGLE_CLOUD_PROJECT")
    if not project and feed == "pubsub":
        raise ConfigError(
            "no Google Cloud project: set GOOGLE_CLOUD_PROJECT, or try --local, which needs none; "
            "--feed has ways without one"
        )
    return s.RunSettings(
        mode="live" if live else "paper",
        credentials=credentials,
        alpaca_url=alpaca_url,
        account_id=account_id,
        data_url=s.parse_url(data_url, name="ALPACA_DATA_URL"),
        stock_feed=s.read_stock_feed(environment),
        feed=read_feed_settings(environment, feed),
        project=project,
        market_topic=s.read_variable(environment, "MARKET_DATA_TOPIC") or s.MARKET_TOPIC,
        crypto_topic=s.read_variable(environment, "CRYPTO_DATA_TOPIC") or s.CRYPTO_TOPIC,
        pubsub_endpoint=s.read_variable(environment, "PUBSUB_EMULATOR_HOST") or None,
        **shared,
    )
