"""Random orders on a random market, and the exchange's books beside ours after every slice.

A `Play` is plain data: what the market does and what is asked for in each slice. The same play gives the same run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple

import backtrader as bt
import numpy as np
from msgspec.structs import replace

from dry_work.alpaca.simulated import ExchangeControl
from dry_work.alpaca.trading import TradingApi
from dry_work.broker.journal import Journal
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.broker.tickets import position_key
from dry_work.clock import MINUTE_NS
from dry_work.engine.live import LiveCerebro
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import DAY_START_NS
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Slice
from dry_work.orders.model import VenueOrder
from dry_work.orders.risk_limits import RiskLimits
from dry_work.ports import SourceEvent
from dry_work.wakeup import Wakeup
from dry_work.wire.alpaca_orders import parse_order

from .test_broker import SocketSource

STREAMS = {"v2/iex": ("SPY", "F"), "v1beta3/crypto/us": ("ETH/USD",)}

CASH = Decimal(100_000)
SYMBOLS = ("SPY", "F", "ETH/USD")
SIZES = (1, 7, 40, 300, 2500, 0.5, 2.25, 12.125)
_PRICES = {"SPY": 500.0, "F": 1.2, "ETH/USD": 3500.0}
_SIZE_OF = {"SPY": 1.0, "F": 20.0, "ETH/USD": 0.1}
STARTS = {"open": -4, "midday": 120, "close": 380}  # minutes from the opening of the exchange
KINDS = (
    *("market", "limit", "stop", "stop_limit", "cross", "replace", "cancel") * 3,
    *("bracket", "oto", "pair", "trail", "trail_percent", "notional") * 2,
    *("ioc", "fok", "opg", "cls", "extended", "until", "cancel_all", "close_position", "close_all"),
)  # fmt: skip


class Action(NamedTuple):
    """What is asked for: how the numbers are read depends on the kind."""

    kind: str
    symbol: int
    buys: bool
    size: int
    offset: int  # of a price, in basis points of the last one
    pick: int


class Setup(NamedTuple):
    """An exchange, its market and the broker's limits."""

    rules: str = "alpaca"
    matching: str = "bars"
    in_flight: bool = False
    start: str = "midday"
    seed: int = 0
    has_limits: bool = False


class Play(NamedTuple):
    setup: Setup
    steps: tuple[tuple[Action, ...], ...]


def build_play(setup: Setup, slices: int) -> Play:
    """Make up a play from the seed of its setup."""
    rng = random.Random(setup.seed)

    def act() -> Action:
        return Action(
            kind=rng.choice(KINDS),
            symbol=rng.randrange(len(SYMBOLS)),
            buys=rng.random() < 0.5,
            size=rng.randrange(len(SIZES)),
            offset=rng.randint(-60, 60),
            pick=rng.randrange(12),
        )

    return Play(setup, tuple(tuple(act() for _ in range(rng.randrange(5))) for _ in range(slices)))


def build_market(setup: Setup, minutes: int) -> Recording:
    """Make up bars with jumps, missing minutes and volumes small enough for partial fills."""
    columns: dict[str, dict[str, Any]] = {}
    for number, symbol in enumerate(SYMBOLS):
        rng = random.Random(setup.seed * 31 + number)
        price, rows = _PRICES[symbol], []
        for minute in range(minutes):
            open_ = price
            scale = rng.choice((0.0005, 0.002, 0.002, 0.03))
            price = max(round(price * (1 + rng.uniform(-scale, scale)), 2), 0.05)
            high = round(max(open_, price) * (1 + rng.uniform(0, scale / 2)), 2)
            low = max(round(min(open_, price) * (1 - rng.uniform(0, scale / 2)), 2), 0.01)
            volume = float(rng.choice((0, 5, 60, 700, 9000)))
            volume = volume / 50 if symbol == "ETH/USD" else volume
            if minute == 0 or rng.random() > 0.1:
                start = DAY_START_NS + (STARTS[setup.start] + minute) * MINUTE_NS
                rows.append((start, open_, max(high, open_, price), min(low, open_, price), price, volume))
        names = ("ts_event_ns", "open", "high", "low", "close", "volume")
        columns[symbol] = {
            name: np.array([row[place] for row in rows], dtype=np.float64 if place else np.int64)
            for place, name in enumerate(names)
        }
    return Recording(columns)


