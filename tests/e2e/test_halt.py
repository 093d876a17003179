"""`dry-work halt` and `flatten` against traders that run, hang, stand still and were killed."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from dry_work.alpaca.trading import TradingApi
from dry_work.broker.journal import Journal
from dry_work.embedded.stack import PROJECT, LocalStack
from dry_work.exchange.synthetic import synthetic_day
from dry_work.orders.risk import RiskState

from .processes import Program, wait_until

SYMBOLS = ("BTC/USD", "ETH/USD")
KEYS = {"ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "not-a-secret", "GOOGLE_CLOUD_PROJECT": PROJECT}
Start = Callable[..., Program]

EAGER = """
import sys
import time
import backtrader as bt

def say(line):
    # In one piece, since the log of another thread goes to the same place.
    sys.stdout.write(line + "\\n")
    sys.stdout.flush()

class Eager(bt.Strategy):
    '''Buys at every bar, keeps an entry far below and a stop below the market, and hangs when it is told to.'''
    params = (("hang_at", 0),)

    def __init__(self):
        self.count = 0

    def prenext(self):
        self.next()

    def notify_store(self, message, *args):
        if message == "risk":
            say(f"told {message} {args[0].state}")

    def notify_order(self, order):
        if order.status == order.Rejected:
            say(f"refused {order.info.reject_code}")

    def next(self):
        data = self.datas[0]
        if not len(data):
            return
        self.count += 1
        self.buy(data=data, size=0.01 * self.count)
        if self.count == 3:
            self.buy(data=data, size=0.5, exectype=bt.Order.Limit, price=data.close[0] / 2)
            half = data.close[0] / 2
            self.sell(data=data, size=0.01, exectype=bt.Order.StopLimit, price=half, plimit=half)
        if self.count >= 5:
            say(f"bars {self.count}")
        if self.count == self.p.hang_at:
            say("hanging")
            time.sleep(3600)
"""


class Venue:
    """The stack that traders use, and the account that they trade with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "symbols.txt").write_text("\n".join(SYMBOLS) + "\n")
        (folder / "eager.py").write_text(EAGER)
        self.stack = LocalStack(synthetic_day(SYMBOLS), speed=150.0, cash=Decimal(100_000))
        self.stack.start()
        self.api = TradingApi("PKTEST", "not-a-secret", url=self.stack.exchange.url)
        self.env = {
            **KEYS,
            "ALPACA_URL": self.stack.exchange.url,
            "PUBSUB_EMULATOR_HOST": self.stack.link.pubsub_target or "",
            "AGENT_ID": "eager",
        }

    def stop(self) -> None:
        self.api.close()
        self.stack.stop()

    def all_orders(self) -> list[str]:
        return [order["client_order_id"] for order in self.api.call("GET", "/orders", {"status": "all", "limit": 500})]

    def position(self) -> Decimal:
        return sum((held.qty for held in self.api.positions()), Decimal(0))

    @property
    def journal(self) -> Path:
        return self.folder / ".dry-work" / "eager" / "orders.sqlite"

    def states(self) -> list[str]:
        with sqlite3.connect(self.journal) as db:
            return [row[0] for row in db.execute("SELECT state FROM risk_transitions ORDER BY id")]


@pytest.fixture
def venue(clean_environment: Path) -> Iterator[Venue]:
    venue = Venue(clean_environment)
    yield venue
    venue.stop()


def start_trader(start: Start, venue: Venue, *args: str) -> Program:
    return start("run", "--agent", "eager.py", "--warmup", "0", *args, env=venue.env)


def wait_for_position(venue: Venue) -> None:
    wait_until(lambda: venue.position() > 0 and len(venue.api.open_orders()) >= 2, lambda: "no position and orders")


def wait_for_exit_alone(venue: Venue) -> None:
    """Wait until the entry is canceled; what protects the position stays."""
    wait_until(lambda: [o.side.value for o in venue.api.open_orders()] == ["sell"], lambda: "the entry is still open")


