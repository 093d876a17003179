"""`dry-work hub`: shares the connections that Alpaca allows with any number of programs until it is stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dry_work.hub.service import HubStatus
    from dry_work.hub.upstreams.connection import FeedStatus


@click.command("hub")
@click.option("--symbols", metavar="FILE|LIST", help="File with one symbol a line, or a comma list.  [HUB_SYMBOLS]")
@click.option("--sinks", metavar="LIST", help="Interfaces: pubsub (default), websocket, grpc, nats.  [HUB_SINKS]")
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
    help="Keeps over a restart what was told of orders; without it nothing is kept.",
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
) -> None:
    """Share the connections that Alpaca allows with any number of programs.

    Pub/Sub takes the bars of --symbols. WebSocket serves Alpaca's own streams, market data and trade updates, on
    PROXY_PORT (8099); gRPC serves cream.v1 on STREAM_PROXY_GRPC_PORT (50052); NATS takes orders too. They subscribe
    what their clients want. All of them bind to HUB_BIND_HOST (127.0.0.1); elsewhere clients give HUB_TOKEN.

    Credentials come from ALPACA_API_KEY and ALPACA_SECRET_KEY. Runs until it is stopped.

    \b
    Examples:
      dry-work hub --symbols SPY,BTC/USD --sinks pubsub --project my-project
      dry-work hub --sinks websocket,grpc --state-dir hub-state
    """
    import structlog

    from dry_work.cli.signals import StopWaiter
    from dry_work.hub.assembly import build_hub
    from dry_work.hub.settings import build_settings
    from dry_work.observability.logging import set_up_logging
    from dry_work.settings import read_environment

    environment = read_environment(Path.cwd())
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
    set_up_logging(environment.get("LOG_LEVEL") or "info")
    structlog.get_logger(__name__).info("configuration", **settings.masked())
    with StopWaiter() as waiter:
        hub = build_hub(settings, environment, on_feed=_report_feed, on_failure=waiter.fail)
        hub.start()
        try:
            code = waiter.wait_for_code()
        finally:
            hub.stop()
            _report_end(hub.status())
    for error in waiter.errors:
        click.echo(f"hub: failed: {type(error).__name__}: {error}", err=True)
    sys.exit(code)


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
