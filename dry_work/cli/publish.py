"""`dry-work publish`: recordings into Pub/Sub topics, without any exchange."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dry_work.errors import ConfigError, HubError

if TYPE_CHECKING:
    from dry_work.cli.signals import StopWaiter
    from dry_work.feeds.recorded import Recording
    from dry_work.hub.ports import TopicStatus
    from dry_work.hub.sinks.pubsub import PubSubSink
    from dry_work.market.messages import Bar, Watermark

_PROGRESS_S = 5.0
_ROOM_S = 0.02
_STOP_S = 3.0  # for what is on its way when the word to stop comes
_REACH_S = 15.0


@click.command("publish")
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    type=click.Path(),
    metavar="PATH",
    help="Recorded bars: a file, a folder or a glob. May be repeated.",
)
@click.option(
    "--symbols",
    type=click.Path(),
    metavar="FILE|LIST",
    help="File with one symbol a line, or a comma list. Default: all of the data.",
)
@click.option(
    "--speed", default="max", show_default=True, metavar="X|max", help="Data seconds a second; max does not wait."
)
@click.option("--project", metavar="ID", help="Google Cloud project.  [GOOGLE_CLOUD_PROJECT]")
@click.option("--pubsub-endpoint", metavar="HOST:PORT", help="A Pub/Sub emulator.  [PUBSUB_EMULATOR_HOST]")
@click.option("--market-topic", metavar="ID", help="Topic of stocks.  [MARKET_DATA_TOPIC, PUBSUB_TOPIC_NAME]")
@click.option("--crypto-topic", metavar="ID", help="Topic of crypto pairs.  [CRYPTO_DATA_TOPIC]")
@click.option(
    "--batch", is_flag=True, help="Publish the bars of a minute in one message, for readers without a filter."
)
@click.pass_context
def command(
    context: click.Context,
    *,
    data: tuple[str, ...],
    symbols: str | None,
    speed: str,
    project: str | None,
    pubsub_endpoint: str | None,
    market_topic: str | None,
    crypto_topic: str | None,
    batch: bool,
) -> None:
    """Publish recorded bars to Pub/Sub, as the hub publishes live ones: numbered, with a watermark after each minute.

    Stocks go to one topic and crypto pairs to another; topics that are missing are created. Start the readers first: a
    subscription has only what is published after it was made.

    \b
    Examples:
      dry-work publish --data recordings/ --project my-project
      dry-work publish --data bars.parquet --symbols SPY,BTC/USD --speed 60 --pubsub-endpoint 127.0.0.1:8085
    """
    from dry_work.cli.signals import EXIT_FAILED, StopWaiter
    from dry_work.feeds.recorded import read_bars
    from dry_work.observability.logging import set_up_logging
    from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC, parse_speed, read_environment, read_variable

    environment = read_environment(Path.cwd())
    set_up_logging(environment.get("LOG_LEVEL"))
    data_speed = parse_speed(speed)
    project = project or read_variable(environment, "GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ConfigError("no Google Cloud project: give --project or set GOOGLE_CLOUD_PROJECT")
    recording = read_bars(data, None if symbols is None else parse_symbol_list(symbols))
    for line in recording.describe_repairs():
        click.echo(f"data: {line}")
    topics = assign_topics(
        recording.symbols,
        market_topic=market_topic
        or read_variable(environment, "MARKET_DATA_TOPIC", "PUBSUB_TOPIC_NAME")
        or MARKET_TOPIC,
        crypto_topic=crypto_topic or read_variable(environment, "CRYPTO_DATA_TOPIC") or CRYPTO_TOPIC,
    )
    begun_s = time.monotonic()
    with StopWaiter() as waiter:
        endpoint = pubsub_endpoint or read_variable(environment, "PUBSUB_EMULATOR_HOST") or None
        sink = _open_sink(project, topics, endpoint, waiter, batch=batch)
        try:
            bars = sum(map(recording.count, recording.symbols))
            names = ", ".join(dict.fromkeys(topics.values()))
            click.echo(f"publishing {bars:,} bars of {len(recording.symbols)} symbols to {names} in project {project}")
            code = _Publisher(sink, topics, waiter, total=len(recording.slice_ends())).run(recording, data_speed)
        finally:
            sink.stop(_STOP_S)
    for status in sink.status():
        click.echo(describe_topic(status))
    click.echo(("published" if code is None else "stopped") + f" after {time.monotonic() - begun_s:.1f} s")
    for error in waiter.errors:
        click.echo(f"publishing failed: {error!r}", err=True)
    context.exit(EXIT_FAILED if waiter.errors else code or 0)


def parse_symbol_list(text: str) -> list[str]:
    """Return the symbols of a file, or of a comma list.

    Raises:
        ConfigError: when it is neither.
    """
    from dry_work.market.symbols import parse_symbols, read_symbols

    path = Path(text)
    if path.exists():
        return read_symbols(path)
    try:
        return parse_symbols(text.replace(",", "\n"), source="--symbols")
    except ConfigError as error:
        raise ConfigError(f"--symbols {text}: neither a file nor a comma list of symbols ({error})") from None


def assign_topics(symbols: Sequence[str], *, market_topic: str, crypto_topic: str) -> dict[str, str]:
    """Return the topic of each symbol.

    Raises:
        ConfigError: when both topics are one.
    """
    from dry_work.hub.core import build_feeds, split_symbols

    stocks, crypto = split_symbols(symbols)
    build_feeds(stock_feed="iex", market_topic=market_topic, crypto_topic=crypto_topic)  # refuses equal topics
    return {**dict.fromkeys(stocks, market_topic), **dict.fromkeys(crypto, crypto_topic)}


def build_messages(
    number: int, end_ns: int, bars: Sequence[Bar], *, last: bool, topics: Mapping[str, str]
) -> dict[str, list[Bar | Watermark]]:
    """Return by topic what is published for one slice: its bars and a watermark, on topics without a bar too."""
    from msgspec.structs import replace

    from dry_work.market.messages import Watermark
    from dry_work.market.symbols import is_crypto

    messages: dict[str, list[Bar | Watermark]] = {topic: [] for topic in dict.fromkeys(topics.values())}
    for bar in bars:
        source = bar.source or ("alpaca_crypto" if is_crypto(bar.symbol) else "alpaca_stock")
        messages[topics[bar.symbol]].append(replace(bar, source=source))
    for found in messages.values():
        found.append(Watermark(slice=number, end_ns=end_ns, bars=len(found), last=last))
    return messages


def describe_topic(status: TopicStatus) -> str:
    """Return what became of one topic's messages."""
    failed = f", {status.failures} failed and sent again" if status.failures else ""
    dropped = f", {status.dropped:,} not published" if status.dropped else ""
    return f"{status.topic}: {status.published:,} bars and watermarks in {status.requests:,} requests{failed}{dropped}"


