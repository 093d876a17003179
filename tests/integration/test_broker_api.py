"""The Broker API at the real simulated exchange: what a strategy hears is what it hears by the Trading API."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest

from dry_work.alpaca.simulated import ExchangeControl
from dry_work.alpaca.venues import open_venue
from dry_work.broker.journal import JOURNAL_NAME, AccountRecord, Journal
from dry_work.broker.operator import AgentPlace, Operator
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.clock import SystemClock
from dry_work.engine.findings import Finding, Outcome, Subject
from dry_work.engine.live import LiveCerebro
from dry_work.engine.remote_checks import check_venue
from dry_work.errors import ConfigError, VenueAuthError
from dry_work.exchange.identifiers import build_account_id
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.sub_accounts import build_name
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.recorded import Recording
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce
from dry_work.orders.risk_limits import RiskLimits
from dry_work.settings import Credentials
from dry_work.wakeup import Wakeup

from .test_broker import EveryKind, SocketSource, Told

SUB_ACCOUNT = build_account_id(build_name("KEY", 1))


class EveryRow(bt.Strategy):
    """Every row of the order mapping, at bars of their own; what is left at the end is canceled and closed."""

    def __init__(self) -> None:
        self.left: list[Any] = []

    def next(self) -> None:
        [stock] = self.datas
        price, bar = stock.close[0], len(stock)
        day = dt.timedelta(days=1)
        tomorrow = stock.datetime.datetime(0) + day
        orders: dict[int, Callable[[], Any]] = {
            2: lambda: self.buy(data=stock, size=10),
            3: lambda: self.buy(data=stock, size=5, exectype=bt.Order.Market, valid=bt.Order.DAY),
            4: lambda: self.sell(data=stock, size=3, exectype=bt.Order.Limit, price=round(price * 0.999, 2)),
            5: lambda: self.sell(data=stock, size=2, exectype=bt.Order.Stop, price=round(price * 0.9995, 2)),
            6: lambda: self.buy(data=stock, size=4, exectype=bt.Order.Limit, price=round(price * 0.9, 2), valid=day),
            7: lambda: self.sell(
                data=stock, size=1, exectype=bt.Order.StopLimit, price=round(price * 0.9995, 2),
                plimit=round(price * 0.99, 2),
            ),
            8: lambda: self.sell(data=stock, size=1, exectype=bt.Order.StopTrail, trailamount=0.05),
            9: lambda: self.sell(data=stock, size=1, exectype=bt.Order.StopTrail, trailpercent=0.001),
            10: lambda: self.buy(data=stock, size=1, exectype=bt.Order.StopTrailLimit, trailamount=1.0, plimit=1.0),
            11: lambda: self.buy(data=stock, size=6, exectype=bt.Order.Close),
            12: lambda: self.buy_bracket(
                data=stock, size=8, exectype=bt.Order.Market, limitprice=round(price * 1.0005, 2),
                stopprice=round(price * 0.9995, 2),
            ),
            16: lambda: self.buy(data=stock, size=10_000_000),
            18: lambda: self.buy(
                data=stock, size=2, exectype=bt.Order.Limit, price=round(price * 0.8, 2), valid=tomorrow
            ),
            20: lambda: [self.cancel(order) for order in self.left if order is not None and order.alive()],
            24: lambda: self.close(data=stock),
        }  # fmt: skip
        made = orders.get(bar, lambda: None)()
        self.left += [*made] if isinstance(made, list) else [made]
        if bar == 13:  # an OCO pair
            high = self.sell(data=stock, size=2, exectype=bt.Order.Limit, price=round(price * 1.2, 2))
            self.left += [
                high, self.sell(data=stock, size=2, exectype=bt.Order.Stop, price=round(price * 0.8, 2), oco=high)
            ]  # fmt: skip
        self.left = [order for order in self.left if order is not None]


class Coins(bt.Strategy):
    """What there is of crypto."""

    def next(self) -> None:
        [coin] = self.datas
        price, bar = coin.close[0], len(coin)
        if bar == 2:
            self.buy(size=0.25)
        elif bar == 3:
            self.sell(size=0.05, exectype=bt.Order.Limit, price=price * 0.999)
            self.sell(size=0.05, exectype=bt.Order.StopLimit, price=price * 0.9995, plimit=price * 0.99)
            self.sell(size=0.01, exectype=bt.Order.Stop, price=price * 0.99)
        elif bar == 4:
            self.waiting = self.buy(size=0.01, exectype=bt.Order.Limit, price=price * 0.5)
        elif bar == 6:
            self.cancel(self.waiting)
            self.buy(size=1_000_000)
        elif bar == 20:
            self.close()


def run(
    recording: Recording,
    strategy: type[Any],
    tmp_path: Path,
    *,
    account_id: str | None,
    rules: Any = "alpaca",
) -> tuple[list[Any], tuple[Any, Any], float, dict[str, Any], Any]:
    """Run the strategy in lock-step at an exchange of its own; return what it heard, and what the broker knows."""
    exchange = ExchangeServer(recording, rules=rules, consumers=1)
    exchange.start()
    journal = Journal(tmp_path / f"{account_id or 'own'}.sqlite")
    wakeup = Wakeup()
    path = "v1beta3/crypto/us-1" if is_crypto(recording.symbols[0]) else "v2/iex"
    source = SocketSource(exchange.stream_url, recording.symbols, path)
    broker: Any = AlpacaPaperTradingBroker(
        api_key="KEY", secret_key="SECRET", account_id=account_id, url_override=exchange.url, journal=journal,
        agent="tester", session="s", wakeup=wakeup, lockstep=True, rules=rules, risk=None,
    )  # fmt: skip

    def check() -> None:
        if broker.failure is not None:
            raise broker.failure

    live_cerebro: Any = LiveCerebro
    cerebro = live_cerebro(source=source, wakeup=wakeup, lockstep=True, check=check)
    api = open_venue("KEY", "SECRET", url=exchange.url, account_id=account_id).open_api()
    try:
        source.start(wakeup)
        live_feed: Any = LiveFeed
        for symbol in recording.symbols:
            cerebro.adddata(live_feed(symbol=symbol), name=symbol)
        cerebro.setbroker(broker)
        cerebro.addstrategy(strategy)
        cerebro.addanalyzer(Told, _name="told")
        control = ExchangeControl(api)
        cerebro.on_ready = lambda: control.register("tester", recording.symbols)
        [ran] = cerebro.run()
        return ran.analyzers.told.rows, broker.results(), broker.getcash(), exchange.describe(), broker
    finally:
        api.close()
        broker.stop()
        source.stop()
        journal.close()
        exchange.stop()


def anonymize(results: tuple[Any, Any]) -> list[Any]:
    """Leave out what names an account: ids of the venue."""
    return [[{name: row[name] for name in row if not name.endswith("id")} for row in rows] for rows in results]


@pytest.mark.parametrize(
    ("strategy", "rules", "symbols"),
    [(EveryRow, "alpaca", ("SPY",)), (Coins, "alpaca", ("BTC/USD",)), (EveryKind, "backtrader", ("SPY", "BAC"))],
)
def test_both_apis_give_the_same_results(
    tmp_path: Path, strategy: type[Any], rules: str, symbols: tuple[str, ...]
) -> None:
    recording = synthetic_day(symbols, minutes=40)
    own = run(recording, strategy, tmp_path, account_id=None, rules=rules)
    other = run(recording, strategy, tmp_path, account_id=SUB_ACCOUNT, rules=rules)
    assert other[0] == own[0]
    assert anonymize(other[1]) == anonymize(own[1])
    assert other[2] == own[2]
    for name in ("orders", "fills"):
        assert other[3][name] == own[3][name] > 0
    assert other[4].counters == own[4].counters
    told = {row[2] for row in own[0] if row[0] == "order"}
    assert told >= {"Submitted", "Accepted", "Completed", "Canceled", "Margin"}


class Unsteady(EveryKind):
    """Loses its stream at every fifteenth bar."""

    def next(self) -> None:
        if len(self.datas[0]) % 15 == 0:
            self.broker._link.restart_stream()
        super().next()


def test_a_stream_that_is_lost_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    recording = synthetic_day(("SPY", "BAC"), minutes=40)
    steady = run(recording, EveryKind, tmp_path / "steady", account_id=SUB_ACCOUNT, rules="backtrader")
    unsteady = run(recording, Unsteady, tmp_path / "unsteady", account_id=SUB_ACCOUNT, rules="backtrader")
    assert unsteady[:3] == steady[:3]
    assert unsteady[4].counters["stream restarts"] == 2


@pytest.mark.parametrize("account_id", [SUB_ACCOUNT[:-1] + "0", build_account_id("KEY")])
def test_an_account_that_is_not_the_brokers_is_told_with_what_to_do(tmp_path: Path, account_id: str) -> None:
    with pytest.raises(VenueAuthError, match="or unset ALPACA_ACCOUNT_ID to trade with a key's own account"):
        run(synthetic_day(("SPY",), minutes=2), EveryRow, tmp_path, account_id=account_id)


@pytest.fixture
def exchange() -> Iterator[ExchangeServer]:
    server = ExchangeServer(synthetic_day(("SPY",), minutes=300), keys={"KEY": "SECRET"}, speed=60.0)
    server.start()
    yield server
    server.stop()


def test_an_operator_flattens_the_brokers_account_and_no_other(exchange: ExchangeServer, tmp_path: Path) -> None:
    keys = Credentials(key="KEY", secret="SECRET")
    apis = [open_venue("KEY", "SECRET", url=exchange.url, account_id=each).open_api() for each in (SUB_ACCOUNT, None)]
    request = OrderRequest(
        client_order_id="dw-a-s-1", symbol="SPY", side=Side.BUY, type=OrderType.LIMIT, time_in_force=TimeInForce.GTC,
        qty=Decimal(1), limit_price=Decimal(1),
    )  # fmt: skip
    for api in apis:
        api.submit(request)
    journal = Journal(tmp_path / JOURNAL_NAME)
    journal.record_account(AccountRecord(agent="a", account_id=SUB_ACCOUNT, url=exchange.url, mode="paper"))
    journal.close()
    lines: list[str] = []

    def build(account_id: str) -> Operator:
        return Operator(
            AgentPlace(path=tmp_path, agents=("a",)), tell=lines.append, credentials=lambda _mode: keys,
            limits=RiskLimits(), account_id=account_id,
        )  # fmt: skip

    with pytest.raises(ConfigError, match="those of another account than agent a trades with"):
        build("").flatten("by hand")
    assert build(SUB_ACCOUNT).flatten("by hand")
    assert "nothing is left: no open order, no position" in lines
    assert [len(api.open_orders()) for api in apis] == [0, 1]
    for api in apis:
        api.close()


def test_a_check_looks_at_the_brokers_account(exchange: ExchangeServer, tmp_path: Path) -> None:
    (tmp_path / "symbols.txt").write_text("SPY\n")
    keys = {"ALPACA_API_KEY": "KEY", "ALPACA_SECRET_KEY": "SECRET", "ALPACA_URL": exchange.url}

    def look(account_id: str) -> dict[str, Finding]:
        subject = Subject(
            folder=tmp_path, environment={**keys, "ALPACA_ACCOUNT_ID": account_id}, toml={}, timeout_s=20.0
        )
        return {found.part: found for found in check_venue(subject, SystemClock())}

    found = look(SUB_ACCOUNT)
    assert {each.outcome for each in found.values()} == {Outcome.OK}, found
    assert set(found) >= {"account", "rate limit", "clock", "symbols"}
    refused = look(build_account_id("KEY"))["account"]
    assert refused.outcome is Outcome.FAILED
    assert "unset ALPACA_ACCOUNT_ID to trade with the key's own account" in refused.remedy
    assert "a UUID" in look("x")["account"].text