class TwoSockets:
    """Slices of stocks and crypto together; each is told when both sockets have it."""

    def __init__(self, url: str) -> None:
        self._parts = [SocketSource(url, symbols, path) for path, symbols in STREAMS.items()]
        self._found: list[list[Slice]] = [[] for _ in self._parts]

    def start(self, wakeup: Wakeup) -> None:
        for part in self._parts:
            part.start(wakeup)

    def stop(self) -> None:
        for part in self._parts:
            part.stop()

    def take(self) -> SourceEvent | None:
        for part, found in zip(self._parts, self._found, strict=True):
            while (event := part.take()) is not None:
                if not isinstance(event, Slice):
                    return event
                found.append(event)
        if not all(self._found):
            return None
        pieces = [found.pop(0) for found in self._found]
        assert len({(piece.number, piece.event_id) for piece in pieces}) == 1
        return replace(pieces[0], bars=tuple(bar for piece in pieces for bar in piece.bars))

    def wait_s(self) -> float | None:
        return None

    def counters(self) -> dict[str, int]:
        return {}


class Trader(bt.Strategy):
    """Asks for what the play says, and compares the books before."""

    params = (("play", None), ("check", None))

    def __init__(self) -> None:
        self.slice = 0

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        self.p.check(self.slice)
        steps = self.p.play.steps
        if self.slice < len(steps):
            for action in steps[self.slice]:
                self.ask(action)
        self.p.check.end()
        self.slice += 1

    def ask(self, action: Action) -> None:
        data = self.datas[action.symbol]
        if not len(data):
            return
        symbol, broker = SYMBOLS[action.symbol], self.broker
        held = self.getposition(data).size
        place = self.buy if action.buys else self.sell
        size = SIZES[action.size] * _SIZE_OF[symbol]
        size = int(size) if size == int(size) else size
        last = data.close[0]
        # From worse than the market to far away from it.
        price = round(last * (1 + action.offset / 10_000), 2) or 0.01
        wider = round(price * (1.001 if action.buys else 0.999), 2)
        alive = broker.get_orders_open()
        picked = alive[action.pick % len(alive)] if alive else None
        given: dict[str, Any] = {"data": data, "size": size}
        plain: dict[str, dict[str, Any]] = {
            "market": {},
            "limit": {"exectype": bt.Order.Limit, "price": price},
            "stop": {"exectype": bt.Order.Stop, "price": price},
            "stop_limit": {"exectype": bt.Order.StopLimit, "price": price, "plimit": wider},
            "trail": {"exectype": bt.Order.StopTrail, "trailamount": max(round(last * 0.002, 2), 0.01)},
            "trail_percent": {"exectype": bt.Order.StopTrail, "trailpercent": 0.002},
            "notional": {"size": None, "notional": round(1 + action.pick * 777.77, 2)},
            "ioc": {"tif": "ioc", "exectype": bt.Order.Limit, "price": price},
            "fok": {"tif": "fok", "exectype": bt.Order.Limit, "price": price},
            "opg": {"tif": "opg"},
            "cls": {"exectype": bt.Order.Close},
            "extended": {
                "exectype": bt.Order.Limit, "price": price, "valid": bt.Order.DAY, "extended_hours": True
            },
            "until": {
                "exectype": bt.Order.Limit,
                "price": price,
                "valid": bt.num2date(self.datetime[0] + (1 + action.pick % 5) / 1440),
            },
        }  # fmt: skip
        if action.kind in plain:
            place(**{**given, **plain[action.kind]})
        elif action.kind == "cross" and held:
            cross = self.sell if held > 0 else self.buy
            kind = {} if action.pick % 2 else {"exectype": bt.Order.Limit, "price": price}
            cross(data=data, size=abs(held) + size, **kind)
        elif action.kind == "pair" and held:
            exit_, sign = (self.sell, 1) if held > 0 else (self.buy, -1)
            width = abs(action.offset) / 10_000 + 0.0002
            kinds = [
                {"exectype": bt.Order.Limit, "price": round(last * (1 + sign * width) + 0.01 * sign, 2)},
                {"exectype": bt.Order.Stop, "price": round(last * (1 - sign * width) - 0.01 * sign, 2) or 0.01},
            ]
            first = exit_(data=data, size=abs(held), **kinds[action.pick % 2])
            exit_(data=data, size=abs(held), oco=first, **kinds[1 - action.pick % 2])
        elif action.kind in ("bracket", "oto"):
            bracket, sign = (self.buy_bracket, 1) if action.buys else (self.sell_bracket, -1)
            base = price if action.pick % 2 else last
            kind = {"exectype": bt.Order.Limit, "price": price} if action.pick % 2 else {"exectype": bt.Order.Market}
            exits = {"limitexec": None} if action.pick % 4 < 2 else {"stopexec": None}
            bracket(
                data=data, size=size, **kind,
                limitprice=round(base * (1 + sign * 0.002) + 0.01 * sign, 2),
                stopprice=round(base * (1 - sign * 0.002) - 0.01 * sign, 2),
                **(exits if action.kind == "oto" else {}),
            )  # fmt: skip
        elif action.kind == "replace" and picked is not None:
            changes: tuple[dict[str, Any], ...] = (
                {"price": round(picked.created.price * (1 + action.offset / 10_000), 2)}
                if picked.created.price
                else {"size": size},
                {"size": size},
                {"price": price},
                {"trailamount": 0.02} if picked.created.trailamount else {"trailpercent": 0.004},
            )
            broker.replace(picked, **changes[action.pick // 3 % 4])
        elif action.kind == "cancel" and picked is not None:
            self.cancel(picked)
        elif action.kind == "cancel_all":
            broker.cancel_all()
        elif action.kind == "close_position":
            broker.close_position(data)
        elif action.kind == "close_all":
            broker.close_all()


class Ledger:
    """What follows from the exchange's list of executions and fees alone, in Decimal."""

    def __init__(self, api: TradingApi) -> None:
        self._api = api
        self._token = ""
        self.cash = CASH
        self.money_fees = Decimal(0)
        self.positions: dict[str, Decimal] = {}
        self.fills = 0

    def read(self) -> None:
        while True:
            query: dict[str, object] = {"direction": "asc", "page_size": 100}
            if self._token:
                query["page_token"] = self._token
            rows = self._api.call("GET", "/account/activities", query)
            for row in rows:
                self._token = row["id"]
                self._book(row)
            if len(rows) < 100:
                return

    def _book(self, row: dict[str, Any]) -> None:
        with localcontext() as context:
            context.prec = 80
            if row["activity_type"] == "FILL":
                self.fills += 1
                key, change = position_key(row["symbol"]), Decimal(row["qty"]) * (1 if row["side"] == "buy" else -1)
                self.cash -= change * Decimal(row["price"])
                self.positions[key] = self.positions.get(key, Decimal(0)) + change
            elif "symbol" in row:  # a fee in kind
                self.positions[position_key(row["symbol"])] += Decimal(row["qty"])
            else:
                self.money_fees -= Decimal(row["net_amount"])
                self.cash += Decimal(row["net_amount"])


class Comparison:
    """Compares the broker's books with the exchange's, and both with the ledger."""

    def __init__(self, broker: Any, api: TradingApi) -> None:
        self._broker, self._api, self._ledger = broker, api, Ledger(api)
        self.slices = self.orders_seen = 0
        self.orders: list[VenueOrder] = []  # all that the exchange has had, at the end
        self._canceling: set[Any] = set()  # when the strategy's turn was over

    @property
    def fills(self) -> int:
        return self._ledger.fills

    def __call__(self, number: int) -> None:
        self._settle()
        account, held, listed = self._api.account(), self._api.positions(), self._api.open_orders()
        self._ledger.read()
        theirs = {position_key(position.symbol): position.qty for position in held}
        ledger = {key: qty for key, qty in self._ledger.positions.items() if qty}
        assert account.cash == self._ledger.cash, f"slice {number}: the exchange's cash is not conserved"
        assert theirs == ledger, f"slice {number}: the exchange's positions are not conserved"
        books = self._broker._book.books
        ours = {key: books.position(key).qty for key in books.symbols}
        assert ours == theirs, f"slice {number}: positions {ours} instead of {theirs}"
        # Alpaca tells the fee of a sale of coins with no execution; in lock-step no snapshot of the account brings it.
        with localcontext() as context:
            context.prec = 80
            assert books.cash == account.cash + self._ledger.money_fees, f"slice {number}: cash"
        self._compare_orders(number, {order.id: order for order in _flatten(listed)})
        self.slices += 1

    def end(self) -> None:
        """Take note of what the strategy has asked for in its turn: it is told with the next slice."""
        self._canceling = {ticket for ticket in self._broker._desk.open.values() if ticket.cancel_asked}

    def _compare_orders(self, number: int, listed: dict[str, VenueOrder]) -> None:
        broker = self._broker
        tickets = list(broker._desk.open.values())
        # What was sent since the slice, by the broker itself: told with the next one.
        on_the_way = {t.venue_name for t in tickets if not t.venue_id and t.venue_name}
        on_the_way |= {t.replacing.request.client_order_id for t in tickets if t.replacing is not None}
        on_the_way |= {t.venue_name for t in tickets if t.cancel_asked and t not in self._canceling}
        ours = {
            t.venue_id: broker._book.books.filled_qty(t.venue_name)
            for t in tickets
            if t.venue_id and t.venue_name not in on_the_way
        }
        theirs = {order.id: order.filled_qty for order in listed.values() if order.client_order_id not in on_the_way}
        self.orders_seen += len(ours)
        assert ours == theirs, f"slice {number}: open orders with what is filled of them: {ours} {theirs}"
        for ticket in tickets:
            order = listed.get(ticket.venue_id)
            if order is None or ticket.request is None or ticket.sent_name != ticket.client_order_id:
                continue  # the second part of an order through zero is another one
            asked = ticket.request
            known = (order.symbol, order.side, order.type, order.limit_price)
            assert (asked.symbol, asked.side, asked.type, asked.limit_price) == known, f"slice {number}"

    def _settle(self) -> None:
        """Wait until the order worker has sent what it was given."""
        gateway = self._broker._link.gateway
        done, deadline = gateway.resyncs_done, time.monotonic() + 30
        gateway.resync(())
        while gateway.resyncs_done == done:
            assert time.monotonic() < deadline, "the order worker does not come to an end"
            assert self._broker.failure is None, self._broker.failure
            time.sleep(0.0002)


def _flatten(orders: Sequence[VenueOrder]) -> Iterator[VenueOrder]:
    for order in orders:
        yield order
        yield from _flatten(order.legs)


@contextmanager
def open_exchange(setup: Setup, minutes: int) -> Iterator[ExchangeServer]:
    exchange = ExchangeServer(
        build_market(setup, minutes),
        rules=setup.rules,  # type: ignore[arg-type]
        matching=setup.matching,  # type: ignore[arg-type]
        changes_in_flight=setup.in_flight,
        consumers=1,
        cash=CASH,
    )
    exchange.start()
    try:
        yield exchange
    finally:
        exchange.stop()


def run_play(play: Play, folder: Path) -> Comparison:
    """Run a play; raises at the first difference."""
    with open_exchange(play.setup, len(play.steps) + 3) as exchange:
        journal = Journal(folder / "orders.sqlite")
        wakeup = Wakeup()
        source = TwoSockets(exchange.stream_url)
        api = TradingApi("KEY", "SECRET", url=exchange.url)
        broker = AlpacaPaperTradingBroker(
            api_key="KEY", secret_key="SECRET", url_override=exchange.url, journal=journal, agent="tester",
            session="s", wakeup=wakeup, lockstep=True, rules=play.setup.rules,
            risk=RiskLimits() if play.setup.has_limits else None,
        )  # fmt: skip
        comparison = Comparison(broker, api)

        def check() -> None:
            if broker.failure is not None:
                raise broker.failure

        cerebro = LiveCerebro(source=source, wakeup=wakeup, lockstep=True, check=check, max_event_wait_s=30)
        try:
            source.start(wakeup)
            for symbol in SYMBOLS:
                cerebro.adddata(LiveFeed(symbol=symbol), name=symbol)
            cerebro.setbroker(broker)
            cerebro.addstrategy(Trader, play=play, check=comparison)
            cerebro.on_ready = lambda: ExchangeControl(api).register("tester", SYMBOLS)
            cerebro.run()
            rows = api.call("GET", "/orders", {"status": "all", "limit": 500})
            comparison.orders = [parse_order(row) for row in rows]
            return comparison
        finally:
            broker.stop()
            source.stop()
            api.close()
            journal.close()
