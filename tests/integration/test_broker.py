"""The broker at the real simulated exchange, in lock-step: what a strategy hears equals what BackBroker tells."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import backtrader as bt
import pytest
from aiohttp import web
from websockets.sync.client import connect

from dry_work.alpaca.simulated import ExchangeControl
from dry_work.alpaca.trading import TradingApi
from dry_work.broker.journal import Journal
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.engine.live import LiveCerebro
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.exchange.venue import RuleSet
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Bar, Slice
from dry_work.orders.model import OrderStatus
from dry_work.ports import SourceEvent, SourceFailed
from dry_work.wakeup import Wakeup
from dry_work.wire.alpaca_stream import StreamWatermark, parse_frame
from tests.e2e.stock import GuardedBroker
from tests.unit.engine.sources import RecordedBars

SYMBOLS = ("SPY", "BAC")
MINUTES = 60
LATE_S = 4.0  # of an answer that nobody waits for any more


class SocketSource:
    """Slices straight from the exchange's market-data WebSocket."""

    def __init__(self, url: str, symbols: tuple[str, ...], path: str = "v2/iex") -> None:
        self._url, self._symbols = f"{url}/{path}", symbols
        self._slices: deque[SourceEvent] = deque()
        self.is_subscribed = threading.Event()

    def start(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._thread = threading.Thread(target=self._read, name="socket source", daemon=True)
        self._thread.start()
        assert self.is_subscribed.wait(60)

    def _read(self) -> None:
        try:
            with connect(self._url, proxy=None) as self._socket:
                self._say({"action": "auth", "key": "KEY", "secret": "SECRET"})
                self._say({"action": "subscribe", "bars": list(self._symbols), "watermarks": ["*"]})
                self._socket.recv()
                self.is_subscribed.set()
                self._take_all()
        except Exception as error:
            self._slices.append(SourceFailed(error=error))
            self._wakeup.set()

    def _say(self, message: Mapping[str, Any]) -> None:
        self._socket.recv()
        self._socket.send(json.dumps(message))

    def _take_all(self) -> None:
        bars: list[Bar] = []
        number = 0
        for frame in self._socket:
            for item in parse_frame(frame, recv_ns=0):
                if isinstance(item, Bar):
                    bars.append(item)
                elif isinstance(item, StreamWatermark) and item.slice > number:
                    number, found = item.slice, tuple(bars)
                    bars = []
                    self._slices.append(
                        Slice(end_ns=item.end_ns, bars=found, number=number, event_id=item.event_id, last=item.last)
                    )
                    self._wakeup.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._socket.close()
        self._thread.join(timeout_s)

    def take(self) -> SourceEvent | None:
        return self._slices.popleft() if self._slices else None

    def wait_s(self) -> float | None:
        return None

    def counters(self) -> Mapping[str, int]:
        return {}


class Told(bt.Analyzer):
    """Everything that the strategy hears, with references counted from 0, and cash and value in each `next`."""

    def start(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self._first: int | None = None

    def notify_order(self, order: Any) -> None:
        self._first = order.ref if self._first is None else self._first
        executed = order.executed
        self.rows.append(
            (
                "order",
                order.ref - self._first,
                order.getstatusname(),
                *(round(float(value), 6) for value in (executed.size, executed.price, executed.value, executed.pnl)),
                round(executed.dt or 0.0, 6),
            )
        )

    def notify_trade(self, trade: Any) -> None:
        self.rows.append(("trade", trade.size, round(trade.price, 6), round(trade.pnl, 6), trade.isclosed))

    def next(self) -> None:
        broker = self.strategy.broker
        sizes = tuple(self.strategy.getposition(data).size for data in self.strategy.datas)
        self.rows.append(("next", len(self.strategy), sizes, round(broker.getcash(), 4), round(broker.getvalue(), 4)))


def run_broker(
    recording: Recording,
    strategy: type[Any],
    tmp_path: Path,
    *,
    url: Callable[[ExchangeServer], str] = lambda exchange: exchange.url,
    rules: RuleSet = "backtrader",
    speed: float | None = None,
    broker_rules: str | None = None,
    **params: Any,
) -> tuple[list[Any], Any, dict[str, Any]]:
    """Run the strategy at an exchange of its own; return what it heard, the broker, and the exchange's session."""
    exchange = ExchangeServer(recording, rules=rules, speed=speed, consumers=1)
    exchange.start()
    # BackBroker knows no limits: what is compared with it has none.
    params.setdefault("risk", None)
    journal = Journal(tmp_path / "orders.sqlite")
    wakeup = Wakeup()
    source = SocketSource(exchange.stream_url, recording.symbols)
    broker = AlpacaPaperTradingBroker(
        api_key="KEY", secret_key="SECRET", url_override=url(exchange), journal=journal, agent="tester", session="s",
        stream_url_override=f"{exchange.stream_url}/stream", wakeup=wakeup, lockstep=speed is None, rules=broker_rules,
        **params,
    )  # fmt: skip

    def check() -> None:
        if broker.failure is not None:
            raise broker.failure

    cerebro = LiveCerebro(source=source, wakeup=wakeup, lockstep=speed is None, check=check)
    try:
        source.start(wakeup)
        for symbol in recording.symbols:
            cerebro.adddata(LiveFeed(symbol=symbol), name=symbol)
        cerebro.setbroker(broker)
        cerebro.addstrategy(strategy)
        cerebro.addanalyzer(Told, _name="told")
        api = TradingApi("KEY", "SECRET", url=exchange.url)
        control = ExchangeControl(api)
        cerebro.on_ready = lambda: control.register("tester", recording.symbols)
        [ran] = cerebro.run()
        api.close()
        return ran.analyzers.told.rows, broker, exchange.describe()
    finally:
        broker.stop()
        source.stop()
        journal.close()
        exchange.stop()


def run_backtest(recording: Recording, strategy: type[Any]) -> list[Any]:
    cerebro = bt.Cerebro(stdstats=False, preload=False, runonce=False)
    cerebro.setbroker(GuardedBroker())
    cerebro.broker.setcash(100_000.0)
    for symbol in recording.symbols:
        cerebro.adddata(RecordedBars(bars=recording.bars(symbol)), name=symbol)
    cerebro.addstrategy(strategy)
    cerebro.addanalyzer(Told, _name="told")
    [ran] = cerebro.run()
    return list(ran.analyzers.told.rows)


class EveryKind(bt.Strategy):
    """Random orders of every kind that this version sends, and cancellations, the same in every run."""

    def __init__(self) -> None:
        self.random = random.Random(4)
        self.placed: list[Any] = []

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        rng = self.random
        for data in self.datas:
            choice = rng.random()
            side = rng.choice((self.buy, self.sell))
            kind = rng.choice((bt.Order.Market, bt.Order.Limit, bt.Order.Stop, bt.Order.StopLimit))
            size = rng.choice((1, 7, 40, 300, 2500))
            offset, wider = rng.uniform(-0.004, 0.004), rng.uniform(-0.002, 0.002)
            day = rng.random() < 0.3
            if not len(data) or choice > 0.5:
                continue
            price = round(data.close[0] * (1 + offset), 2)
            self.placed.append(
                side(
                    data=data, size=size, exectype=kind, price=None if kind == bt.Order.Market else price,
                    plimit=round(price * (1 + wider), 2) if kind == bt.Order.StopLimit else None,
                    valid=bt.Order.DAY if day else None,
                )
            )  # fmt: skip
        alive = [order for order in self.placed if order.alive()]
        if alive and rng.random() < 0.4:
            # Of those that are accepted: what was ordered in this `next` cannot be canceled in either world.
            accepted = [order for order in alive if order.status == bt.Order.Accepted]
            if accepted:
                self.cancel(rng.choice(accepted))


def flatten(row: tuple[Any, ...]) -> list[Any]:
    return [item for part in row for item in (part if isinstance(part, tuple) else (part,))]


def test_every_kind_of_order_lives_as_with_backbroker(tmp_path: Path) -> None:
    recording = synthetic_day(SYMBOLS, minutes=150)
    heard, broker, session = run_broker(recording, EveryKind, tmp_path)
    expected = run_backtest(recording, EveryKind)
    for place, (ours, theirs) in enumerate(zip(heard, expected, strict=False)):
        assert flatten(ours) == pytest.approx(flatten(theirs), abs=2e-6), f"row {place}: {ours} instead of {theirs}"
    assert len(heard) == len(expected)
    told = {row[2] for row in heard if row[0] == "order"}
    assert told >= {"Submitted", "Accepted", "Completed", "Canceled", "Margin"}
    orders, fills = broker.results()
    assert len(orders) == session["orders"] == broker.order_count
    assert len(fills) == session["fills"]
    assert {order["type"] for order in orders} == {"market", "limit", "stop", "stop_limit"}
    assert {order["status"] for order in orders} <= {status.value for status in OrderStatus}
    assert broker.counters == {}


def test_two_runs_are_equal(tmp_path: Path) -> None:
    recording = synthetic_day(SYMBOLS, minutes=40)
    found = []
    for name in ("first", "second"):
        heard, broker, _ = run_broker(recording, EveryKind, tmp_path / name)
        found.append((heard, broker.results()))
    assert found[0] == found[1]


class OneOrder(bt.Strategy):
    def next(self) -> None:
        if len(self) == 3:
            self.buy(data=self.datas[0], size=10)


class Proxy:
    """Stands before the exchange and loses the answer to the first submit, or the request itself."""

    def __init__(self, upstream: str, lose: str) -> None:
        self._upstream, self._lose = upstream, lose
        self.submits: list[int] = []
        self.look_ups = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)
        self._thread.start()
        assert self._started.wait(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as self._client:
            self._started.set()
            await self._ended.wait()
        await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        is_submit = request.method == "POST" and request.path == "/v2/orders"
        self.look_ups += request.path.startswith("/v2/orders:by")
        body = await request.read()
        first = is_submit and not self.submits
        if is_submit:
            self.submits.append(1)
        if first and self._lose == "request":
            await asyncio.sleep(LATE_S)
        kept = ("APCA-API-KEY-ID", "APCA-API-SECRET-KEY", "Content-Type")
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        if first and self._lose == "request":
            return web.Response(status=504)
        async with self._client.request(
            request.method, self._upstream + request.path_qs, data=body, headers=headers
        ) as answer:
            content = await answer.read()
            if first:
                await asyncio.sleep(LATE_S)  # the answer comes after the client has given up
            return web.Response(status=answer.status, body=content, content_type="application/json")


@pytest.mark.parametrize(("lose", "submits"), [("answer", 1), ("request", 2)])
def test_a_submit_that_timed_out_makes_exactly_one_order(tmp_path: Path, lose: str, submits: int) -> None:
    proxies: list[Proxy] = []

    def through_proxy(exchange: ExchangeServer) -> str:
        proxies.append(Proxy(exchange.url, lose))
        return proxies[0].url

    recording = synthetic_day(("SPY",), minutes=10)
    try:
        heard, _, session = run_broker(recording, OneOrder, tmp_path, url=through_proxy, request_timeout_s=LATE_S / 2)
    finally:
        proxies[0].stop()
    assert session["orders"] == session["fills"] == 1
    assert len(proxies[0].submits) == submits
    assert proxies[0].look_ups >= 1
    assert [row[2] for row in heard if row[0] == "order"] == ["Submitted", "Accepted", "Completed"]
    assert heard == run_backtest(recording, OneOrder)


class Refused(bt.Strategy):
    def next(self) -> None:
        if len(self) == 2:
            self.order = self.buy(
                data=self.datas[0], size=10, exectype=bt.Order.StopTrailLimit, trailamount=1.0, plimit=1.0
            )


def test_a_refused_kind_never_reaches_the_exchange(tmp_path: Path) -> None:
    heard, broker, session = run_broker(synthetic_day(("SPY",), minutes=5), Refused, tmp_path)
    assert session["orders"] == 0
    assert [row[2] for row in heard if row[0] == "order"] == ["Rejected"]
    assert broker.results()[0][0]["status"] == "rejected"


class TwoOrders(bt.Strategy):
    def next(self) -> None:
        if len(self) == 3:
            self.small = self.buy(data=self.datas[0], size=10)
            self.large = self.buy(data=self.datas[0], size=1_000_000)


@pytest.mark.parametrize("speed", [None, 120.0])
def test_under_alpacas_rules_orders_live_with_and_without_lock_step(tmp_path: Path, speed: float | None) -> None:
    recording = synthetic_day(("SPY",), minutes=8)
    heard, broker, session = run_broker(recording, TwoOrders, tmp_path, rules="alpaca", speed=speed)
    told = [(row[1], row[2]) for row in heard if row[0] == "order"]
    assert [status for ref, status in told if ref == 0] == ["Submitted", "Accepted", "Completed"]
    assert [status for ref, status in told if ref == 1] == ["Submitted", "Margin"]
    assert session["fills"] == 1
    [fill] = broker.results()[1]
    assert broker.getcash() == pytest.approx(100_000 - 10 * float(fill["price"]))
    assert broker.position_of("SPY") == 10


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = threading.Event()
    for _ in range(6_000):
        if not set(threading.enumerate()) - before:
            return
        deadline.wait(0.01)
    assert set(threading.enumerate()) <= before
