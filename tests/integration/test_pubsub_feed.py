"""The feed in a stock Cerebro, over the embedded Pub/Sub server and Google's clients."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import backtrader as bt
import grpc
import pytest
from google.cloud.pubsub_v1 import PublisherClient
from google.cloud.pubsub_v1.types import BatchSettings
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from dry_work.clock import MINUTE_NS
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.errors import ConfigError, FeedError, LeaseHeldError
from dry_work.feeds.pubsub import PubSubMarketDataFeed
from dry_work.market.messages import Bar, News, Watermark
from dry_work.wire.pubsub import encode_bar, encode_news, encode_watermark, is_extra_name

PROJECT = "demo"
START_NS = 1_704_205_800_000_000_000
OPEN = datetime(2024, 1, 2, 14, 30)  # the same time


def bar(symbol: str, minute: int, close: float = 1.0, **fields: Any) -> Bar:
    start = START_NS + (minute - 1) * MINUTE_NS
    return Bar(symbol=symbol, ts_event_ns=start, open=close, high=close, low=close, close=close, volume=10, **fields)


class Market:
    """Publishes as the hub does, by Google's publisher."""

    def __init__(self, pubsub: EmbeddedPubSub) -> None:
        self.pubsub = pubsub
        self._channel = grpc.insecure_channel(pubsub.target)
        self._publisher = PublisherClient(
            batch_settings=BatchSettings(max_latency=0.001),
            transport=PublisherGrpcTransport(channel=self._channel),
        )
        self._subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        self._seq: dict[str, int] = {}
        self.runs: list[Run] = []

    def publish(self, topic: str, data: bytes, attributes: Mapping[str, str]) -> None:
        self._publisher.publish(f"projects/{PROJECT}/topics/{topic}", data, **attributes).result(60)

    def publish_bar(self, value: Bar) -> None:
        topic = "crypto-data" if "/" in value.symbol else "market-data"
        self.publish(topic, *encode_bar(value, epoch="e1", seq=self.next_seq(topic)))

    def publish_mark(self, topic: str, number: int, bars: int, *, last: bool = False) -> None:
        mark = Watermark(slice=number, end_ns=START_NS + number * MINUTE_NS, bars=bars, last=last)
        self.publish(topic, *encode_watermark(mark, epoch="e1", seq=self.next_seq(topic)))

    def next_seq(self, topic: str) -> int:
        self._seq[topic] = self._seq.get(topic, 0) + 1
        return self._seq[topic]

    def subscriptions(self) -> list[str]:
        found = self._subscriber.list_subscriptions(project=f"projects/{PROJECT}")
        return sorted(each.name.rpartition("/")[2] for each in found)

    def close(self) -> None:
        self._publisher.stop()
        self._channel.close()


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> Iterator[Market]:
    monkeypatch.delenv("AGENT_ID", raising=False)
    names = ("market-data", "crypto-data", "news-data", "my-topic")
    pubsub = EmbeddedPubSub(topics=[f"projects/{PROJECT}/topics/{name}" for name in names])
    pubsub.start()
    found = Market(pubsub)
    try:
        yield found
    finally:
        for run in found.runs:
            run.abandon()
        found.close()
        pubsub.stop()


