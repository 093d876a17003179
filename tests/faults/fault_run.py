"""One run of a strategy at an exchange that misbehaves, and what is left of it at the venue, in the broker and told.

The market waits until the broker knows all that the venue knows, and has carried out all that it was asked: so a run
with faults has the same decisions to make as the run without, and has to end the same.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import numpy as np
from websockets.sync.client import connect

from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import Journal
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.clock import MINUTE_NS
from dry_work.engine.live import LiveCerebro
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import DAY_START_NS
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Bar, Slice
from dry_work.orders.model import TERMINAL, AccountSnapshot, VenueOrder, VenuePosition
from dry_work.ports import SourceEvent, SourceFailed
from dry_work.wakeup import Wakeup
from dry_work.wire.alpaca_stream import StreamWatermark, parse_frame

SYMBOLS = ("SPY", "IBM")
SLICES = 40
SETTLE_S = 45.0  # the longest that broker and venue may differ
KEY, DRIVER = "PKFAULTS", "PKDRIVER"


@dataclass
class Ending:
    """What a run left behind."""

    failure: str = ""
    struck: int = 0  # how often the faults did
    orders: int = 0
    seconds: float = 0.0
    venue_orders: list[str] = field(default_factory=list)
    venue_books: str = ""
    broker_books: str = ""
    venue_fills: dict[str, str] = field(default_factory=dict)  # by order
    journal_fills: dict[str, str] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=dict)  # by order
    counters: dict[str, int] = field(default_factory=dict)


class OpenExchange(ExchangeServer):
    """An exchange whose books can be read from another thread, past its faults."""

    def look(self, key_id: str) -> tuple[AccountSnapshot, list[VenuePosition], list[VenueOrder]]:
        """Return account, positions and orders."""

        async def read() -> tuple[AccountSnapshot, list[VenuePosition], list[VenueOrder]]:
            venue = self._state.venue
            return venue.account(key_id), venue.positions(key_id), venue.orders(key_id)

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(60.0)


class SteppedSource:
    """Slices of the exchange's market-data socket. Each is handed out when `is_settled`, and so is its end reported."""

    def __init__(self, url: str, *, report: Callable[[int], bool]) -> None:
        self.is_settled: Callable[[], bool] = lambda: True
        self._url = url
        self._report = report
        self._slices: deque[SourceEvent] = deque()
        self._to_report: int | None = None
        self._subscribed = threading.Event()

    def start(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._thread = threading.Thread(target=self._read, name="stepped source", daemon=True)
        self._thread.start()
        assert self._subscribed.wait(60.0)

    def done(self, piece: Slice) -> None:
        """The strategy has had its turn."""
        self._to_report = piece.number

    def take(self) -> SourceEvent | None:
        if not (self._slices or self._to_report) or not self.is_settled():
            return None
        if self._to_report:
            if self._report(self._to_report):
                self._to_report = None
            return None
        return self._slices.popleft()

    def wait_s(self) -> float | None:
        return 0.01

    def counters(self) -> Mapping[str, int]:
        return {}

    def stop(self, timeout_s: float = 5.0) -> None:
        self._socket.close()
        self._thread.join(timeout_s)

    def _read(self) -> None:
        try:
            with connect(f"{self._url}/v2/iex", proxy=None) as self._socket:
                for message in (
                    {"action": "auth", "key": DRIVER, "secret": "any"},
                    {"action": "subscribe", "bars": list(SYMBOLS), "watermarks": ["*"]},
                ):
                    self._socket.recv()
                    self._socket.send(json.dumps(message))
                self._socket.recv()
                self._subscribed.set()
                self._take_all()
        except Exception as error:
            self._slices.append(SourceFailed(error=error))
            self._wakeup.set()

    def _take_all(self) -> None:
        bars: list[Bar] = []
        for frame in self._socket:
            for item in parse_frame(frame, recv_ns=0):
                if isinstance(item, Bar):
                    bars.append(item)
                elif isinstance(item, StreamWatermark):
                    found, bars = tuple(bars), []
                    self._slices.append(
                        Slice(end_ns=item.end_ns, bars=found, number=item.slice, event_id=item.event_id, last=item.last)
                    )
                    self._wakeup.set()


class Trader(bt.Strategy):
    """Random orders of all kinds, changes and cancellations, the same whenever it is told the same."""

    params = (("seed", 0), ("slices", SLICES))

    def __init__(self) -> None:
        self.rng = random.Random(self.p.seed)
        self.placed: list[Any] = []
        self.numbers: dict[int, int] = {}  # by reference
        self.told: dict[str, list[str]] = {}
        self.changing: dict[int, float] = {}  # by reference: prices that were asked for and not answered

    def notify_order(self, order: Any) -> None:
        if not order.alive() or order.created.price == self.changing.get(order.ref) or order.info.get("replace_reason"):
            self.changing.pop(order.ref, None)
        if order.ref in self.numbers:
            executed = order.executed
            self.told.setdefault(f"order {self.numbers[order.ref]}", []).append(
                f"{order.getstatusname()} {executed.size:g} @ {round(executed.price, 6):g}"
            )

    def next(self) -> None:
        rng, last = self.rng, len(self) > self.p.slices - 6
        for data in self.datas:
            choice, kind, size = rng.random(), rng.random(), rng.choice((3, 8, 20, 45))
            away, long = rng.uniform(0.0005, 0.004), rng.random() < 0.5
            mine = [order for order in self.placed if order.data is data and order.alive()]
            if last:
                for order in mine:
                    self.cancel(order)
            elif mine and choice < 0.2:
                self.cancel(mine[0])
            elif mine and choice < 0.4:
                self.change(mine[-1], data, away)
            elif len(mine) < 4 and choice < 0.95:
                self.place(data, kind, size, away, long=long)

    def place(self, data: Any, kind: float, size: int, away: float, *, long: bool) -> None:
        close, held = data.close[0], self.getposition(data).size
        low, high = round(close * (1 - away), 2), round(close * (1 + away), 2)
        kinds = bt.Order
        side, limit, stop = (self.buy, low, high) if long else (self.sell, high, low)
        if kind < 0.3:
            self.note(side(data=data, size=size))
        elif kind < 0.5:
            self.note(side(data=data, size=size, exectype=kinds.Limit, price=limit))
        elif kind < 0.6:
            self.note(side(data=data, size=size, exectype=kinds.Stop, price=stop))
        elif kind < 0.65:
            self.note(side(data=data, size=size, exectype=kinds.StopLimit, price=stop, plimit=stop))
        elif kind < 0.7:
            self.note(side(data=data, size=size, exectype=kinds.StopTrail, trailamount=round(close * away, 2)))
        elif kind < 0.75 and long:
            self.note(side(data=data, size=size, valid=kinds.DAY, exectype=kinds.Limit, price=limit))
        elif kind < 0.85 and held:
            leave = self.sell if held > 0 else self.buy
            profit, loss = (high, low) if held > 0 else (low, high)
            first = leave(data=data, size=abs(held), exectype=kinds.Limit, price=profit)
            self.note(first, leave(data=data, size=abs(held), exectype=kinds.Stop, price=loss, oco=first))
        else:
            place, profit, loss = (self.buy_bracket, high, low) if long else (self.sell_bracket, low, high)
            self.note(*place(data=data, size=size, exectype=kinds.Market, limitprice=profit, stopprice=loss))

    def change(self, order: Any, data: Any, away: float) -> None:
        if order.exectype == bt.Order.Limit and order.status == bt.Order.Accepted:
            price = round(data.close[0] * (1 - away if order.isbuy() else 1 + away), 2)
            order.info.pop("replace_reason", None)
            if self.broker.replace(order, price=price):
                self.changing[order.ref] = price

    def note(self, *orders: Any) -> None:
        for order in orders:
            if order is not None:
                self.placed.append(order)
                self.numbers[order.ref] = len(self.placed)


def build_market(seed: int, slices: int = SLICES) -> Recording:
    """Make up minutes of two symbols in which little is traded, so that orders fill in parts."""
    rng = random.Random(f"market {seed}")
    columns: dict[str, dict[str, Any]] = {}
    for symbol in SYMBOLS:
        rows, last = [], 100.0
        for minute in range(slices):
            close = round(last * (1 + rng.uniform(-0.003, 0.003)), 2)
            high = round(max(last, close) * (1 + rng.uniform(0, 0.002)), 2)
            low = round(min(last, close) * (1 - rng.uniform(0, 0.002)), 2)
            rows.append((DAY_START_NS + minute * MINUTE_NS, last, high, low, close, float(rng.randint(5, 60))))
            last = close
        names = ("ts_event_ns", "open", "high", "low", "close", "volume")
        values = zip(*rows, strict=True)
        columns[symbol] = {
            name: np.array(column, dtype=np.int64 if name == "ts_event_ns" else np.float64)
            for name, column in zip(names, values, strict=True)
        }
    return Recording(columns)


class Run:
    """Exchange, broker and engine of one run.

    Args:
        faults: set when the broker has started, `at_start` before.
        busts: slices behind which the last execution is taken back.
        slices: how long the market is.
    """

    def __init__(
        self,
        *,
        seed: int,
        faults: Sequence[Mapping[str, Any]] = (),
        at_start: Sequence[Mapping[str, Any]] = (),
        busts: Sequence[int] = (),
        slices: int = SLICES,
    ) -> None:
        self._seed, self._slices = seed, slices
        self._faults, self._at_start, self._busts = list(faults), list(at_start), set(busts)
        self._deadline_s: float | None = None
        self._fence: threading.Event | None = None
        self._difference = ""
        self._trader: Any = None
        self._busted: set[str] = set()
        self.ending = Ending()

    def run(self) -> Ending:
        """Run to the end of the market."""
        begun_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fault-run-") as folder:
            self.exchange = OpenExchange(
                build_market(self._seed, self._slices),
                rules="alpaca",
                matching="volume",
                wash_trades=True,
                consumer_timeout_s=600.0,
            )
            self.exchange.start()
            path = Path(folder) / "orders.sqlite"
            journal = Journal(path)
            try:
                self._trade(journal)
            except Exception as error:
                self.ending.failure = self.ending.failure or f"{type(error).__name__}: {error}"
            finally:
                self.exchange.stop()
                journal.close()
            fills = Counter[str]()
            for fill in read_books(path).fills:
                fills[fill.symbol, fill.side.value] += fill.qty  # type: ignore[index,assignment]
            self.ending.journal_fills = {" ".join(key): f"{qty.normalize():f}" for key, qty in sorted(fills.items())}  # type: ignore[attr-defined]
        self.ending.seconds = time.monotonic() - begun_s
        return self.ending

    def _trade(self, journal: Journal) -> None:
        wakeup = Wakeup()
        source = SteppedSource(self.exchange.stream_url, report=self._report)
        broker_class: Any = AlpacaPaperTradingBroker
        self.broker = broker_class(
            api_key=KEY, secret_key="any", url_override=self.exchange.url, journal=journal, agent="faults", session="s",
            stream_url_override=f"{self.exchange.stream_url}/stream", wakeup=wakeup, rules="alpaca", risk=None,
            request_timeout_s=1.0, refresh_s=0.3,
        )  # fmt: skip
        source.is_settled = self._is_settled
        cerebro_class: Any = LiveCerebro
        cerebro = cerebro_class(
            source=source, wakeup=wakeup, check=self._check, on_slice=lambda p: self._after(p, source)
        )
        self._set_faults(self._at_start)
        source.start(wakeup)
        try:
            for symbol in SYMBOLS:
                cerebro.adddata(LiveFeed(symbol=symbol), name=symbol)
            cerebro.setbroker(self.broker)
            cerebro.addstrategy(Trader, seed=self._seed, slices=self._slices)

            def begin() -> None:
                [self._trader] = cerebro.runningstrats
                self._set_faults(self._faults)
                self._call("consumers", {"consumer": "driver", "symbols": list(SYMBOLS)}, key=DRIVER)

            cerebro.on_ready = begin
            cerebro.run()
            self.ending.told = self._trader.told
            self.ending.orders = len(self._trader.placed)
        finally:
            self.ending.struck = sum(fault["struck"] for fault in self._call("faults"))
            self.broker.stop()
            source.stop()

    def _report(self, number: int) -> bool:
        """Report a slice done; False when something else has to settle first."""
        if number in self._busts:
            self._busts.discard(number)
            self._bust()
            return False
        self._call(f"slices/{number}/done", {"consumer": "driver", "orders": 0}, key=DRIVER)
        return True

    def _call(self, path: str, body: Any = None, *, key: str = KEY) -> Any:
        headers = {"APCA-API-KEY-ID": key, "APCA-API-SECRET-KEY": "any", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.exchange.url}/dry-work/v1/{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60.0) as answer:
            return json.loads(answer.read())

    def _set_faults(self, faults: Sequence[Mapping[str, Any]]) -> None:
        if faults:
            self._call("faults", [{"key": KEY, **fault} if fault["on"] != "clock" else fault for fault in faults])

    def _check(self) -> None:
        if self.broker.failure is not None:
            raise self.broker.failure

    # When the market may move

    def _after(self, piece: Slice, source: SteppedSource) -> None:
        if piece.last:
            self._read_books()
        source.done(piece)

    def _bust(self) -> None:
        fills = [fill for fill in self._fills() if fill.execution_id not in self._busted]
        if fills:
            self._busted.add(fills[-1].execution_id)
            self._call("busts", {"execution_id": fills[-1].execution_id})

    def _fills(self) -> list[Any]:
        async def read() -> list[Any]:
            return list(self.exchange._state.accounts[KEY].fills)

        assert self.exchange._loop is not None
        return asyncio.run_coroutine_threadsafe(read(), self.exchange._loop).result(60.0)

    def _is_settled(self) -> bool:
        """Tell whether the broker has done what it was asked and knows what the venue knows."""
        now_s = time.monotonic()
        self._deadline_s = self._deadline_s or now_s + SETTLE_S
        if now_s > self._deadline_s:
            raise TimeoutError(f"broker and venue still differ after {SETTLE_S:g} s: {self._difference}")
        if self._fence is None:
            fence = self._fence = threading.Event()
            self.broker._gateway.run(lambda _venue: fence.set())
        if not self._fence.is_set():
            self._difference = self._difference or "a request is under way"
            return False
        self._fence = None
        self._difference = self._compare()
        if self._difference:
            return False
        self._deadline_s, self._difference = None, ""
        return True

    def _compare(self) -> str:
        if self._trader is not None and self._trader.changing:
            return f"replacements are not answered: {self._trader.changing}"
        if self.broker.halted:
            return f"the broker is halted: {self.broker.halted}"  # after snapshots that failed in a row, as documented
        account, positions, orders = self.exchange.look(KEY)
        theirs = Counter(_place_of(order) for order in orders if order.status not in TERMINAL)
        ours = Counter(_place_of_own(order) for order in self.broker.get_orders_open())
        if theirs != ours:
            return (
                f"open orders: the venue has {list((theirs - ours).elements())}, we {list((ours - theirs).elements())}"
            )
        here, there = self._describe_own_books(), _describe_books(account, positions)
        return "" if here == there else f"books: we have {here}, the venue {there}"

    def _describe_own_books(self) -> str:
        held = {symbol: self.broker.position_of(symbol) for symbol in SYMBOLS}
        sizes = ", ".join(f"{symbol} {size:g}" for symbol, size in held.items() if size)
        return f"cash {self.broker.getcash():.4f}, {sizes}"

    def _read_books(self) -> None:
        account, positions, orders = self.exchange.look(KEY)
        ending = self.ending
        ending.venue_orders = sorted(_describe_order(order) for order in orders)
        ending.venue_books = _describe_books(account, positions)
        ending.broker_books = self._describe_own_books()
        ending.counters = dict(self.broker.counters)
        fills = Counter[str]()
        for event in self._fills():
            fills[event.order.symbol, event.order.side.value] += event.qty  # type: ignore[index,assignment]
        ending.venue_fills = {" ".join(key): f"{qty.normalize():f}" for key, qty in sorted(fills.items())}  # type: ignore[attr-defined]


def _place_of(order: VenueOrder) -> tuple[str, str, str]:
    """Return what makes an open order at the venue equal to one of ours; what is filled shows in the books."""
    return order.symbol, order.side.value, "accepted"


def _place_of_own(order: Any) -> tuple[str, str, str]:
    is_accepted = order.status in (bt.Order.Accepted, bt.Order.Partial)
    return order.data._name, "buy" if order.isbuy() else "sell", "accepted" if is_accepted else "submitted"


def _describe_books(account: AccountSnapshot, positions: Sequence[VenuePosition]) -> str:
    held = {position.symbol: float(position.qty) for position in positions}
    sizes = ", ".join(f"{symbol} {held[symbol]:g}" for symbol in SYMBOLS if held.get(symbol))
    return f"cash {float(account.cash):.4f}, {sizes}"


def _describe_order(order: VenueOrder) -> str:
    qty = "" if order.qty is None else f"{order.qty.normalize():f}"
    average = "" if order.filled_avg_price is None else f" @ {Decimal(order.filled_avg_price).normalize():f}"
    prices = " ".join(str(price) for price in (order.limit_price, order.stop_price) if price is not None)
    return (
        f"{order.client_order_id} {order.symbol} {order.side.value} {qty} {order.type.value} {prices} {order.status} "
        f"{order.filled_qty.normalize():f}{average}"
    )


def compare(ending: Ending, peace: Ending) -> list[str]:
    """Return what is wrong with a run, against the one without faults; nothing when all is well."""
    if ending.failure:
        return [f"not done: {ending.failure}"]
    wrong = []
    # The strategy decides by what it was told, so the first difference there is the cause of the others.
    for name in sorted(peace.told.keys() | ending.told.keys(), key=lambda name: int(name.split()[1])):
        told, expected_told = ending.told.get(name, []), peace.told.get(name, [])
        if told != expected_told:
            wrong.append(f"told of {name}: {'; '.join(told)} instead of {'; '.join(expected_told)}")
    here, there = Counter(ending.venue_orders), Counter(peace.venue_orders)
    wrong += [f"venue: doubled or changed: {order}" for order in (here - there).elements()]
    wrong += [f"venue: lost: {order}" for order in (there - here).elements()]
    for what, found, expected in (
        ("venue's books", ending.venue_books, peace.venue_books),
        ("broker's books", ending.broker_books, ending.venue_books),
        ("venue's fills", ending.venue_fills, peace.venue_fills),
        ("journal's fills", ending.journal_fills, ending.venue_fills),
    ):
        if found != expected:
            wrong.append(f"{what}: {found} instead of {expected}")
    return wrong