def test_halt_and_flatten_reach_a_strategy_that_hangs(start: Start, venue: Venue) -> None:
    trader = start_trader(start, venue, "-p", "hang_at=6")
    trader.wait_for_line("hanging")
    wait_for_position(venue)
    halt = start("halt", env=venue.env)
    assert halt.wait() == 0, halt.output
    assert "has taken note of it" in halt.output
    wait_for_exit_alone(venue)
    assert venue.position() > 0
    flatten = start("flatten", "--reason", "it hangs", env=venue.env)
    assert flatten.wait() == 0, flatten.output
    assert "is flattening" in flatten.output  # the trader's own process did it
    assert "HALTED since" in flatten.output
    assert "it hangs" in flatten.output
    assert venue.position() == 0
    assert venue.api.open_orders() == []
    assert venue.states() == ["halted", "flattening", "halted"]
    again = start("flatten", env=venue.env)
    assert again.wait() == 0, again.output
    assert venue.position() == 0
    trader.send(signal.SIGTERM)
    assert trader.wait() == 0, trader.output


def test_halt_cancels_entries_and_refuses_orders_until_it_is_released(start: Start, venue: Venue) -> None:
    trader = start_trader(start, venue)
    trader.wait_for_line("bars 5")
    wait_for_position(venue)
    halt = start("halt", "eager", "--reason", "news", env=venue.env)
    assert halt.wait() == 0, halt.output
    assert "has taken note of it" in halt.output
    trader.wait_for_line("told risk halted")
    trader.wait_for_line("refused risk_halted")
    wait_for_exit_alone(venue)
    held, orders = venue.position(), venue.all_orders()
    assert held > 0
    release = start("halt", "--release", env=venue.env)
    assert release.wait() == 0, release.output
    trader.wait_for_line("told risk active")
    wait_until(lambda: len(venue.all_orders()) > len(orders), lambda: "no order after the release")
    assert venue.states() == ["halted", "active"]
    trader.send(signal.SIGTERM)
    assert trader.wait() == 0, trader.output


def test_a_trader_that_stands_still_sends_nothing_when_it_comes_back(start: Start, venue: Venue) -> None:
    trader = start_trader(start, venue)
    trader.wait_for_line("bars 5")
    wait_for_position(venue)
    trader.send(signal.SIGSTOP)
    halt = start("halt", env=venue.env)
    assert halt.wait() == 0, halt.output
    assert "does not answer" in halt.output
    wait_for_exit_alone(venue)
    flatten = start("flatten", env=venue.env)
    assert flatten.wait() == 0, flatten.output
    assert "does not answer" in flatten.output
    assert "nothing is left" in flatten.output
    orders = venue.all_orders()
    assert venue.position() == 0
    trader.send(signal.SIGCONT)
    trader.wait_for_line("told risk halted")
    trader.wait_for_line("refused risk_halted")
    assert venue.all_orders() == orders
    trader.send(signal.SIGTERM)
    assert trader.wait() == 0, trader.output


def test_halt_and_flatten_reach_a_trader_whose_order_is_not_answered(start: Start, venue: Venue) -> None:
    trader = start_trader(start, venue)
    trader.wait_for_line("bars 5")
    wait_for_position(venue)
    silent = {"on": "http", "kind": "silent", "method": "POST", "path": "/v2/orders"}
    venue.api.call("POST", "/faults", silent, version="dry-work/v1")
    hangs: Callable[[], bool] = lambda: any(  # noqa: E731
        fault["struck"] for fault in venue.api.call("GET", "/faults", version="dry-work/v1")
    )
    wait_until(hangs, lambda: "no order was sent into the silence")
    halt = start("halt", env=venue.env)
    assert halt.wait() == 0, halt.output
    assert "has taken note of it" in halt.output
    wait_for_exit_alone(venue)
    flatten = start("flatten", env=venue.env)
    assert flatten.wait() == 0, flatten.output
    assert venue.position() == 0
    assert venue.api.open_orders() == []
    assert venue.states() == ["halted", "flattening", "halted"]
    # The order that was not answered is looked up, found missing, and not sent again.
    orders = venue.all_orders()
    trader.wait_for_line("told risk halted")
    trader.wait_for_line("refused risk_halted")
    assert venue.all_orders() == orders
    trader.send(signal.SIGTERM)
    assert trader.wait() == 0, trader.output