class Recorder(bt.Strategy):
    """Writes down what it is told; stops the run when `until` says so."""

    params = (("events", None), ("until", lambda events: False))

    def _note(self, event: tuple[Any, ...]) -> None:
        self.p.events.append(event)
        if self.p.until(self.p.events):
            self.env.runstop()

    def notify_data(self, data: Any, status: int, *args: Any, **kwargs: Any) -> None:
        self._note(("status", data._name, data._getstatusname(status)))

    def notify_store(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self._note(("store", msg, *args))

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        seen = [
            f"{data._name}@{(data.datetime.datetime(0) - OPEN).total_seconds() / 60:g}={data.close[0]:g}"
            for data in self.datas
            if len(data)
        ]
        self._note(("next", *seen))


class Run:
    """A stock Cerebro in a thread of its own."""

    def __init__(
        self,
        market: Market,
        symbols: tuple[str, ...] = ("A", "BTC/USD"),
        *,
        until: Callable[[list[Any]], bool] = lambda events: False,
        **settings: Any,
    ) -> None:
        settings = {"project_id": PROJECT, "endpoint": market.pubsub.target, "grace_s": 30.0} | settings
        topics = {settings.get("topic_name", "/" in symbol) for symbol in symbols}
        self._subscriptions = len(topics) + ("news_topic" in settings)
        self.events: list[Any] = []
        self.cerebro = bt.Cerebro(stdstats=False)
        self.feeds = [PubSubMarketDataFeed(symbol=symbol, **settings) for symbol in symbols]
        for feed in self.feeds:
            self.cerebro.adddata(feed, name=feed.symbol)
        self.cerebro.addstrategy(Recorder, events=self.events, until=until)
        self.error: BaseException | None = None
        self._market = market
        self._thread = threading.Thread(target=self._run, name="stock cerebro", daemon=True)
        market.runs.append(self)

    def _run(self) -> None:
        try:
            self.cerebro.run()
        except BaseException as error:
            self.error = error

    def start(self) -> Run:
        self._thread.start()
        # What is published before a subscription is there does not reach it.
        wait_until(lambda: len(self._market.subscriptions()) >= self._subscriptions or self.error is not None)
        if self.error is not None:
            raise self.error
        return self

    def join(self, timeout_s: float = 60.0) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the run goes on: {self.events}"
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self.cerebro.runstop()
        self.join()

    def abandon(self) -> None:
        """End what a failed test has left."""
        self.cerebro.runstop()
        if self._thread.ident is not None:
            self._thread.join(60)

    def nexts(self) -> list[tuple[str, ...]]:
        return [tuple(event[1:]) for event in self.events if event[0] == "next"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not true within {timeout_s} s"
        time.sleep(0.005)


def test_each_minute_of_both_feeds_comes_in_one_next_and_the_last_watermark_ends_the_run(market: Market) -> None:
    run = Run(market).start()
    for minute in (1, 2, 3):
        market.publish_bar(bar("BTC/USD", minute, 100 + minute))
        market.publish_mark("crypto-data", minute, 1, last=minute == 3)
        market.publish_bar(bar("A", minute, minute))
        market.publish_mark("market-data", minute, 1, last=minute == 3)
    run.join()
    assert run.nexts() == [
        ("A@1=1", "BTC/USD@1=101"),
        ("A@2=2", "BTC/USD@2=102"),
        ("A@3=3", "BTC/USD@3=103"),
    ]
    statuses = [event for event in run.events if event[0] == "status"]
    assert statuses == [("status", name, status) for status in ("DELAYED", "LIVE") for name in ("A", "BTC/USD")]
    assert run.events.index(("status", "BTC/USD", "LIVE")) < run.events.index(("next", *run.nexts()[0]))
    assert market.subscriptions() == []


def test_without_watermarks_a_minute_waits_for_both_and_then_for_the_grace(market: Market) -> None:
    run = Run(market, grace_s=3.0, until=lambda events: events[-1][:2] == ("next", "A@3=3")).start()
    market.publish_bar(bar("A", 1))
    wait_until(lambda: len(run.nexts()) == 1)  # the grace has passed: there are no watermarks and no BTC/USD
    market.publish_bar(bar("A", 2))
    market.publish_bar(bar("BTC/USD", 2, 5))
    wait_until(lambda: len(run.nexts()) == 2)
    market.publish_bar(bar("BTC/USD", 3, 6))
    market.publish_bar(bar("A", 3, 3))
    run.join()
    assert run.nexts() == [("A@1=1",), ("A@2=1", "BTC/USD@2=5"), ("A@3=3", "BTC/USD@3=6")]


def test_duplicate_reordered_malformed_and_foreign_messages_do_no_harm(market: Market) -> None:
    run = Run(market, ("A",)).start()
    wait_until(lambda: run.feeds[0]._shared is not None)
    shared = run.feeds[0]._shared
    assert shared is not None
    encoded = [encode_bar(bar("A", minute, minute), epoch="e1", seq=minute) for minute in (1, 2, 3)]
    for place in (0, 2, 1, 1, 0):
        market.publish("market-data", *encoded[place])
    market.publish("market-data", b"{", {"symbol": "A"})
    market.publish("market-data", b'{"open":"nan","high":1,"low":1,"close":1}', {"symbol": "A"})
    market.publish("market-data", *encode_bar(bar("OTHER", 1)))
    market._seq["market-data"] = 3
    market.publish_mark("market-data", 3, 1, last=True)
    run.join()
    assert run.nexts() == [("A@1=1",), ("A@2=2",), ("A@3=3",)]
    counters = shared._source.counters()
    expected = {
        "messages": 9, "duplicate_messages": 2, "dropped_not_json": 1, "dropped_non_finite_price": 1,
        "unwanted_bars": 1, "bars": 3,
    }  # fmt: skip
    assert {name: counters[name] for name in expected} == expected


def test_extra_fields_are_lines(market: Market) -> None:
    found: list[Any] = []

    class Reader(bt.Strategy):
        def __init__(self) -> None:
            self.mean = bt.ind.SMA(self.data.sentiment_score, period=2)

        def next(self) -> None:
            found.append(
                (self.data.sentiment_score[0], self.mean[0], self.data.rsi[0], hasattr(self.data.lines, "rsi"))
            )

    cerebro = bt.Cerebro(stdstats=False)
    feed = PubSubMarketDataFeed(
        symbol="A", project_id=PROJECT, endpoint=market.pubsub.target, extra_fields=("sentiment_score",)
    )
    cerebro.adddata(feed)
    cerebro.addstrategy(Reader)
    runner = threading.Thread(target=cerebro.run, daemon=True)
    runner.start()
    wait_until(lambda: bool(market.subscriptions()))
    for minute in (1, 2):
        market.publish_bar(bar("A", minute, extra={"sentiment_score": minute / 10, "rsi": 50.0 + minute}))
        market.publish_mark("market-data", minute, 1, last=minute == 2)
    runner.join(60)
    assert found == [(0.2, pytest.approx(0.15), 52.0, True)]


def test_minutes_are_resampled_as_in_a_backtest(market: Market) -> None:
    run = Run(market, ("A",))
    clone = run.cerebro.resampledata(run.feeds[0], timeframe=bt.TimeFrame.Minutes, compression=5, name="A@5m")
    run.start()
    for minute in range(1, 11):
        market.publish_bar(bar("A", minute, minute))
        market.publish_mark("market-data", minute, 1, last=minute == 10)
        wait_until(lambda: len(run.nexts()) == minute)  # noqa: B023 - called at once
        time.sleep(0.05)  # idle turns, in which Backtrader looks whether a bar is over by the clock
    run.join()
    assert len(run.nexts()) == 10
    fives = [event for event in run.nexts() if len(event) == 2]
    assert fives[0] == ("A@5=5", "A@5m@5=5")
    assert fives[-1] == ("A@10=10", "A@5m@10=10")
    assert [event[1] for event in fives] == ["A@5m@5=5"] * 5 + ["A@5m@10=10"]
    assert clone.volume.array[0] == 50


def test_news_reaches_notify_store(market: Market) -> None:
    run = Run(market, ("A",), news_topic="news-data", until=lambda events: events[-1][0] == "store").start()
    market.publish("news-data", *encode_news(News(symbols=("A",), headline="h")))
    run.join()
    _, msg, news = run.events[-1]
    assert msg == "news"
    assert news.headline == "h"


def test_a_feed_may_have_a_topic_of_its_own(market: Market) -> None:
    run = Run(market, ("A",), topic_name="my-topic", agent_id=None, grace_s=0.1).start()
    assert [name.split("-", 3)[3] for name in market.subscriptions()] == ["my-topic"]
    market.publish("my-topic", *encode_bar(bar("A", 1)))
    wait_until(lambda: len(run.nexts()) == 1)
    run.stop()


def test_waiting_costs_next_to_no_cpu_also_with_one_symbol_live_and_one_silent(market: Market) -> None:
    run = Run(market, ("A", "BTC/USD", "B"), grace_s=0.1).start()
    market.publish_bar(bar("A", 1))
    wait_until(lambda: len(run.nexts()) == 1)
    cpu, begun = time.process_time(), time.monotonic()
    time.sleep(2.0)  # the measurement itself
    share = (time.process_time() - cpu) / (time.monotonic() - begun)
    run.stop()
    assert share < 0.04, f"{share:.1%} of a core"


def test_a_bar_of_one_of_many_symbols_is_not_held_up_by_the_silent_ones(market: Market) -> None:
    run = Run(market, tuple(f"S{number}" for number in range(30)), grace_s=0.05).start()
    waits: list[float] = []
    while len(waits) < 10 or (min(waits) >= 0.3 and len(waits) < 60):  # a machine under load may be late by more
        begun = time.monotonic()
        market.publish_bar(bar("S29", len(waits) + 1))
        wait_until(lambda: len(run.nexts()) > len(waits))
        waits.append(time.monotonic() - begun)
    run.stop()
    assert min(waits) < 0.3  # Backtrader's usual way of waiting makes each 0.5 s and more


def test_a_second_process_with_the_same_agent_id_is_refused(market: Market, tmp_path: Path) -> None:
    run = Run(market, ("A",), agent_id="a1", state_dir=tmp_path / "one", grace_s=0.1).start()
    assert market.subscriptions() == ["agent-a1-market-data"]
    script = (
        "import sys, backtrader as bt\n"
        "from dry_work import PubSubMarketDataFeed\n"
        "cerebro = bt.Cerebro(stdstats=False)\n"
        "cerebro.adddata(PubSubMarketDataFeed(symbol='A', project_id='demo', agent_id='a1', state_dir=sys.argv[1],\n"
        "                                     endpoint=sys.argv[2]))\n"
        "cerebro.addstrategy(bt.Strategy)\n"
        "cerebro.run()\n"
    )
    for state_dir, words in (("one", "is in use by process"), ("two", "belongs to another process")):
        second = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / state_dir), market.pubsub.target],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert words in second.stderr
        assert "LeaseHeldError" in second.stderr
    market.publish_bar(bar("A", 1))
    wait_until(lambda: len(run.nexts()) == 1)
    run.stop()
    assert market.subscriptions() == []
    again = Run(market, ("A",), agent_id="a1", state_dir=tmp_path / "one").start()
    again.stop()


