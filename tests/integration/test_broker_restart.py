"""The broker over restarts at the real simulated exchange, with what others and the exchange itself do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import numpy as np
import pytest

from dry_work.alpaca.simulated import ExchangeControl
from dry_work.alpaca.trading import TradingApi
from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import Journal
from dry_work.broker.own_books import build_orders, expect_positions, sum_positions
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.clock import MINUTE_NS, SystemClock
from dry_work.engine.live import LiveCerebro
from dry_work.engine.strategy_state import StrategyKeeper
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import DAY_START_NS
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Slice
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce
from dry_work.orders.risk_limits import RiskLimits
from dry_work.wakeup import Wakeup

from .test_broker import SocketSource

DEADLINE_S = 60.0


class Killed(Exception):
    """The process ends here."""


def build_market(first: int, minutes: int) -> Recording:
    """Return minutes of a session that are all alike, in which ten shares are traded: orders fill in parts."""
    start = DAY_START_NS + first * MINUTE_NS
    values = {"open": 100.0, "high": 101.0, "low": 99.0, "close": 100.0, "volume": 10.0}
    columns: dict[str, Any] = {"ts_event_ns": np.array([start + n * MINUTE_NS for n in range(minutes)], np.int64)}
    columns.update({name: np.full(minutes, value) for name, value in values.items()})
    return Recording({"SPY": columns})


class Trader(bt.Strategy):
    """Trades its script, one step after the other, and keeps what it was told."""

    params = (("steps", ()),)

    def __init__(self) -> None:
        self.told: list[list[Any]] = []
        self.asked = 0
        self.notes: list[Any] = []

    def save_state(self) -> Any:
        return {"told": self.told, "asked": self.asked}

    def load_state(self, state: Any) -> None:
        self.told, self.asked = state["told"], state["asked"]

    def notify_order(self, order: Any) -> None:
        number = int(order.info.client_order_id.rpartition("-")[2])
        self.told.append([number, order.getstatusname(), round(float(order.executed.size), 6)])

    def notify_store(self, message: str, *args: Any, **_: Any) -> None:
        if message == "reconciliation":
            self.notes.append(args[0])

    def next(self) -> None:
        if not self.broker.get_orders_open() and self.asked < len(self.p.steps):
            self.asked += 1
            self.p.steps[self.asked - 1](self)


def enter(strategy: Any) -> None:
    strategy.buy(size=25)


def bracket(strategy: Any) -> None:
    strategy.buy_bracket(size=15, exectype=bt.Order.Market, limitprice=100.5, stopprice=90.0)


def pair(strategy: Any) -> None:
    first = strategy.sell(size=12, exectype=bt.Order.Limit, price=100.4)
    strategy.sell(size=12, exectype=bt.Order.Stop, price=91.0, oco=first)


def cross(strategy: Any) -> None:
    strategy.sell(size=18)


SCRIPT = (enter, bracket, pair, cross)


class Stage:
    """An exchange, and the processes of one agent."""

    def __init__(self, folder: Path, *, speed: float | None = None) -> None:
        self.folder = folder
        # A market that goes on does not wait for a machine under load: it has to be a long one.
        self.recording = build_market(120, 150) if speed is None else build_market(5, 380)
        self.exchange = ExchangeServer(
            self.recording, rules="alpaca", matching="volume", speed=speed, skip_gaps=speed is not None, consumers=1
        )
        self.exchange.start()
        self.lockstep = speed is None
        self.api = TradingApi("KEY", "SECRET", url=self.exchange.url)
        self.broker: Any = None

    def close(self) -> None:
        self.api.close()
        self.exchange.stop()

    @property
    def books(self) -> Any:
        return read_books(self.folder / "orders.sqlite")

    def held(self) -> Decimal:
        return sum((position.qty for position in self.api.positions()), Decimal(0))

    def live(
        self,
        steps: tuple[Callable[[Any], Any], ...] = SCRIPT,
        *,
        dies_after: int | None = None,
        saves: Callable[[int], bool] = lambda number: True,
        on_slice: Callable[[Any, int], Any] = lambda strategy, number: None,
    ) -> Any:
        """Run a process and return its strategy; it dies after so many slices, else lives to the market's end."""
        journal, wakeup = Journal(self.folder / "orders.sqlite"), Wakeup()
        source = SocketSource(self.exchange.stream_url, self.recording.symbols)
        broker = self.broker = AlpacaPaperTradingBroker(
            api_key="KEY", secret_key="SECRET", url_override=self.exchange.url, journal=journal, agent="tester",
            stream_url_override=f"{self.exchange.stream_url}/stream", wakeup=wakeup, lockstep=self.lockstep,
            rules="alpaca", risk=RiskLimits(stale_bars=0), refresh_s=0.2,
        )  # fmt: skip
        keeper = StrategyKeeper(self.folder / "strategy.json", agent="Trader", clock=SystemClock())
        keeper.follow(broker, Trader)
        control = ExchangeControl(self.api)
        slices = 0

        def ready() -> None:
            keeper.load(cerebro.runningstrats[0])
            keeper.save()
            control.register("tester", self.recording.symbols, resume=slices > 0)

        def after(_piece: Slice) -> None:
            nonlocal slices
            slices += 1
            if saves(slices):
                keeper.after_slice(broker.order_count)
            if dies_after is not None and slices >= dies_after:
                raise Killed
            on_slice(cerebro.runningstrats[0], slices)
            broker.release_orders()

        def check() -> None:
            if broker.failure is not None:
                raise broker.failure
            if not self.lockstep:
                keeper.after_turn()

        cerebro = LiveCerebro(source=source, wakeup=wakeup, lockstep=self.lockstep, check=check, on_slice=after)
        cerebro.on_ready = ready
        strategy: Any = None
        try:
            source.start(wakeup)
            cerebro.adddata(LiveFeed(symbol="SPY"), name="SPY")
            cerebro.setbroker(broker)
            cerebro.addstrategy(Trader, steps=steps)
            try:
                [strategy] = cerebro.run()
            except Killed:
                strategy = cerebro.runningstrats[0]
            return strategy
        finally:
            gateway = broker._link.gateway if broker._link is not None else None
            if dies_after is not None and gateway is not None:
                gateway._kept.clear()  # what was not sent yet is lost with the process
            broker.stop()
            source.stop()
            journal.close()
            control.unregister("tester")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What a strategy is told when nobody is killed, by order."""
    stage = Stage(tmp_path_factory.mktemp("peace"))
    try:
        return sorted(stage.live().told)
    finally:
        stage.close()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("saves_all", [True, False])
def test_a_strategy_that_is_killed_again_and_again_is_told_what_one_is_told_in_peace(
    stage: Stage, peace: list[list[Any]], every: int, saves_all: bool
) -> None:
    for _ in range(15):
        # The last slice of a life is not part of the state that it leaves behind.
        strategy = stage.live(dies_after=every, saves=(lambda n: True) if saves_all else (lambda n: n < every))
        if strategy.asked == len(SCRIPT) and not strategy.broker.get_orders_open():
            break
    strategy = stage.live()
    assert sorted(strategy.told) == peace
    books = stage.books
    assert sum_positions(books)["SPY"].qty == stage.held() == expect_positions(books)["SPY"].qty
    assert not [order for order in build_orders(books) if order.is_open]
    orders = stage.api.call("GET", "/orders", {"status": "all", "limit": 500})
    assert len({order["client_order_id"] for order in orders}) == len(orders) == 8
    assert strategy.notes == []


def buy_by_hand(stage: Stage, qty: int, name: str) -> None:
    stage.api.submit(
        OrderRequest(
            client_order_id=name, symbol="SPY", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.DAY,
            qty=Decimal(qty),
        )
    )  # fmt: skip


def test_a_manual_trade_while_running_is_marked_and_one_while_away_too(stage: Stage) -> None:
    def trade(strategy: Any, number: int) -> None:
        if number == 2:
            buy_by_hand(stage, 4, "by-hand-1")

    strategy = stage.live((), dies_after=5, on_slice=trade)
    texts = [(note.kind, note.text) for note in strategy.notes]
    assert [kind for kind, _ in texts] == ["foreign_order", "position"]
    assert "buy 4 at 100 by an order of nobody that is known" in texts[1][1]
    assert strategy.broker.getposition(strategy.data).size == 4
    buy_by_hand(stage, 3, "by-hand-2")
    # The market stands still in lock-step while nobody is there: the order is filled in the next run.
    strategy = stage.live((), dies_after=3)
    assert strategy.broker.getposition(strategy.data).size == 7
    assert stage.held() == 7
    assert {each.client_order_id: each.filled_qty for each in stage.books.foreign} == {"by-hand-1": 4, "by-hand-2": 3}
    assert stage.live((), dies_after=2).notes == []


def bust(stage: Stage, number: int) -> None:
    fills = stage.api.call("GET", "/account/activities/FILL", {"direction": "asc"})
    execution_id = fills[number]["id"].rpartition("::")[2]
    stage.api.call("POST", "/v1/busts", {"execution_id": execution_id}, version="dry-work")


def test_a_bust_while_running_and_one_while_away_leave_equal_books(stage: Stage) -> None:
    def take_back(strategy: Any, number: int) -> None:
        if number == 6:
            bust(stage, 1)

    strategy = stage.live((enter,), dies_after=9, on_slice=take_back)
    assert strategy.told[-1] == [1, "Completed", 15.0]
    assert strategy.broker.getposition(strategy.data).size == 15 == stage.held()
    bust(stage, 0)
    strategy = stage.live((enter,), dies_after=3)
    assert [(note.kind, note.symbol) for note in strategy.notes] == [("bust", "SPY")]
    assert strategy.broker.getposition(strategy.data).size == 5 == stage.held()
    books = stage.books
    assert sum_positions(books)["SPY"].qty == 5 == expect_positions(books)["SPY"].qty
    assert sorted(fill.qty for fill in books.fills) == [-10, -10, 5, 10, 10]
    assert stage.live((enter,), dies_after=2).notes == []


def die_when_noted(strategy: Any, number: int) -> None:
    """The account is looked at in its own time, not in the market's."""
    if strategy.notes:
        raise Killed


