"""What the broker's side does while the simulated exchange is away, and after it has come back with its state."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dry_work.alpaca.streams import SliceMark, TradeUpdates
from dry_work.alpaca.trading import TradingApi
from dry_work.alpaca.venues import open_venue
from dry_work.broker.account import AccountCache
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.journal import Journal
from dry_work.broker.venue_link import VenueLink
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce
from dry_work.wakeup import Wakeup
from tests.ports import find_free_port

RECORDING = synthetic_day(["BTC/USD"], minutes=30)
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def build_request(name: str) -> OrderRequest:
    return OrderRequest(
        client_order_id=name, symbol="BTC/USD", side=Side.BUY, type=OrderType.LIMIT, time_in_force=TimeInForce.GTC,
        qty=Decimal("0.01"), limit_price=Decimal(2000),
    )  # fmt: skip


class Exchange:
    """An exchange in lock-step that can be stopped and started again on its port and its state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = find_free_port()
        self.start()

    def start(self) -> None:
        self.server = ExchangeServer(RECORDING, rules="alpaca", state_dir=self._folder, port=self.port)
        self.server.start()

    def api(self, key: str = "KEY") -> TradingApi:
        return TradingApi(key, "SECRET", url=self.server.url, timeout_s=DEADLINE_S)


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    exchange = Exchange(tmp_path / "exchange")
    yield exchange
    exchange.server.stop()


def test_the_stream_brings_what_happened_while_it_was_cut_once_and_in_order(exchange: Exchange) -> None:
    events: list[Any] = []
    marks: list[SliceMark] = []
    listening: list[int] = []
    stream = TradeUpdates(
        f"{exchange.server.stream_url}/stream", api_key="KEY", secret_key="SECRET", on_event=events.append,
        on_listening=listening.append, on_unreadable=lambda error: None, on_failure=lambda error: None,
        on_slice=marks.append, longest_wait_s=1.0, rng=random.Random(1),
    )  # fmt: skip
    api = exchange.api()
    try:
        stream.start()
        stream.wait_listening(DEADLINE_S)
        api.submit(build_request("before"))
        wait_until(lambda: len(events) == 2)
        exchange.server.stop()
        wait_until(lambda: not stream.connected)
        exchange.start()
        api.submit(build_request("meanwhile"))
        wait_until(lambda: len(events) == 4)
        wait_until(lambda: listening == [1, 2])
        assert stream.resumed
        found = [(event.order.client_order_id, event.event) for event in events]
        assert found == [(name, what) for name in ("before", "meanwhile") for what in ("pending_new", "new")]
        assert [event.event_id for event in events] == sorted({event.event_id for event in events})
    finally:
        api.close()
        stream.stop()


def test_events_of_another_account_are_not_waited_for(exchange: Exchange, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    failures: list[BaseException] = []
    link = VenueLink(
        venue=open_venue("KEY", "SECRET", url=exchange.server.url, timeout_s=5.0), refresh_s=None, wakeup=Wakeup(),
        cache=AccountCache(), open_orders=tuple, is_due=lambda: False, on_failure=failures.append, counters=Counter(),
    )  # fmt: skip
    other = exchange.api("OTHER")
    try:
        link.connect()
        gateway = link.open_gateway(
            journal, agent="a", session=journal.mint_session("a", session="s", started_ns=0), consumer="a",
            judge=lambda _name: None,
        )  # fmt: skip
        link.begin()
        other.submit(build_request("foreign"))
        exchange.server._loop.call_soon_threadsafe(exchange.server._publish, exchange.server._state.advance())  # type: ignore[union-attr]
        last = exchange.server._state.venue.last_event_id
        assert last
        wait_until(lambda: link._last_event_id == last)
        assert link.has_seen(last)
        assert gateway.resyncs_begun == 0
        assert failures == []
    finally:
        other.close()
        link.stop()
        journal.close()


def test_a_look_up_that_found_nobody_counts_as_not_done(exchange: Exchange, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    outcomes: list[Any] = []
    asked: list[str] = []
    api = exchange.api()
    api.submit(build_request("there"))
    exchange.server.stop()

    def ask(name: str) -> Any:
        asked.append(name)
        return TradingApi.order_by_client_id(api, name)

    api.order_by_client_id = ask  # type: ignore[method-assign]
    gateway = OrderGateway(
        api, journal, on_outcome=outcomes.append, on_failure=lambda error: None, agent="a",
        session=journal.mint_session("a", session="s", started_ns=0), consumer="a", attempts=2, first_wait_s=0.01,
    )  # fmt: skip
    try:
        gateway.start()
        gateway.resync(["there"])
        gateway.look_up(["next"])
        wait_until(lambda: "next" in asked)
        assert (gateway.resyncs_begun, gateway.resyncs_done) == (1, 0)
        exchange.start()
        gateway.resync(["there"])
        wait_until(lambda: gateway.resyncs_done)
        assert (gateway.resyncs_begun, gateway.resyncs_done) == (2, 2)
        assert [outcome.order.client_order_id for outcome in outcomes if outcome.order] == ["there"]
    finally:
        gateway.stop()
        journal.close()