def test_the_same_agent_id_twice_in_one_process_is_refused(market: Market, tmp_path: Path) -> None:
    first = Run(market, ("A",), agent_id="a1", state_dir=tmp_path).start()
    second = Run(market, ("A",), agent_id="a1", state_dir=tmp_path)
    second._thread.start()
    with pytest.raises(LeaseHeldError):
        second.join()
    first.stop()


def test_a_subscription_that_is_taken_over_ends_the_run_with_an_error(
    market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dry_work.feeds.subscriptions.GONE_WAIT_S", 3.0)  # so that the other one is first
    run = Run(market, ("A",), agent_id="a1", state_dir=tmp_path, grace_s=0.1).start()
    market.publish_bar(bar("A", 1))
    wait_until(lambda: len(run.nexts()) == 1)  # its stream is open, and ends with the subscription
    name = f"projects/{PROJECT}/subscriptions/agent-a1-market-data"
    market._subscriber.delete_subscription(subscription=name)
    market._subscriber.create_subscription(
        request={
            "name": name,
            "topic": f"projects/{PROJECT}/topics/market-data",
            "labels": {"dry-work-owner": "somebody-else"},
        }
    )
    with pytest.raises(FeedError, match="was taken over"):
        run.join()


def test_a_run_that_raised_leaves_nothing_in_the_way_of_the_next(market: Market, tmp_path: Path) -> None:
    def fail(events: list[Any]) -> bool:
        if events[-1][0] == "next":
            raise RuntimeError("mine")
        return False

    run = Run(market, ("A",), agent_id="a1", state_dir=tmp_path, until=fail).start()
    market.publish_bar(bar("A", 1))
    market.publish_mark("market-data", 1, 1)
    with pytest.raises(RuntimeError, match="mine"):
        run.join()
    run.cerebro.strats.clear()
    run.cerebro.addstrategy(Recorder, events=run.events)
    run.error = None
    run._thread = threading.Thread(target=run._run, daemon=True)
    run.start()
    wait_until(lambda: run.events[-1] == ("status", "A", "DELAYED"))
    market.publish_bar(bar("A", 2, 2))
    market.publish_mark("market-data", 2, 1, last=True)
    run.join()
    assert run.nexts()[-1] == ("A@2=2",)
    assert market.subscriptions() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project_id": "other"}, "project_id of B is 'other' and of A 'demo'"),
        ({"compression": 5}, "bars of B have 300 s and of A 60 s"),
    ],
)
def test_feeds_that_cannot_share_a_source_are_refused(market: Market, change: dict[str, Any], message: str) -> None:
    cerebro = bt.Cerebro(stdstats=False)
    settings = {"project_id": PROJECT, "endpoint": market.pubsub.target}
    cerebro.adddata(PubSubMarketDataFeed(symbol="A", **settings))
    cerebro.adddata(PubSubMarketDataFeed(symbol="B", **(settings | change)))
    cerebro.addstrategy(bt.Strategy)
    with pytest.raises(ConfigError, match=message):
        cerebro.run()


def test_a_feed_without_a_project_is_refused(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    run = Run(market, ("A",), project_id=None)
    run._thread.start()
    with pytest.raises(ConfigError, match="set GOOGLE_CLOUD_PROJECT"):
        run.join()


def test_topics_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARKET_DATA_TOPIC", raising=False)
    monkeypatch.delenv("CRYPTO_DATA_TOPIC", raising=False)
    stock, crypto = PubSubMarketDataFeed(symbol="A"), PubSubMarketDataFeed(symbol="BTC/USD")
    assert (stock.topic, crypto.topic) == ("market-data", "crypto-data")
    monkeypatch.setenv("MARKET_DATA_TOPIC", "m")
    monkeypatch.setenv("CRYPTO_DATA_TOPIC", "c")
    assert (stock.topic, crypto.topic) == ("m", "c")


def test_no_extra_field_has_the_name_of_an_attribute_of_the_feed() -> None:
    feed = PubSubMarketDataFeed(symbol="A")
    names = {name for name in (*dir(feed), *vars(feed)) if not name.startswith("_")}
    assert [name for name in sorted(names) if is_extra_name(name)] == []
