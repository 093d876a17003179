"""The request budget at the real simulated exchange: what is urgent goes first, and nothing is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dry_work.alpaca.limits import UNSHARED, Priority, RateLimit, RateLimiter
from dry_work.alpaca.trading import TradingApi
from dry_work.alpaca.venue_api import VenueApi
from dry_work.alpaca.venues import open_venue
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.journal import Journal
from dry_work.broker.outcomes import OrderRefused, OrderTaken
from dry_work.clock import ManualClock
from dry_work.errors import RateLimitedError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce

BUDGET = 20
DEADLINE_S = 60.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time_ns())


@pytest.fixture
def exchange(clock: ManualClock, request: pytest.FixtureRequest) -> Iterator[ExchangeServer]:
    budget = getattr(request, "param", BUDGET)
    server = ExchangeServer(synthetic_day(("SPY",), minutes=5), requests_per_minute=budget, clock=clock)
    server.start()
    yield server
    server.stop()


def order(number: int) -> OrderRequest:
    return OrderRequest(
        client_order_id=f"c{number}", symbol="SPY", side=Side.BUY, type=OrderType.MARKET,
        time_in_force=TimeInForce.DAY, qty=Decimal(1),
    )  # fmt: skip


def test_polling_leaves_room_for_orders_and_orders_for_the_brake(exchange: ExchangeServer) -> None:
    venue = open_venue("KEY", "SECRET", url=exchange.url)
    poller, worker = venue.open_api(patience_s=0.0), venue.open_api(patience_s=0.0)
    brake = venue.open_api(priority=Priority.BRAKE, patience_s=0.0)
    sent: list[str] = []
    refusals: list[RateLimitedError] = []

    def send_all(name: str, api: VenueApi) -> None:
        for number in range(BUDGET):
            try:
                if name == "orders":
                    api.submit(order(number))
                else:
                    api.open_orders()
            except RateLimitedError as error:
                refusals.append(error)
                return
            sent.append(name)

    send_all("polling", poller)
    send_all("orders", worker)
    send_all("brake", brake)
    assert [sent.count(name) for name in ("polling", "orders", "brake")] == [15, 4, 1]
    assert [error.http_status for error in refusals] == [None] * 3  # it was not the exchange that refused
    assert all(error.retry_after_s for error in refusals)
    assert sent == sorted(sent, key=["polling", "orders", "brake"].index)
    for api in (poller, worker, brake):
        api.close()


@pytest.mark.parametrize("exchange", [1], indirect=True)
def test_of_those_who_wait_the_most_urgent_goes_first(exchange: ExchangeServer, clock: ManualClock) -> None:
    venue = open_venue("KEY", "SECRET", url=exchange.url)
    limiter = RateLimiter(RateLimit(None), clock=clock)
    gone: list[Priority] = []

    def ask(priority: Priority) -> None:
        options = {"url": venue.url, "limiter": limiter, "priority": priority, "patience_s": 1e6}
        api = TradingApi("KEY", "SECRET", **options)
        api.open_orders()
        gone.append(priority)
        api.close()

    ask(Priority.POLLING)  # spends what this minute has
    threads = []
    for count, priority in enumerate(reversed(Priority), 1):  # the least urgent waits for longest
        threads.append(threading.Thread(target=ask, args=(priority,), daemon=True))
        threads[-1].start()
        wait_until(lambda count=count: len(limiter._waiting) == count)
    assert gone == [Priority.POLLING]
    for count in range(2, 2 + len(threads)):
        clock.advance(200.0)  # more than a window: the date of answers is not that of the exchange's clock here
        limiter.wake()
        wait_until(lambda count=count: len(gone) == count)
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert gone[1:] == list(Priority)


@pytest.mark.parametrize("exchange", [1], indirect=True)
def test_an_order_that_waits_for_the_budget_heeds_its_age_the_risk_gate_and_the_stop(
    exchange: ExchangeServer, tmp_path: Path
) -> None:
    api = open_venue("KEY", "SECRET", url=exchange.url).open_api(patience_s=0.0)
    journal = Journal(tmp_path / "orders.sqlite")
    outcomes: list[Any] = []
    failures: list[BaseException] = []
    judged: list[str] = []
    gateway = OrderGateway(
        api, journal, on_outcome=outcomes.append, on_failure=failures.append, agent="a", consumer="a",
        session=journal.mint_session("a", session="s", started_ns=1), order_age_s=2.0, first_wait_s=0.01,
        judge=lambda name: judged.append(name),
    )  # fmt: skip
    # The venue names a wait, which is shortened so that the age ends it.
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED))
    api.limiter = limiter
    limiter.acquire(timeout_s=0.0)
    limiter.observe(200, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "5"})
    gateway.start()
    gateway.submit(order(1), number=1, at_ns=1)
    wait_until(lambda: len(outcomes) == 1)
    assert isinstance(outcomes[0], OrderRefused)
    assert "not sent within 2 s" in str(outcomes[0].error)
    assert "the request budget" in str(outcomes[0].error)
    gateway.submit(order(2), number=2, at_ns=1)
    wait_until(lambda: len(outcomes) == 2)
    assert isinstance(outcomes[1], OrderTaken)
    assert judged[-1] == "c2"
    # The next window is a minute away.
    gateway.submit(order(3), number=3, at_ns=1)
    wait_until(lambda: judged[-1] == "c3")
    gateway.stop(0.1)
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "order worker"])
    assert failures == []
    assert exchange.describe()["orders"] == 1
    journal.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
