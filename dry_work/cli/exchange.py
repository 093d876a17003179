"""`dry-work exchange`: the simulated exchange as a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from dry_work.cli.signals import StopWaiter
    from dry_work.exchange.assets import AssetBook
    from dry_work.exchange.corporate_actions import CorporateActions
    from dry_work.exchange.faults import Fault
    from dry_work.exchange.news import NewsFeed
    from dry_work.exchange.server import ExchangeServer
    from dry_work.feeds.recorded import Recording
    from dry_work.feeds.recorded_ticks import TickRecording

_Read = TypeVar("_Read")

_DEFAULT_SYMBOLS = ("AAPL", "MSFT", "SPY", "BTC/USD", "ETH/USD")
_PROGRESS_S = 5.0
_LOOK_S = 0.5


@click.command("exchange")
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="PATH",
    help="Recorded bars, and trades and quotes beside them: a file, a folder or a glob. May be repeated. "
    "Default: a synthetic day.",
)
@click.option(
    "--symbols",
    "symbols_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Symbols to trade, one a line. Default: all of the data; without data ./symbols.txt.",
)
@click.option(
    "--speed",
    default="60",
    show_default=True,
    metavar="X|max",
    help="Data seconds a second; max is lock-step with the consumers.",
)
@click.option(
    "--skip-gaps",
    is_flag=True,
    help="With a speed, nights and weekends (an hour and more without a bar) pass like a minute.",
)
@click.option(
    "--rules",
    type=click.Choice(["alpaca", "backtrader"]),
    default="alpaca",
    show_default=True,
    help="Order rules: Alpaca's, or those of Backtrader's own broker.",
)
@click.option(
    "--consumers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Consumers to wait for before the market starts. Default: 1 with speed max, otherwise 0.",
)
@click.option("--cash", default="100000", show_default=True, metavar="AMOUNT", help="Cash of a new account.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8090,
    show_default=True,
    help="Port for HTTP and WebSocket; 0 takes any free one.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="ID:SECRET",
    help="Credentials to admit, each with its own account. May be repeated. Default: any.",
)
@click.option(
    "--accounts",
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Sub-accounts that a Broker API key begins with; POST /v1/accounts opens more. With --key their ids are "
    "printed. Default: 1.",
)
@click.option(
    "--connections",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sessions that an account may have on each market-data endpoint and on /stream; Alpaca grants 1. "
    "Default: without limit.",
)
@click.option(
    "--stale-session",
    "stale_s",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="A session that was cut without a close counts for so much longer; about 90 at Alpaca. Needs --connections.",
)
@click.option(
    "--stream-symbols",
    type=click.IntRange(min=1),
    metavar="N",
    help="Symbols that a session may have on trades and quotes; 30 in Alpaca's free plan. Default: without limit.",
)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(min=1),
    metavar="N",
    help="HTTP requests that an account may make, for trading and for market data each; Alpaca grants 200. More are "
    "answered 429. Default: without limit.",
)
@click.option(
    "--races",
    is_flag=True,
    help="Cancels and replacements reach the market one slice later and may lose to a fill. Only with --rules alpaca.",
)
@click.option(
    "--matching",
    type=click.Choice(["bars", "volume", "ticks"]),
    default="bars",
    show_default=True,
    help="What fills orders: bars, always the whole order; bars with no more than their volume; or the recorded trades "
    "and quotes, and bars with their volume where a minute has none. Only bars with --rules backtrader.",
)
@click.option(
    "--wash-trades",
    is_flag=True,
    help="Take orders that would trade with the account's own; Alpaca refuses them.",
)
@click.option(
    "--partial-fills",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="RATE",
    help="Share of the market, limit and stop-limit orders for more than one share that get a part first, by chance; "
    "about 0.1 in Alpaca's paper accounts. Only with --rules alpaca.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the chance of --partial-fills: the same seed cuts the same orders in the same way.",
)
@click.option(
    "--assets",
    "assets_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What may be done with the assets, as `GET /v2/assets` answers it: status, tradable, shortable, "
    "easy_to_borrow, fractionable, attributes (overnight_tradable). Only what differs has to be there. Only with "
    "--rules alpaca.",
)
@click.option(
    "--no-options",
    is_flag=True,
    help="Trade no synthetic options of the stocks, only options that are recorded themselves.",
)
@click.option(
    "--news",
    default=None,
    metavar="FILE|synthetic|none",
    help="Articles as `/v1beta1/news` answers them, as JSON or one a line; or made-up ones, which say so. Default: "
    "synthetic without --data, otherwise none.",
)
@click.option(
    "--corporate-actions",
    "actions",
    default=None,
    metavar="FILE|synthetic|none",
    help="Corporate actions as `/v1/corporate-actions` answers them; they are told, not carried out. Default: "
    "synthetic without --data, otherwise none.",
)
@click.option(
    "--faults",
    "faults_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What goes wrong on purpose: a JSON list as `POST /dry-work/v1/faults` takes it, which sets faults later.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep a log of all orders and other changes and the faults there, and go on from it after a stop or a "
    "crash. Default: a new exchange at every start.",
)
@click.pass_context
def command(
    context: click.Context,
    *,
    data: tuple[str, ...],
    symbols_file: Path | None,
    speed: str,
    skip_gaps: bool,
    rules: str,
    consumers: int | None,
    cash: str,
    host: str,
    port: int,
    keys: tuple[str, ...],
    accounts: int | None,
    connections: int | None,
    stale_s: float,
    stream_symbols: int | None,
    requests_per_minute: int | None,
    races: bool,
    matching: Literal["bars", "volume", "ticks"],
    wash_trades: bool,
    partial_fills: float,
    seed: int,
    assets_file: Path | None,
    no_options: bool,
    news: str | None,
    actions: str | None,
    faults_file: Path | None,
    state_dir: Path | None,
) -> None:
    """Run the simulated exchange: Alpaca's trading API, trade updates and market data on recorded or synthetic prices.

    Any program written for Alpaca trades on it once its URLs point here.

    Examples:

    \b
        dry-work exchange
        dry-work exchange --data recordings/ --speed 600 --rules alpaca
        dry-work exchange --data recordings/ --speed max --state-dir exchange-state/
        dry-work exchange --key MYKEY:mysecret --connections 1 --requests-per-minute 200
    """
    from dry_work.cli.signals import StopWaiter
    from dry_work.exchange.assets import AssetBook
    from dry_work.exchange.data_sockets import StreamLimits
    from dry_work.exchange.offerings import Offerings
    from dry_work.exchange.server import ExchangeServer
    from dry_work.exchange.sub_accounts import build_sub_account_ids
    from dry_work.observability.logging import set_up_logging
    from dry_work.settings import parse_cash, parse_speed

    set_up_logging()
    data_speed = parse_speed(speed)
    amount = parse_cash(cash)
    secrets = _parse_keys(keys)
    if stale_s and connections is None:
        raise ConfigError("--stale-session has no effect without --connections: give both, or neither")
    if skip_gaps and data_speed is None:
        raise ConfigError("--skip-gaps has no effect with --speed max, where nights take no time: leave it out")
    recording, ticks = _open_recording(data, symbols_file)
    offerings = Offerings(
        options=not no_options,
        assets=_read_assets(assets_file) or AssetBook(),
        partial_fills=partial_fills,
        seed=seed,
        news=_open_news(news or ("none" if data else "synthetic"), recording),
        actions=_open_actions(actions or ("none" if data else "synthetic"), recording),
    )
    with StopWaiter() as waiter:
        server = ExchangeServer(
            recording,
            ticks=ticks,
            rules="backtrader" if rules == "backtrader" else "alpaca",
            speed=data_speed,
            consumers=consumers,
            cash=amount,
            host=host,
            port=port,
            keys=secrets,
            accounts=1 if accounts is None else accounts,
            limits=StreamLimits(
                connections=connections, trade_connections=connections, stale_s=stale_s, symbols=stream_symbols
            ),
            requests_per_minute=requests_per_minute,
            changes_in_flight=races,
            matching=matching,
            wash_trades=wash_trades,
            offerings=offerings,
            faults=_read_faults(faults_file),
            skip_gaps=skip_gaps,
            state_dir=state_dir,
            on_failure=waiter.fail,
        )
        server.start()
        try:
            urls = f"ALPACA_URL={server.url} ALPACA_DATA_URL={server.url} ALPACA_STREAM_URL={server.stream_url}"
            click.echo(f"export {urls}")
            for line in [*recording.describe_repairs(), *ticks.describe_repairs()]:
                click.echo(f"data: {line}")
            if len(ticks):
                click.echo(f"data: {len(ticks)} trades and quotes beside the bars")
            if server.resumed:
                facts = server.describe()
                click.echo(
                    f"resumed from {state_dir} in slice {facts['slice']} of {facts['slices']}: {facts['orders']} order "
                    f"requests, {facts['fills']} fills so far"
                )
            if secrets is None:
                click.echo("any credentials are admitted; --key ID:SECRET admits only those named")
            for key_id in secrets or ():
                for account_id in build_sub_account_ids(key_id, accounts or 0):
                    click.echo(f"Broker API: ALPACA_ACCOUNT_ID={account_id} with key {key_id}")
            code = _show_progress(server, waiter)
        finally:
            server.stop()
    facts = server.describe()
    click.echo(
        f"stopped after slice {facts['slice']} of {facts['slices']} ({facts['state']}), exchange time {facts['time']}: "
        f"{facts['orders']} order requests, {facts['fills']} fills"
    )
    for error in waiter.errors:
        click.echo(f"the exchange failed: {error!r}", err=True)
    context.exit(code)


def _show_progress(server: ExchangeServer, waiter: StopWaiter) -> int:
    """Print a line when the market's state changes, and every few seconds while it moves; return the exit code."""
    shown = ("", 0)
    shown_s = 0.0
    while True:
        code = waiter.wait(0.0 if not shown_s else _LOOK_S)
        facts = server.describe()
        now = (facts["state"], facts["slice"])
        is_new = now[0] != shown[0] or (now != shown and time.monotonic() - shown_s >= _PROGRESS_S)
        if is_new and (code is None or now[0] == "ended"):
            shown, shown_s = now, time.monotonic()
            click.echo(_describe_progress(facts))
        if code is not None:
            return code


