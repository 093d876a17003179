"""One hub as a process, in front of a scripted upstream and the simulated exchange, with real servers beside it.

Market data are trades and bars that count up, so that what is missing or comes twice shows. Orders are placed at the
exchange, past the hub: each has a known life of two events, or more when it is filled in parts.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import requests
from websockets.exceptions import ConnectionClosed

from dry_work.embedded.nats_server import EmbeddedNats
from dry_work.embedded.valkey_server import EmbeddedValkey
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.wire.pubsub import encode_time, parse_time
from tests.faults.hub_clients import BARS, ORDERS, SYMBOL, TRADES, Addresses, EventLoop, Listener, OrderKey, build_fleet
from tests.faults.hub_trader import NatsTrader
from tests.integration.alpaca_upstream import KEY, SECRET, Upstream
from tests.ports import find_free_port

DEADLINE_S = 60.0
PAIR = "BTC/USD"
SPEED = 20.0  # of the exchange: its day is a third of an hour
TRADE_EVERY_S = 0.02
BAR_EVERY = 5
ORDER_EVERY_S = 0.08
SINKS = ("websocket", "grpc", "nats", "redis", "pubsub")
ENDED = frozenset(("filled", "canceled", "expired", "rejected", "replaced"))


def until(condition: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = DEADLINE_S) -> Any:
    """Wait for a condition; return what it gives."""
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)
    return found


class Child:
    """`dry-work ARGS` as a process; its output goes to a file."""

    def __init__(self, *args: str, folder: Path, log: str, env: dict[str, str]) -> None:
        self.log = folder / log
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "TZ") if name in os.environ}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dry_work", *args],
                cwd=folder,
                env={**inherited, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._from = self.log.stat().st_size

    @property
    def output(self) -> str:
        """What it has written since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            assert self.process.poll() is None, f"it has ended:\n{self.output[-3000:]}"
            return re.search(pattern, self.output)

        found: re.Match[str] = until(look, lambda: f"{pattern}:\n{self.output[-3000:]}")
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        """End it as an operator does; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class MarketLoad:
    """Trades and bars that count up, for as long as somebody is subscribed."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.number = 0  # of the last trade
        self.bar = 0
        self.may_send = threading.Event()
        self.may_send.set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="market-load")
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(TRADE_EVERY_S):
            if not self.may_send.is_set():
                continue
            number = self.number + 1
            stamp = f"2024-06-11T14:{number // 60_000 % 60:02}:{number // 1000 % 60:02}.{number % 1000:03}Z"
            items: list[dict[str, Any]] = [
                {"T": "t", "S": SYMBOL, "i": number, "x": "V", "p": number, "s": 1, "c": ["@"], "z": "C", "t": stamp},
                {"T": "q", "S": SYMBOL, "bx": "V", "bp": 1, "bs": 1, "ax": "N", "ap": 2, "as": 2, "t": stamp},
            ]
            if number % BAR_EVERY == 0:
                items.append(build_bar(self.bar + 1))
            with contextlib.suppress(ConnectionClosed):
                self._upstream.send(items)
            self.bar += number % BAR_EVERY == 0
            self.number = number

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(DEADLINE_S)


def build_bar(number: int) -> dict[str, Any]:
    """Return a bar whose prices are its number."""
    day, minute = divmod(number, 1_440)
    stamp = f"2024-{1 + day // 28 % 12:02}-{1 + day % 28:02}T{minute // 60:02}:{minute % 60:02}:00Z"
    prices = dict.fromkeys(("o", "h", "l", "c", "vw"), number)
    return {"T": "b", "S": SYMBOL, **prices, "v": 10, "n": 1, "t": stamp}


