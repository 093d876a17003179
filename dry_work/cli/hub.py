"""`dry-work hub`: shares the connections that Alpaca allows with any number of programs until it is stopped."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dry_work.hub.service import HubService
    from dry_work.hub.settings import HubSettings
    from dry_work.hub.status import HubStatus
    from dry_work.hub.upstreams.connection import FeedStatus

EXIT_DEADLINE = 124  # what was under way could not be finished in time


@click.command("hub")
@click.option("--symbols", metavar="FILE|LIST", help="File with one symbol a line, or a comma list.  [HUB_SYMBOLS]")
@click.option(
    "--sinks", metavar="LIST", help="Interfaces: pubsub (default), websocket, grpc, nats, redis.  [HUB_SINKS]"
)
@click.option("--project", metavar="ID", help="Google Cloud project.  [GOOGLE_CLOUD_PROJECT]")
@click.option("--feed", metavar="NAME", help="Stock feed: iex (default), sip, delayed_sip or test.  [ALPACA_FEED]")
@click.option("--stream-url", metavar="URL", help="Base of the market-data WebSocket.  [ALPACA_STREAM_URL]")
@click.option("--pubsub-endpoint", metavar="HOST:PORT", help="A Pub/Sub emulator.  [PUBSUB_EMULATOR_HOST]")
@click.option("--market-topic", metavar="ID", help="Topic of stocks.  [MARKET_DATA_TOPIC, PUBSUB_TOPIC_NAME]")
@click.option("--crypto-topic", metavar="ID", help="Topic of crypto pairs.  [CRYPTO_DATA_TOPIC]")
@click.option(
    "--batch/--no-batch", default=None, help="Publish bars that came together in one message. Off.  [HUB_BATCH]"
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps over a restart what was told of orders; without it nothing is kept.  [HUB_STATE_DIR]",
)
@click.option(
    "--init-nats", is_flag=True, help="Create the streams, consumers and buckets that are missing at NATS, and end."
)
def command(
    *,
    symbols: str | None,
    sinks: str | None,
    project: str | None,
    feed: str | None,
    stream_url: str | None,
    pubsub_endpoint: str | None,
    market_topic: str | None,
    crypto_topic: str | None,
    batch: bool | None,
    state_dir: Path | None,
    init_nats: bool,
) -> None:
    """Share the connections that Alpaca allows with any number of programs.

    Pub/Sub takes the bars of --symbols. WebSocket serves Alpaca's own streams, market data and trade updates, on
    PROXY_PORT (8099); gRPC serves cream.v1 on STREAM_PROXY_GRPC_PORT (50052); NATS takes orders too; Redis has prices
    and order updates for who registers there. They subscribe what their clients want. All of them bind to
    HUB_BIND_HOST (127.0.0.1); elsewhere clients give HUB_TOKEN.

    Credentials come from ALPACA_API_KEY and ALPACA_SECRET_KEY. Runs until it is stopped: it then finishes orders under
    way and delivers what it has, for at most SHUTDOWN_TIMEOUT (30s); a second signal ends it at once.
    HUB_TLS_CERT and HUB_TLS_KEY, PEM files, make every port TLS.

    \b
    Examples:
      dry-work hub --symbols SPY,BTC/USD --sinks pubsub --project my-project
      dry-work hub --sinks websocket,grpc --state-dir hub-state
      dry-work hub --init-nats
    """
    from dry_work.settings import read_environment

    environment = read_environment(Path.cwd())
    if init_nats:
        _init_nats(environment)
        return
    from dry_work.hub.settings import build_settings

    settings = build_settings(
        environment,
        symbols=symbols,
        sinks=sinks,
        project=project,
        feed=feed,
        stream_url=stream_url,
        pubsub_endpoint=pubsub_endpoint,
        market_topic=market_topic,
        crypto_topic=crypto_topic,
        batch=batch,
        state_dir=state_dir,
    )
    sys.exit(_run(settings, environment))


def _run(settings: HubSettings, environment: Mapping[str, str]) -> int:
    """Serve until stopped; return the exit code."""
    import structlog

    from dry_work.cli.signals import StopWaiter
    from dry_work.hub.assembly import build_hub, describe
    from dry_work.hub.observation_settings import read_observation_settings
    from dry_work.hub.state_lock import StateLock
    from dry_work.observability.logging import apply_log_settings
    from dry_work.observability.tracing import tracing

    observation = read_observation_settings(environment)
    apply_log_settings(observation.logs)
    for part, facts in describe(settings, environment).items():
        structlog.get_logger(__name__).info("configuration", part=part, **facts)
    lock = StateLock(settings.state_dir) if settings.state_dir is not None else None
    if lock is not None:
        lock.acquire()
    try:
        with tracing(observation.tracing), StopWaiter() as waiter:
            hub = build_hub(
                settings, environment, observation=observation, on_feed=_report_feed, on_failure=waiter.fail
            )
            hub.start()
            gc.collect()
            gc.disable()  # the hub does it now and then
            gc.freeze()  # a full collection of all that was imported would hold every client up for a tenth of a second
            try:
                code = waiter.wait_for_code()
            finally:
                is_done = _stop(hub, settings.shutdown_timeout_s)
                _report_end(hub.status())
    finally:
        if lock is not None:
            lock.release()
    for error in waiter.errors:
        click.echo(f"hub: failed: {type(error).__name__}: {error}", err=True)
    if not is_done:
        click.echo(
            f"hub: not everything was done within SHUTDOWN_TIMEOUT ({settings.shutdown_timeout_s:g} s)", err=True
        )
        return code or EXIT_DEADLINE
    return code


def _stop(hub: HubService, timeout_s: float) -> bool:
    """Stop the hub; tell whether everything was done. A second signal ends the process."""
    from dry_work.cli.signals import EXIT_FAILED, stop_signals

    def end_at_once(code: int) -> None:
        click.echo("hub: ended at once by a second signal", err=True)
        os._exit(code or EXIT_FAILED)

    with stop_signals(end_at_once):
        return hub.stop(timeout_s)


def _init_nats(environment: Mapping[str, str]) -> None:
    """Create what is missing at NATS, and say what that was."""
    from dry_work.errors import ConfigError
    from dry_work.hub.sinks.nats_settings import read_nats_settings
    from dry_work.observability.logging import set_up_logging

    settings = read_nats_settings(environment)
    try:
        from dry_work.hub.sinks.nats import init_nats
    except ImportError as error:
        raise ConfigError(
            f"--init-nats needs a package that is not installed ({error.name}): pip install 'dry-work[nats]'"
        ) from error
    set_up_logging()
    created = init_nats(settings)
    servers = ", ".join(settings.servers)
    if created:
        click.echo(f"hub: created at NATS {servers}: {', '.join(created)}")
    else:
        click.echo(f"hub: NATS {servers} has everything already, nothing was changed")


def _report_feed(status: FeedStatus) -> None:
    """Say that a feed is connected; losses and refusals are in the log."""
    if status.state == "connected":
        click.echo(f"hub: {status.feed}: connected, {_count(status.wanted, 'symbol')}")


def _report_end(status: HubStatus) -> None:
    for feed in status.feeds:
        if feed.wanted or feed.bars:
            click.echo(
                f"hub: {feed.feed}: {_count(feed.bars, 'bar')}, {_count(feed.watermarks, 'watermark')}, "
                f"{_count(feed.reconnects, 'reconnect')}"
            )
    for sink in status.sinks:
        click.echo(
            f"hub: {sink.name}: {_count(sink.offered, 'event')} offered, {sink.delivered} delivered, "
            f"{sink.conflated} conflated, {sink.dropped} dropped"
        )
    for topic in status.topics:
        if topic.published or topic.dropped or topic.failures:
            click.echo(
                f"hub: {topic.topic}: {topic.published} bars and watermarks published in "
                f"{_count(topic.requests, 'request')}, {topic.failures} failed"
            )
    click.echo(f"hub: received {status.received}, published {status.published}, dropped {status.dropped}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