def _describe_progress(facts: dict[str, object]) -> str:
    if facts["state"] == "waiting":
        consumers = f"{facts['registered']} of {facts['expected']} consumers registered"
        return (
            f"market waits after slice {facts['slice']} of {facts['slices']} for consumers and subscribers: {consumers}"
        )
    where = f"slice {facts['slice']} of {facts['slices']}, exchange time {facts['time']}"
    return f"market {facts['state']}: {where}, {facts['fills']} fills"


def _open_recording(data: tuple[str, ...], symbols_file: Path | None) -> tuple[Recording, TickRecording]:
    from dry_work.exchange.synthetic import synthetic_day
    from dry_work.feeds.recorded_ticks import TickRecording, read_recordings
    from dry_work.market.symbols import read_symbols

    symbols = None if symbols_file is None else read_symbols(symbols_file)
    if data:
        return read_recordings(data, symbols)
    if symbols is None:
        default = Path("symbols.txt")
        symbols = read_symbols(default) if default.exists() else list(_DEFAULT_SYMBOLS)
    return synthetic_day(symbols), TickRecording({})


def _read_faults(path: Path | None) -> list[Fault]:
    from dry_work.exchange.faults import parse_faults
    from dry_work.wire.alpaca_rest import parse_json

    return [] if path is None else _read_file("--faults", path, lambda data: parse_faults(parse_json(data)))


