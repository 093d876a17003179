"""`dry-work status` of real traders at the simulated exchange: running, hanging, killed, beside trades by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, TimeInForce
from alpaca.trading.requests import LimitOrderRequest, MarketOrderRequest, ReplaceOrderRequest

from dry_work.alpaca.trading import TradingApi
from dry_work.broker.books_reader import read_books
from dry_work.embedded.links import PROJECT
from dry_work.embedded.stack import LocalStack
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from tests.e2e.processes import Program, wait_until

SYMBOLS = ("BTC/USD", "ETH/USD")

TRADER = """
import backtrader as bt

class Trader(bt.Strategy):
    '''Buys three times, and leaves one limit order open; a second one it cancels.'''

    def __init__(self):
        self.count = 0

    def save_state(self):
        return {"count": self.count}

    def prenext(self):
        self.next()

    def next(self):
        data = self.datas[0]
        if not len(data):
            return
        self.count += 1
        half = round(data.close[0] / 2)
        if self.count <= 3:
            self.buy(data=data, size=0.01 * self.count)
        elif self.count == 4:
            self.resting = self.buy(data=data, size=0.5, exectype=bt.Order.Limit, price=half)
            self.other = self.buy(data=data, size=0.25, exectype=bt.Order.Limit, price=half)
        elif self.count == 5:
            self.cancel(self.other)
        print("bars", self.count, flush=True)