def test_a_trader_that_was_killed_is_flattened_by_two_at_once_and_starts_halted(start: Start, venue: Venue) -> None:
    trader = start_trader(start, venue)
    trader.wait_for_line("bars 5")
    wait_for_position(venue)
    trader.send(signal.SIGKILL)
    trader.wait()
    both = [start("flatten", env=venue.env) for _ in range(2)]
    for flatten in both:
        assert flatten.wait() == 0, flatten.output
        assert "no trader is running" in flatten.output
    assert venue.position() == 0
    assert venue.api.open_orders() == []
    assert venue.states()[-1] == "halted"
    orders = venue.all_orders()
    halted = start_trader(start, venue)
    assert "HALTED since" in halted.wait_for_line("risk: HALTED.*")[0]
    halted.wait_for_line("refused risk_halted")
    halted.send(signal.SIGTERM)
    assert halted.wait() == 0, halted.output
    assert venue.all_orders() == orders
    resumed = start_trader(start, venue, "--resume-trading")
    wait_until(lambda: len(venue.all_orders()) > len(orders), lambda: resumed.output)
    assert "risk: HALTED" not in resumed.output
    resumed.send(signal.SIGTERM)
    assert resumed.wait() == 0, resumed.output
    journal = Journal(venue.journal)
    try:
        assert journal.risk().state is RiskState.ACTIVE
    finally:
        journal.close()


def test_flatten_without_credentials_or_with_those_of_another_account_closes_nothing(
    start: Start, venue: Venue
) -> None:
    trader = start_trader(start, venue)
    trader.wait_for_line("bars 5")
    trader.send(signal.SIGKILL)
    trader.wait()
    # Orders at market of the last bar are filled with the next one.
    wait_until(lambda: all(o.type.value != "market" for o in venue.api.open_orders()), lambda: "orders at market")
    held = venue.position()
    without = start("flatten", "eager")
    assert without.wait() == 1, without.output
    assert "no Alpaca credentials" in without.output
    assert "the agent does it when it runs" in without.output
    wrong = start("flatten", "eager", env={**venue.env, "ALPACA_API_KEY": "PKOTHER"})
    assert wrong.wait() == 2, wrong.output
    assert "another account" in wrong.output
    assert venue.position() == held
    # What is asked for is not forgotten.
    after = start_trader(start, venue)
    assert "FLATTENING since" in after.wait_for_line("risk: FLATTENING.*")[0]
    wait_until(lambda: venue.states()[-1] == "halted", lambda: after.output)
    assert venue.position() == 0
    after.send(signal.SIGTERM)
    assert after.wait() == 0, after.output


LOSER = """
import backtrader as bt

class Loser(bt.Strategy):
    '''Buys all it can and holds it.'''
    def next(self):
        if len(self.data) == 20:
            self.buy(size=int(0.9 * self.broker.getcash() / self.data.close[0]))
            self.sell(exectype=bt.Order.Stop, price=self.data.close[0] / 2, size=1)
"""


def test_a_run_that_a_limit_halts_ends_with_3_and_equal_runs_end_alike(start: Start, clean_environment: Path) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    (clean_environment / "loser.py").write_text(LOSER)
    (clean_environment / "dry-work.toml").write_text('[risk]\nday_loss = 50\nloss_action = "flatten"\n')
    runs = [start("run", "--local", "--json", "--agent", "loser.py") for _ in range(2)]
    for run in runs:
        assert run.wait() == 3, run.output
        assert "risk limit day_loss" in run.output
        assert "stopped: HALTED since" in run.output
        assert '"positions": {}' in run.lines[-1]
    drop = '"seconds"'
    assert runs[0].lines[-1].split(drop)[0] == runs[1].lines[-1].split(drop)[0]