def _open_sink(
    project: str, topics: Mapping[str, str], endpoint: str | None, waiter: StopWaiter, *, batch: bool
) -> PubSubSink:
    import random

    from dry_work.clock import SystemClock
    from dry_work.hub.sinks.pubsub import PubSubSink

    rng, clock = random.Random(), SystemClock()
    sink = PubSubSink(
        project=project,
        topics=list(dict.fromkeys(topics.values())),
        endpoint=endpoint,
        epoch=f"{clock.time_ns():x}-{rng.getrandbits(32):08x}",
        rng=rng,
        clock=clock,
        batch=batch,
        on_failure=waiter.fail,
    )
    if not sink.start(_REACH_S):
        sink.stop(0.0)
        raise HubError(
            f"Pub/Sub at {endpoint or 'pubsub.googleapis.com'} does not answer within {_REACH_S:g} s; "
            "is the address (--pubsub-endpoint, PUBSUB_EMULATOR_HOST) right?"
        )
    return sink


class _Publisher:
    """Hands slices to the sink, at their time, until they are out or the word to stop comes."""

    def __init__(self, sink: PubSubSink, topics: Mapping[str, str], waiter: StopWaiter, *, total: int) -> None:
        self._sink = sink
        self._topics = topics
        self._waiter = waiter
        self._total = total
        self._next_line_s = time.monotonic() + _PROGRESS_S

    def run(self, recording: Recording, speed: float | None) -> int | None:
        """Publish; return the exit code when stopped before the end, otherwise None."""
        from dry_work.exchange.market import Pace, mark_last

        pace: Pace | None = None
        for number, end_ns, bars, last in mark_last(recording.slices()):
            code = self._wait(number - 1, 0.0)
            if speed is not None:
                pace = pace or Pace(speed, time.monotonic(), end_ns)
                while code is None and (left_s := pace.due_s(end_ns) - time.monotonic()) > 0:
                    code = self._wait(number - 1, left_s)
            if code is not None:
                return code
            for topic, messages in build_messages(number, end_ns, bars, last=last, topics=self._topics).items():
                while not self._sink.has_room(topic):
                    code = self._wait(number - 1, _ROOM_S)
                    if code is not None:
                        return code
                self._sink.offer(topic, messages)
        while any(status.pending for status in self._sink.status()):
            code = self._wait(self._total, _ROOM_S)
            if code is not None:
                return code
        return self._waiter.wait(0.0)

    def _wait(self, number: int, timeout_s: float) -> int | None:
        now_s = time.monotonic()
        if now_s >= self._next_line_s:
            self._next_line_s = now_s + _PROGRESS_S
            statuses = self._sink.status()
            trouble = "".join(f"; {status.topic}: {status.error}" for status in statuses if status.error)
            published = sum(status.published for status in statuses)
            click.echo(f"slice {number:,} of {self._total:,}, {published:,} bars and watermarks published{trouble}")
        return self._waiter.wait(min(timeout_s, _PROGRESS_S))
