"""The simulated exchange, Pub/Sub and hub of the local deploy target, in one process: `python -m` this module.

Started by the target and not a command: `dry-work exchange`, `pubsub` and `hub` are the same parts one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.errors import DryWorkError

if TYPE_CHECKING:
    from dry_work.feeds.recorded import Recording

DAYS = 5  # sessions of synthetic prices, from a Tuesday on


@click.command("local-exchange")
@click.option("--port", type=click.IntRange(0, 65_535), required=True)
@click.option("--pubsub-port", type=click.IntRange(0, 65_535), required=True)
@click.option("--symbols", default="", help="Of a synthetic day, separated by commas.")
@click.option("--data", multiple=True, help="Recordings that are played instead.")
@click.option("--speed", default="60")
@click.option("--cash", default="100000")
@click.option("--state-dir", type=click.Path(path_type=Path), required=True)
@click.option("--ready-file", type=click.Path(path_type=Path), required=True, help="Written when all parts work.")
@click.pass_context
def command(
    context: click.Context,
    *,
    port: int,
    pubsub_port: int,
    symbols: str,
    data: tuple[str, ...],
    speed: str,
    cash: str,
    state_dir: Path,
    ready_file: Path,
) -> None:
    """Serve the simulated exchange with a Pub/Sub and a hub until SIGTERM. Its market begins with the first agent."""
    from dry_work.cli.signals import StopWaiter
    from dry_work.embedded.links import PROJECT
    from dry_work.embedded.pubsub import EmbeddedPubSub
    from dry_work.exchange.server import ExchangeServer
    from dry_work.feeds.recorded import read_bars
    from dry_work.hub.service import HubService
    from dry_work.observability.logging import set_up_logging
    from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC, parse_cash, parse_speed

    set_up_logging()
    recording = read_bars(data, None) if data else make_days(symbols.split(","))
    with StopWaiter() as waiter:
        exchange = ExchangeServer(
            recording,
            rules="backtrader",
            speed=parse_speed(speed),
            skip_gaps=True,
            consumers=1,
            cash=parse_cash(cash),
            port=port,
            state_dir=state_dir,
            on_failure=waiter.fail,
        )
        topics = [f"projects/{PROJECT}/topics/{name}" for name in (MARKET_TOPIC, CRYPTO_TOPIC)]
        pubsub = EmbeddedPubSub(port=pubsub_port, topics=topics, on_failure=waiter.fail)
        hub: HubService | None = None
        try:
            exchange.start()
            pubsub.start()
            hub = HubService(
                exchange.stream_url,
                key="LOCAL-hub",
                secret="local",  # noqa: S106 - the exchange admits any
                project=PROJECT,
                symbols=recording.symbols,
                pubsub_endpoint=pubsub.target,
                market_topic=MARKET_TOPIC,
                crypto_topic=CRYPTO_TOPIC,
                on_failure=waiter.fail,
            )
            hub.start()
            click.echo(f"exchange {exchange.url}, Pub/Sub {pubsub.target}, {len(recording.symbols)} symbols")
            ready_file.touch()
            code = waiter.wait_for_code()
        finally:
            if hub is not None:
                hub.stop()
            exchange.stop()
            pubsub.stop()
    for error in waiter.errors:
        click.echo(f"the exchange failed: {error!r}", err=True)
    context.exit(code)


def make_days(symbols: Sequence[str], *, days: int = DAYS) -> Recording:
    """Make up sessions one after the other, each beginning where the one before has ended: a SYNTHETIC recording."""
    import numpy as np

    from dry_work.clock import DAY_NS
    from dry_work.exchange.synthetic import synthetic_day
    from dry_work.feeds.recorded import Recording

    found: dict[str, list[dict[str, Any]]] = {}
    for day in range(days):
        week, weekday = divmod(day + 1, 5)  # the first one is a Tuesday
        made = synthetic_day(symbols, seed=7 + day)
        for symbol in made.symbols:
            columns = dict(made.columns(symbol))
            before = found.setdefault(symbol, [])
            factor = before[-1]["close"][-1] / columns["open"][0] if before else 1.0
            for name in ("open", "high", "low", "close", "vwap"):
                columns[name] = np.round(columns[name] * factor, 2)
            columns["ts_event_ns"] = columns["ts_event_ns"] + (week * 7 + weekday - 1) * DAY_NS
            before.append(columns)
    return Recording(
        {
            symbol: {name: np.concatenate([columns[name] for columns in parts]) for name in parts[0]}
            for symbol, parts in found.items()
        }
    )


if __name__ == "__main__":
    try:
        command()
    except DryWorkError as error:
        raise SystemExit(f"the exchange cannot be started: {error}") from None