def test_in_a_market_that_goes_on_what_happened_meanwhile_is_told_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, speed=150.0)

    def die_when_sent(strategy: Any, number: int) -> None:
        if stage.api.call("GET", "/orders", {"status": "all"}):
            raise Killed

    try:
        strategy = stage.live((enter,), dies_after=1_000, on_slice=die_when_sent)
        deadline_s = time.monotonic() + DEADLINE_S
        while stage.held() < 25:
            assert time.monotonic() < deadline_s, "the order fills while nobody is there"
            time.sleep(0.01)
        buy_by_hand(stage, 2, "by-hand")
        while stage.held() < 27:
            assert time.monotonic() < deadline_s, "the other order fills too"
            time.sleep(0.01)
        strategy = stage.live((enter,), dies_after=60, on_slice=die_when_noted)
        told = [row for row in strategy.told if row[0] == 1]
        assert [status for _, status, _ in told if status != "Partial"] == ["Submitted", "Accepted", "Completed"]
        sizes = [size for _, _, size in told]
        assert sizes == sorted(sizes)
        assert sizes[-1] == 25
        assert [note.kind for note in strategy.notes] == ["position"]
        assert strategy.broker.getposition(strategy.data).size == 27
        assert strategy.broker.halted_symbols == {}
    finally:
        stage.close()