def _read_assets(path: Path | None) -> AssetBook | None:
    from dry_work.exchange.assets import parse_assets
    from dry_work.wire.alpaca_rest import parse_json

    return None if path is None else _read_file("--assets", path, lambda data: parse_assets(parse_json(data)))


def _open_news(place: str, recording: Recording) -> NewsFeed:
    from dry_work.exchange.news import NewsFeed, make_news, parse_news

    if place in ("none", "synthetic"):
        return NewsFeed() if place == "none" else make_news(recording)
    return _read_file("--news", Path(place), parse_news)


def _open_actions(place: str, recording: Recording) -> CorporateActions:
    from dry_work.exchange.corporate_actions import CorporateActions, make_actions, parse_actions

    if place in ("none", "synthetic"):
        return CorporateActions() if place == "none" else make_actions(recording)
    return _read_file("--corporate-actions", Path(place), parse_actions)


def _read_file(option: str, path: Path, parse: Callable[[bytes], _Read]) -> _Read:
    from dry_work.errors import CodecError

    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror or error}") from None
    except CodecError as error:
        raise ConfigError(f"{option} {path}: {error.reason}") from None


def _parse_keys(texts: tuple[str, ...]) -> dict[str, str] | None:
    keys = {}
    for text in texts:
        key_id, separator, secret = text.partition(":")
        if not separator or not key_id or not secret:
            raise ConfigError("a --key is not usable: expected ID:SECRET, both not empty")
        keys[key_id] = secret
    return keys or None
