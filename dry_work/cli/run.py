"""`dry-work run`: trade with a strategy."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from dry_work.errors import ConfigError

_DEFAULT_WARMUP = 100


def complete_files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a file's name, for options whose value is more than a path."""
    return [CompletionItem(incomplete, type="file")]


@click.command("run")
@click.option(
    "--symbols", type=click.Path(), metavar="FILE", help="Symbols to trade, one a line. Default: ./symbols.txt."
)
@click.option(
    "--agent",
    shell_complete=complete_files,
    metavar="FILE.py:Class",
    help="The strategy: a file or a module, and its class. Default: the bundled SMA crossover.",
)
@click.option(
    "-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of it. May be repeated."
)
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
@click.option("--tz", metavar="ZONE", help="Time zone of sessions and of the strategy's clock. Default: UTC.")
@click.option("--timeframe", metavar="FRAME", help="Length of the bars, for example 1m, 5m, 1h. Default: 1m.")
@click.option("--resample", metavar="FRAMES", help="Further feeds of longer bars, for example 5m,1h.")
@click.option("--extra-field", "extra_fields", multiple=True, metavar="NAME", help="A numeric field that is a line.")
@click.option(
    "--warmup",
    type=click.IntRange(0, 10_000),
    metavar="N",
    help=f"Bars of history for each symbol before the start. Default: {_DEFAULT_WARMUP}, 0 with --local.",
)
@click.option("--prenext", is_flag=True, default=None, help="Call `next` while some symbols have no bars yet.")
@click.option(
    "--state-dir",
    type=click.Path(),
    metavar="DIR",
    help="Where orders journal, lease and heartbeat are. Default: ./.dry-work.",
)
@click.option("--take-over", is_flag=True, help="Take a subscription that another state directory left behind.")
@click.option("--plain", is_flag=True, help="Print lines instead of the live view that a terminal gets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(as_json: bool, plain: bool, **options: Any) -> int:
    """Trade with a Backtrader strategy on Alpaca paper trading, with market data from Pub/Sub, or on the local stack.

    \b
    Examples:
      dry-work run --local
      dry-work run --local --data recordings/ --agent my.py:Cross -p fast=10
      dry-work run --local --speed 60 --plain
      dry-work run --symbols symbols.txt

    On a terminal a live view shows symbols, positions and the last orders; elsewhere progress lines are printed.
    """
    from dry_work.cli.signals import stop_signals

    # Before there is anything to stop in order, and after it, a signal ends the program with its exit code.
    with stop_signals(sys.exit):
        return _trade(options, as_json=as_json, plain=plain)


def _trade(options: Mapping[str, Any], *, as_json: bool, plain: bool) -> int:
    from dry_work.settings import read_environment, read_toml

    folder = Path.cwd()
    settings = build_settings(options, read_toml(folder / "dry-work.toml"), read_environment(folder))

    import signal

    from rich.console import Console

    from dry_work.cli.live_view import LiveView, can_draw
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED, stop_signals
    from dry_work.engine.result import build_tables
    from dry_work.engine.runner import Runner
    from dry_work.errors import StrategyError
    from dry_work.observability.logging import set_up_logging

    set_up_logging()
    view: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if plain or not can_draw(sys.stdout):
        runner = Runner(settings, tell=click.echo)
    else:
        view = live_view = LiveView(sys.stdout)
        runner = Runner(settings, tell=live_view.tell, show=live_view.show)
        live_view.follow(runner.refresh)
    try:
        # The view is left last, when no signal can interrupt it any more: the terminal is to be as it was.
        with view, stop_signals(runner.request_stop):
            try:
                result = runner.run()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except StrategyError as error:
        traceback.print_exception(error.__cause__ or error)
        click.echo(f"dry-work: {error}", err=True)
        return EXIT_FAILED
    if runner.stop_code is not None:
        click.echo("stopped" + ("" if runner.stop_code == EXIT_DONE else " by Ctrl-C"))
    console = Console(soft_wrap=False, highlight=False)
    for part in build_tables(result):
        console.print(part)
    if as_json:
        click.echo(json.dumps(result.to_json(), allow_nan=False))
    return EXIT_DONE if runner.stop_code is None else runner.stop_code


def build_settings(options: Mapping[str, Any], toml: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    """Return the settings of a run. An option wins over the environment, the environment over `dry-work.toml`.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    from dry_work import settings as s
    from dry_work.engine.agents import DEFAULT_AGENT, parse_params
    from dry_work.market.symbols import read_symbols

    def choose(name: str, default: Any = None) -> Any:
        given = options.get(name)
        return toml.get(name, default) if given is None or given == () else given

    local, live = bool(options.get("local")), bool(options.get("live"))
    if local and live:
        raise ConfigError("--local and --live exclude each other: local runs trade with no account")
    data, speed = _texts(choose("data", ()), "data"), options.get("speed")
    if not local and (data or speed is not None or options.get("cash") is not None):
        if options.get("data") or speed is not None or options.get("cash") is not None:
            raise ConfigError("--data, --speed and --cash go with --local; without it prices and cash come from Alpaca")
        data = ()
    params = {str(name): str(value) for name, value in dict(toml.get("params", {})).items()}
    params.update(parse_params(options.get("params") or ()))
    warmup = choose("warmup", 0 if local else _DEFAULT_WARMUP)
    if local and warmup:
        raise ConfigError("--warmup has no history to draw from with --local: leave it out, or start the data earlier")
    agent_id = s.read_variable(environment, "AGENT_ID") or str(toml.get("agent_id", ""))
    state_dir, given = s.choose_state_dir(choose("state_dir"), agent_id=agent_id)
    shared: dict[str, Any] = {
        "symbols": tuple(read_symbols(Path(choose("symbols", s.DEFAULT_SYMBOLS)))),
        "agent": str(choose("agent", DEFAULT_AGENT)),
        "params": params,
        "tz": s.parse_zone(str(choose("tz", "UTC"))),
        "timeframe": s.parse_timeframe(str(choose("timeframe", "1m"))),
        "resample": _frames(choose("resample", "")),
        "extra_fields": _texts(choose("extra_fields", ()), "extra_fields"),
        "warmup": int(warmup),
        "forward_prenext": bool(choose("prenext", False)),
        "state_dir": state_dir,
        "state_dir_given": given,
        "agent_id": s.parse_agent_id(agent_id) if agent_id else "",
        "take_over": bool(options.get("take_over")),
    }
    _check_frames(shared["timeframe"], shared["resample"])
    if local:
        return s.RunSettings(
            mode="local",
            data=data,
            speed=s.parse_speed(str(choose("speed", "max"))),
            cash=s.parse_cash(str(choose("cash", "100000"))),
            **shared,
        )
    return _add_venue(shared, environment, live=live)


def _add_venue(shared: dict[str, Any], environment: Mapping[str, str], *, live: bool) -> Any:
    from dry_work import settings as s

    if s.read_variable(environment, "ALPACA_ACCOUNT_ID"):
        raise ConfigError(
            "ALPACA_ACCOUNT_ID is set: accounts of the Broker API come with a later version. "
            "Unset it to trade with the key's own account"
        )
    credentials = s.read_credentials(environment, hint=", or try --local, which needs no account")
    default_url = s.LIVE_URL if live else s.PAPER_URL
    alpaca_url = s.parse_url(s.read_variable(environment, "ALPACA_URL") or default_url, name="ALPACA_URL")
    s.check_live(credentials, alpaca_url, live=live)
    simulated = alpaca_url not in (s.PAPER_URL, s.LIVE_URL)
    # Beside a simulated exchange the history comes from it too, unless it is named.
    data_url = s.read_variable(environment, "ALPACA_DATA_URL") or (alpaca_url if simulated else s.DATA_URL)
    project = s.read_variable(environment, "GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ConfigError("no Google Cloud project: set GOOGLE_CLOUD_PROJECT, or try --local, which needs none")
    return s.RunSettings(
        mode="live" if live else "paper",
        credentials=credentials,
        alpaca_url=alpaca_url,
        data_url=s.parse_url(data_url, name="ALPACA_DATA_URL"),
        project=project,
        market_topic=s.read_variable(environment, "MARKET_DATA_TOPIC") or s.MARKET_TOPIC,
        crypto_topic=s.read_variable(environment, "CRYPTO_DATA_TOPIC") or s.CRYPTO_TOPIC,
        pubsub_endpoint=s.read_variable(environment, "PUBSUB_EMULATOR_HOST") or None,
        **shared,
    )


def _frames(value: Any) -> tuple[Any, ...]:
    from dry_work.settings import parse_timeframe

    texts = value.split(",") if isinstance(value, str) else list(value)
    return tuple(parse_timeframe(str(text), option="--resample") for text in texts if str(text).strip())


def _check_frames(base: Any, frames: Iterable[Any]) -> None:
    for frame in frames:
        if frame.length_ns <= base.length_ns or frame.length_ns % base.length_ns:
            raise ConfigError(
                f"--resample {frame.text}: expected a longer time frame that is a multiple of --timeframe {base.text}"
            )
    if base.length_ns % 60_000_000_000:
        raise ConfigError(f"--timeframe {base.text}: expected whole minutes, since the data are minute bars")


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ConfigError(f"{name}: expected a text or a list of texts, not {value!r}")