"""


class Venue:
    """An exchange with Alpaca's rules, hub and Pub/Sub; and the folder that a trader runs in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "symbols.txt").write_text("\n".join(SYMBOLS) + "\n")
        (folder / "trader.py").write_text(TRADER)
        recording = synthetic_day(SYMBOLS)
        self.stack = LocalStack(recording, speed=150.0, cash=Decimal(100_000))
        self.stack.exchange = ExchangeServer(recording, rules="alpaca", speed=150.0, consumers=1)
        self.stack.start()
        self.url = self.stack.exchange.url
        self.by_hand: Any = TradingClient("PKTEST", "not-a-secret", url_override=self.url)
        self.api = TradingApi("PKTEST", "not-a-secret", url=self.url)
        self.env = {
            "ALPACA_API_KEY": "PKTEST",
            "ALPACA_SECRET_KEY": "not-a-secret",
            "ALPACA_URL": self.url,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "PUBSUB_EMULATOR_HOST": self.stack.link.pubsub_target or "",
            "AGENT_ID": "trader",
        }
        self.programs: list[Program] = []

    def start(self, *args: str, **env: str) -> Program:
        self.programs.append(Program(*args, cwd=self.folder, env={**self.env, **env}))
        return self.programs[-1]

    def start_trader(self) -> Program:
        """Start the trader; returns when it has done all that it does."""
        trader = self.start("run", "--agent", "trader.py", "--warmup", "0")
        trader.wait_for_line("bars 6")
        wait_until(lambda: len(self.api.open_orders()) == 1, lambda: trader.output)
        wait_until(lambda: len(read_books(self.journal).fills) == 3, lambda: trader.output)
        return trader

    @property
    def journal(self) -> Path:
        return self.folder / ".dry-work" / "trader" / "orders.sqlite"

    def status(self, *args: str, **env: str) -> tuple[int, str]:
        """Return the exit code and what is printed."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ALPACA", "PUBSUB"))}
        done = subprocess.run(
            [sys.executable, "-m", "dry_work", "status", *args], cwd=self.folder, text=True, timeout=90, check=False,
            env={**inherited, **self.env, "COLUMNS": "80", **env}, capture_output=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def status_json(self, *args: str, **env: str) -> tuple[int, Any]:
        code, output = self.status(*args, "--json", **env)
        return code, json.loads(output)

    def wait_for_position(self, symbol: str, qty: Decimal) -> None:
        def look() -> bool:
            return any(held.symbol == symbol and held.qty >= qty for held in self.api.positions())

        wait_until(look, lambda: f"no {qty} of {symbol}: {self.api.positions()}")

    def stop(self) -> None:
        for program in self.programs:
            if program.process.poll() is None:
                program.send(signal.SIGCONT)
            program.close()
        self.api.close()
        self.by_hand._session.close()
        self.stack.stop()


@pytest.fixture
def venue(clean_environment: Path) -> Iterator[Venue]:
    venue = Venue(clean_environment)
    yield venue
    venue.stop()


def marks(content: Any) -> dict[str, str]:
    rows = [(row["symbol"], row["mark"]) for row in content["positions"]]
    return dict(rows + [(row["terms"].split(" gtc")[0], row["mark"]) for row in content["orders"]])


def test_books_are_equal_until_somebody_trades_by_hand(venue: Venue) -> None:
    trader = venue.start_trader()
    code, content = venue.status_json("trader")
    assert code == 0, content
    assert (content["equal"], content["agent"]["state"]) == (True, "running")
    assert set(marks(content).values()) == {"equal"}
    assert content["ended_at_venue"] == {}  # the agent has written down that one of its orders was canceled
    [held] = content["positions"]
    assert held["qty"] == "0.06"
    assert Decimal(held["venue_qty"]) < Decimal("0.06")  # the venue has taken its fees in coins
    assert "fees" in held["reasons"][0]
    assert content["agent"]["strategy_state"]["strategy"] == "Trader"
    assert content["agent"]["recordings_bytes"] > 0
    assert len(content["last_fills"]) == 3

    request: dict[str, Any] = {"side": OrderSide.BUY, "time_in_force": TimeInForce.GTC}
    venue.by_hand.submit_order(MarketOrderRequest(symbol="BTC/USD", qty=0.5, **request))
    venue.by_hand.submit_order(MarketOrderRequest(symbol="ETH/USD", qty=1, **request))
    venue.by_hand.submit_order(LimitOrderRequest(symbol="BTC/USD", qty=0.1, limit_price=100, **request))
    venue.by_hand.submit_order(
        LimitOrderRequest(symbol="BTC/USD", qty=0.1, limit_price=101, client_order_id="dw-other-x-1", **request)
    )
    venue.wait_for_position("BTC/USD", Decimal("0.5"))
    venue.wait_for_position("ETH/USD", Decimal("0.5"))
    code, content = venue.status_json()
    assert code == 1
    assert content["equal"] is False
    found = marks(content)
    assert found.pop("BTC/USD") == "differs"
    assert found.pop("ETH/USD") == "foreign"
    assert found.pop("buy 0.1 limit 100") == found.pop("buy 0.1 limit 101") == "foreign"
    assert list(found.values()) == ["equal"]
    reasons = next(row["reasons"] for row in content["positions"] if row["symbol"] == "BTC/USD")
    assert reasons[0] == "+0.5 by 1 order of nobody that is known (by hand, or another program)"
    assert "fees" in reasons[1]
    assert all(reason.startswith("marked at") for reason in reasons[2:])  # once the trader has seen them
    code, output = venue.status("trader")
    assert code == 1
    assert all(len(line) <= 80 for line in output.splitlines())
    for words in ("DIFFERS", "foreign", "an order of agent other", "the books differ"):
        assert words in " ".join(output.split())

    trader.send(signal.SIGTERM)
    assert trader.wait() == 0, trader.output
    assert "stopped in order" in venue.status()[1]


def test_a_trader_that_was_killed_is_not_running_and_flatten_makes_its_books_equal(venue: Venue) -> None:
    trader = venue.start_trader()
    trader.send(signal.SIGKILL)
    trader.wait()
    files = {path: path.read_bytes() for path in venue.journal.parent.glob("orders.sqlite*")}
    assert len(files) == 3
    code, output = venue.status()
    assert code == 1
    assert "agent trader: not running: process" in output
    assert "all equal" in output
    assert {path: path.read_bytes() for path in venue.journal.parent.glob("orders.sqlite*")} == files

    code, output = venue.status(ALPACA_API_KEY="PKOTHER")
    assert code == 2
    assert "those of another account" in output
    assert "0.06" in output
    code, output = venue.status(ALPACA_URL="http://127.0.0.1:9")
    assert code == 1
    assert "not reached" in output
    assert "0.06" in output

    flatten = venue.start("flatten")
    assert flatten.wait() == 0, flatten.output
    code, content = venue.status_json()
    assert code == 0, content  # it is not running, but has nothing that somebody should look after
    assert content["agent"]["state"] == "died"
    assert content["agent"]["risk"]["state"] == "halted"
    [held] = content["positions"]
    assert (held["venue_qty"], held["mark"]) == ("0", "equal")
    assert "`dry-work flatten`" in held["reasons"][0]
    assert content["orders"] == []


def test_fills_that_a_trader_which_stands_still_has_missed_are_named(venue: Venue) -> None:
    trader = venue.start_trader()
    trader.send(signal.SIGSTOP)
    [resting] = venue.api.open_orders()
    assert resting.limit_price is not None
    venue.by_hand.replace_order_by_id(resting.id, ReplaceOrderRequest(limit_price=float(resting.limit_price * 3)))
    venue.wait_for_position("BTC/USD", Decimal("0.5"))
    wait_until(lambda: venue.api.open_orders() == [], lambda: "the order is still open")
    code, content = venue.status_json("trader")
    assert code == 1
    [order] = content["orders"]
    assert (order["mark"], order["venue"]) == ("differs", "filled, 0.5 filled")
    assert "the venue has filled 0.5 of it, the journal has 0" in order["reasons"][0]
    [held] = content["positions"]
    assert held["mark"] == "differs"
    assert "that the agent has not taken note of" in held["reasons"][0]
    trader.send(signal.SIGCONT)
    heard: Callable[[], bool] = lambda: len(read_books(venue.journal).fills) > 3  # noqa: E731
    wait_until(heard, lambda: trader.output)
    trader.send(signal.SIGTERM)
    assert trader.wait() == 0, trader.output
    code, content = venue.status_json("trader")
    assert [row["mark"] for row in content["positions"]] == ["equal"]