class OrderLoad:
    """Orders at the exchange: most rest and are canceled, every fifth is a market order."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self.number = 0
        self.may_send = threading.Event()
        self.may_send.set()
        self._is_idle = threading.Event()
        self._is_over = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="order-load")
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(ORDER_EVERY_S):
            if not self.may_send.is_set():
                self._is_idle.set()
                continue
            self._is_idle.clear()
            try:
                self._send(self.number + 1)
            except Exception as error:
                self.failure = error
                return
            self.number += 1

    def _send(self, number: int) -> None:
        order = {"symbol": PAIR, "qty": "0.001", "time_in_force": "gtc", "client_order_id": f"load-{number}"}
        if number % 5 == 0:
            self._ask("POST", "/v2/orders", json={**order, "qty": "0.0002", "side": "buy", "type": "market"})
            return
        sent = self._ask("POST", "/v2/orders", json={**order, "side": "buy", "type": "limit", "limit_price": "20000"})
        self._ask("DELETE", f"/v2/orders/{sent['id']}")

    def pause(self) -> None:
        """Return once no request is under way."""
        self.may_send.clear()
        self._is_idle.clear()
        until(lambda: self._is_idle.is_set() or self.failure, "the orders rest")

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(DEADLINE_S)


class World:
    """Everything, with fifty listeners.

    Args:
        variables: further ones of the hub's.
        with_orders: orders are placed all the time.
    """

    def __init__(
        self, folder: Path, *, variables: dict[str, str] | None = None, with_orders: bool = True, fleet: bool = True
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.nats = EmbeddedNats(folder=folder / "nats")
        self.redis = EmbeddedValkey(folder=folder / "valkey")
        self.upstream = Upstream()
        self.upstream.offers_watermarks = False
        self.exchange = ExchangeServer(
            synthetic_day([PAIR, SYMBOL], seed=1, minutes=1_440), rules="alpaca", speed=SPEED, consumers=0
        )
        self.loop = EventLoop("listeners")
        self.hub: Child | None = None
        self.pubsub: Child | None = None
        self.pubsub_port = 0
        self.listeners: list[Listener] = []
        self._variables = variables or {}
        self._closers: list[Callable[[], Any]] = [self.loop.close, self.upstream.close, self._stop_children]
        self.ports = find_ports("websocket", "grpc", "health", "metrics")
        try:
            self._start(with_orders=with_orders, fleet=fleet)
        except BaseException:
            self.close()
            raise

    def _start(self, *, with_orders: bool, fleet: bool) -> None:
        self.nats.start()
        self._closers.append(self.nats.close)
        self.redis.start()
        self._closers.append(self.redis.close)
        self.exchange.start()
        self._closers.append(self.exchange.stop)
        self.account_id = str(self.ask("GET", "/v2/account")["id"])
        self.start_pubsub()
        self.start_hub()
        self.at = Addresses(
            websocket=self.ports["websocket"],
            grpc=self.ports["grpc"],
            nats=self.nats.port,
            redis=self.redis.port,
            pubsub=self.pubsub_port,
        )
        if fleet:
            self.listeners = build_fleet(self.at, self.account_id)
            for number, listener in enumerate(self.listeners):
                self.loop.start(lambda listener=listener, seed=number: listener.run(random.Random(seed)))  # type: ignore[misc]
        self.market = MarketLoad(self.upstream)
        self._closers.insert(0, self.market.close)
        self.wait_listening()
        self.orders = OrderLoad(self.ask)
        self.trader = NatsTrader(self.nats.port)
        self.loop.start(lambda: self.trader.run(random.Random(1)))
        self._closers.insert(0, self.orders.close)
        if not with_orders:
            self.orders.may_send.clear()
            self.trader.may_send.clear()

    # --- parts

    def start_hub(self) -> None:
        """Start the hub, and wait until it has what it needs."""
        ports = self.ports
        variables = {
            "ALPACA_API_KEY": KEY,
            "ALPACA_SECRET_KEY": SECRET,
            "ALPACA_URL": self.exchange.url,
            "ALPACA_STREAM_URL": self.upstream.url,
            "GOOGLE_CLOUD_PROJECT": "demo",
            "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{self.pubsub_port}",
            "HUB_SYMBOLS": SYMBOL,
            "HUB_SINKS": ",".join(SINKS),
            "HUB_STATE_DIR": "state",
            "PROXY_PORT": str(ports["websocket"]),
            "STREAM_PROXY_GRPC_PORT": str(ports["grpc"]),
            "STREAM_PROXY_HEALTH_PORT": str(ports["health"]),
            "STREAM_PROXY_METRICS_PORT": str(ports["metrics"]),
            "DISABLE_HEALTH": "true",
            "NATS_URL": self.nats.url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.redis.port),
            "ENABLE_ORDERS": "true",
            "ENABLE_CANCELER": "true",
            "ENABLE_TRADE_UPDATER": "true",
            "ENABLE_STOCK_STREAM": "true",
            "STOCK_STREAM_SYMBOLS": SYMBOL,
            "OTEL_ENABLED": "false",
            **self._variables,
        }
        self.hub = Child("hub", folder=self.folder, log="hub.log", env=variables)
        self.hub.wait_for_line(r"orders\.paper: connected")

    def start_pubsub(self) -> None:
        """Start Pub/Sub, at the same port as before."""
        port = str(self.pubsub_port)
        self.pubsub = Child("pubsub", "--port", port, folder=self.folder, log="pubsub.log", env={})
        found = self.pubsub.wait_for_line(r"PUBSUB_EMULATOR_HOST=127\.0\.0\.1:(\d+)")
        self.pubsub_port = int(found[1])

    def _stop_children(self) -> None:
        for child in (self.hub, self.pubsub):
            if child is not None:
                child.kill()

    def stop_hub(self) -> str:
        """Stop the hub in order; return what it has written."""
        assert self.hub is not None
        code = self.hub.stop()
        assert code == 0, (code, self.hub.output[-3000:])
        return self.hub.output

    def close(self) -> None:
        """End everything. May be called twice."""
        closers, self._closers = self._closers, []
        for close in closers:
            close()

    # --- the exchange

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """Ask the exchange, past the hub."""
        headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
        answer = requests.request(method, self.exchange.url + path, headers=headers, timeout=30, **more)
        if method == "DELETE" and answer.status_code in (404, 422):  # it was filled, or is not there any more
            return None
        assert answer.ok, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def set_fault(self, **fault: Any) -> None:
        """Let something go wrong at the exchange until `clear_faults`."""
        self.ask("POST", "/dry-work/v1/faults", json={"times": None, **fault})

    def reset_orders(self) -> None:
        """Let the exchange reset the stream of order updates, once, with its next frame."""
        self.ask("POST", "/dry-work/v1/faults", json={"on": "trades", "kind": "reset", "times": 1})

    def clear_faults(self) -> None:
        self.ask("DELETE", "/dry-work/v1/faults")

    def list_orders(self) -> list[dict[str, Any]]:
        """Return all orders there ever were."""
        found: dict[str, dict[str, Any]] = {}
        until_time = ""
        while True:
            more = f"&until={until_time.replace('+', '%2B')}" if until_time else ""
            page = self.ask("GET", f"/v2/orders?status=all&limit=500&direction=desc{more}")
            fresh = [order for order in page if order["id"] not in found]
            found.update((order["id"], order) for order in fresh)
            if len(page) < 500 or not fresh:
                return list(found.values())
            # It excludes that moment itself, which may be that of further orders.
            until_time = encode_time(parse_time(page[-1]["submitted_at"]) + 1_000)

    def expected_events(self) -> set[OrderKey]:
        """Return the events that every listener to orders must have told of, of the orders that have ended."""
        expected: set[OrderKey] = set()
        for order in self.list_orders():
            if order["status"] in ENDED:
                expected.add((order["id"], "new"))
                expected.add((order["id"], "fill" if order["status"] == "filled" else order["status"]))
        return expected

    # --- listeners

    def of(self, *kinds: str) -> list[Listener]:
        return [listener for listener in self.listeners if listener.kind in kinds]

    def wait_listening(self) -> None:
        """Wait until everybody listens, and has got something of market data."""
        until(
            lambda: self._check_loop() and all(listener.is_listening for listener in self.listeners),
            lambda: f"all listen: {describe(x for x in self.listeners if not x.is_listening)}",
        )
        data = [listener for listener in self.listeners if listener.kind != ORDERS]
        until(
            lambda: all(listener.numbers for listener in data),
            lambda: f"all get market data: {describe(x for x in data if not x.numbers)}",
        )

    def _check_loop(self) -> bool:
        assert not self.loop.failures, f"a listener ended: {self.loop.failures}"
        return True

    def wait_live(self, listeners: Iterable[Listener], *, trade: int, bar: int, order: int) -> dict[str, float]:
        """Wait until all have got something newer; return by name when that was.

        Args:
            trade, bar, order: the last ones that are not new.
        """
        waiting = {listener.name: listener for listener in listeners}
        marks = {TRADES: trade, BARS: bar, ORDERS: order}
        found: dict[str, float] = {}

        def look() -> bool:
            for name, listener in list(waiting.items()):
                last = marks[listener.kind]
                if not listener.recent or listener.recent[-1][0] <= last:
                    continue
                times = [at for number, at in tuple(listener.recent) if number > last]
                if times:
                    found[name] = min(times)
                    del waiting[name]
            return not waiting

        until(look, lambda: f"everybody is live again: {describe(waiting.values())}")
        return found

    def pause(self) -> None:
        """Return once no order is on its way."""
        self.trader.may_send.clear()
        self.orders.pause()
        until(lambda: self.trader.is_idle, "every order over NATS has its result")

    def go_on(self) -> None:
        """Let orders be sent again."""
        self.orders.may_send.set()
        self.trader.may_send.set()

    def settle_orders(self, strict: Iterable[Listener]) -> list[str]:
        """Let all orders end, and every listener hear of it; return what is wrong."""
        strict = list(strict)
        self.pause()
        until(lambda: not self.ask("GET", "/v2/orders?status=open&limit=10"), "all orders have ended")
        expected = self.expected_events()

        def missing(listener: Listener) -> set[OrderKey]:
            return expected - set(listener.orders.values())

        with contextlib.suppress(AssertionError):
            until(lambda: not any(missing(listener) for listener in strict), "all is told", 20.0)
        wrong = []
        for listener in strict:
            if lost := missing(listener):
                wrong.append(f"{listener.name}: {len(lost)} updates lost of {len(expected)}, such as {min(lost)}")
                self.forgive(listener, lost)
        for listener in self.of(ORDERS):
            told = Counter(key for name, key in listener.orders.items() if key in expected and name[:5] != "lost ")
            if doubled := [key for key, count in told.items() if count > 1]:
                wrong.append(f"{listener.name}: {len(doubled)} updates told under two ids, such as {doubled[0]}")
        return wrong + self.trader.check(self.list_orders())

    @staticmethod
    def forgive(listener: Listener, lost: Iterable[OrderKey]) -> None:
        """Take as told what a listener has not got, so that it is not missed again."""
        for order_id, event in lost:
            listener.orders[f"lost {order_id} {event}"] = (order_id, event)

    def memory_mb(self) -> float:
        """Return the resident memory of the hub."""
        assert self.hub is not None
        text = Path(f"/proc/{self.hub.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) / 1024


def describe(listeners: Iterable[Listener]) -> str:
    """Return names, with what went wrong last."""
    return "; ".join(f"{x.name} ({x.sessions} sessions, {x.losses[-1:] or 'no loss'})" for x in listeners)


def find_ports(*names: str) -> dict[str, int]:
    """Return ports that are free now."""
    return {name: find_free_port() for name in names}


def remove_folder(folder: Path) -> None:
    """Remove what a world has left."""
    shutil.rmtree(folder, ignore_errors=True)
