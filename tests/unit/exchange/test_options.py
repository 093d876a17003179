"""Options: chains and prices, orders and their cover, exercise, the end of contracts, and a restart."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from dry_work.clock import DAY_NS, MINUTE_NS, SECOND_NS
from dry_work.exchange.account import AccountSettings
from dry_work.exchange.chance import PartialFills
from dry_work.exchange.commands import Advance, CloseSlice, Exercise, OpenAccount, Submit
from dry_work.exchange.market import OpenSlice
from dry_work.exchange.option_contracts import OptionChains, OptionContract, list_strikes, parse_contract, root_of
from dry_work.exchange.option_prices import compute_greeks, derive_bars, price_options, quote_around, volatility_of
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.state import ExchangeState
from dry_work.exchange.tables import MarketTables
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickRecording
from dry_work.market.calendar import SessionCalendar
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side, TimeInForce, VenueOrder

D = Decimal
CALENDAR = SessionCalendar()
CLOSE = "2024-06-11 16:00"
CALL, PUT = "SPY240611C00100000", "SPY240611P00100000"  # end today
LATER = "SPY240614C00100000"


def at(text: str) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("America/New_York"))
    return int(moment.timestamp()) * SECOND_NS


def record(prices: list[float], *, first: str = "2024-06-11 15:50", symbols: tuple[str, ...] = ("SPY",)) -> Recording:
    """Minutes of stocks with flat bars; the last one may be on another day."""
    times = at(first) + MINUTE_NS * np.arange(len(prices))
    column = np.array(prices)
    names = {"open": column, "high": column, "low": column, "close": column, "volume": np.full(len(prices), 5000.0)}
    return Recording({symbol: {"ts_event_ns": times, **names} for symbol in symbols})


class Floor:
    """An exchange's state that is moved by hand."""

    def __init__(self, prices: list[float], *, cash: str = "100000", write: Any = None, **recorded: Any) -> None:
        self.recording = record(prices, **recorded)
        self.chains = OptionChains(self.recording, CALENDAR)
        self.state = ExchangeState(
            self.recording,
            tables=MarketTables(self.recording, TickRecording({})),
            rules="alpaca",
            cash=D(cash),
            expected=0,
            calendar=CALENDAR,
            chains=self.chains,
            partial_fills=PartialFills(),
            write=write,
        )
        self.number = 0

    def open(self, key: str = "a") -> Floor:
        self.state.execute(OpenAccount(key_id=key))
        return self

    def step(self, count: int = 1) -> OpenSlice:
        for _ in range(count):
            if self.state.current is not None:
                self.state.close_slice()
            self.state.advance()
        assert self.state.current is not None
        return self.state.current

    def order(self, side: Side, symbol: str, qty: str, /, *, limit: str | None = None, **fields: Any) -> VenueOrder:
        self.number += 1
        asked: dict[str, Any] = {
            "client_order_id": f"c{self.number}", "symbol": symbol, "side": side, "qty": D(qty),
            "type": OrderType.MARKET if limit is None else OrderType.LIMIT,
            "limit_price": None if limit is None else D(limit), "time_in_force": TimeInForce.DAY,
        }  # fmt: skip
        order: VenueOrder = self.state.execute(Submit(key_id="a", request=OrderRequest(**asked | fields)))
        return order

    def refused(self, *asked: Any, **fields: Any) -> tuple[int, int, str]:
        with pytest.raises(RefusedError) as error:
            self.order(*asked, **fields)
        return error.value.http_status, error.value.code, error.value.message

    def held(self) -> dict[str, Decimal]:
        return {position.symbol: position.qty for position in self.state.venue.positions("a")}

    @property
    def cash(self) -> Decimal:
        return self.state.venue.account("a").cash

    def kinds(self) -> list[tuple[str, str, Decimal]]:
        return [(one.kind, one.symbol, one.qty) for one in self.state.accounts["a"].settlements]


@pytest.fixture
def floor() -> Floor:
    """Ten to four, SPY at 100, its first bar is over."""
    floor = Floor([100.0] * 5 + [104.0] * 8).open()
    floor.step()
    return floor


# Contracts and prices


def test_a_symbol_says_what_the_contract_is() -> None:
    contract = parse_contract("AAPL240621P00192500")
    assert contract == OptionContract("AAPL240621P00192500", "AAPL", "AAPL", date(2024, 6, 21), False, D("192.5"))
    assert (contract.name, contract.intrinsic(D(190))) == ("AAPL Jun 21 2024 192.5 Put", D("2.5"))
    assert root_of("BRK.B") == "BRKB"


@pytest.mark.parametrize(("price", "count"), [(3.0, 5), (40.0, 26), (100.0, 14), (535.0, 15), (5000.0, 62)])
def test_strikes_lie_around_the_price(price: float, count: int) -> None:
    strikes = list_strikes(price)
    assert (len(strikes), strikes == tuple(sorted(strikes))) == (count, True)
    assert strikes[0] <= D(repr(price * 0.75))
    assert strikes[-1] >= D(repr(price * 1.25))
    assert min(strikes) > 0


def test_chains_end_on_the_first_day_each_week_and_on_third_fridays() -> None:
    chains = OptionChains(record([100.0], symbols=("SPY", "BRK.B", "SPY1")), CALENDAR)
    days = chains.expirations
    assert days[:3] == (date(2024, 6, 11), date(2024, 6, 14), date(2024, 6, 21))
    assert date(2024, 7, 19) in days
    assert date(2024, 8, 16) in days
    assert date(2024, 8, 9) not in days
    assert chains.underlyings == ("BRK.B", "SPY")
    assert all(CALENDAR.sessions(day, day) for day in days)
    found = chains.contract("BRKB240614C00100000")
    assert found is not None
    assert (found.underlying, chains.find_by_id("00000000-0000-0000-0000-000000000000")) == ("BRK.B", None)
    assert chains.contract("SPY240614C00100010") is None
    assert chains.contract("SPY249914C00100000") is None
    assert chains.contract("SPY") is None
    listed = chains.contracts(["SPY"])
    assert len(listed) == 2 * len(days) * len(chains.strikes("SPY"))
    assert all(chains.contract(contract.symbol) == contract for contract in listed)


def test_prices_keep_parity_and_greeks_their_signs() -> None:
    call, put = parse_contract("SPY240621C00100000"), parse_contract("SPY240621P00100000")
    left = np.array([30.0 * DAY_NS])
    spot = np.array([103.0])
    difference = price_options(call, spot, left) - price_options(put, spot, left)
    assert difference[0] == pytest.approx(103 - 100 * np.exp(-0.04 * 30 / 365), abs=1e-9)
    assert price_options(call, spot, np.array([0.0]))[0] == 3.0
    assert price_options(put, spot, np.array([-5.0]))[0] == 0.0
    assert 0.18 <= volatility_of("SPY") <= 0.6
    up, down = compute_greeks(call, 103.0, 30 * DAY_NS), compute_greeks(put, 103.0, 30 * DAY_NS)
    assert up is not None
    assert down is not None
    assert 0.5 < up.delta < 1
    assert up.delta - down.delta == pytest.approx(1, abs=1e-5)
    assert (up.gamma, up.vega) == (down.gamma, down.vega)
    assert up.theta < 0 < up.rho
    assert compute_greeks(call, 103.0, 0) is None
    assert quote_around(0.01) == (0.0, 0.02)
    assert quote_around(5.0) == (4.95, 5.05)


@pytest.mark.parametrize("symbol", [CALL, PUT])
def test_bars_hold_their_prices_between_low_and_high(symbol: str) -> None:
    columns = {"open": [100.0, 101.0], "high": [103.0, 101.0], "low": [99.0, 97.0], "close": [101.0, 98.0],
               "volume": [10.0, 5000.0]}  # fmt: skip
    times = at("2024-06-11 10:00") + MINUTE_NS * np.arange(2)
    bars = derive_bars(parse_contract(symbol), times, columns, MINUTE_NS, at(CLOSE))
    assert np.all(bars["low"] <= np.minimum(bars["open"], bars["close"]))
    assert np.all(bars["high"] >= np.maximum(bars["open"], bars["close"]))
    assert np.all(bars["low"] >= 0.01)
    assert bars["volume"].tolist() == [1.0, 10.0]
    assert np.allclose(bars["close"] * 100, np.round(bars["close"] * 100))


# Orders


def test_a_contract_is_a_hundred_shares_in_money_and_value(floor: Floor) -> None:
    order = floor.order(Side.BUY, CALL, "3")
    floor.step()
    fill = floor.state.accounts["a"].fills[0]
    assert (fill.order.id, fill.qty, fill.position_qty) == (order.id, D(3), D(3))
    assert fill.price is not None
    assert floor.cash == D(100_000) - fill.price * 300
    floor.step()
    price = floor.state.venue.last_price(CALL)
    assert price is not None
    assert floor.state.venue.equity("a") == floor.cash + price * 300
    floor.order(Side.SELL, CALL, "3")
    assert floor.refused(Side.SELL, CALL, "1")[2] == "insufficient qty available for order (requested: 1, available: 0)"
    floor.step()
    assert floor.held() == {}


@pytest.mark.parametrize(
    ("asked", "fields", "message"),
    [
        ((Side.BUY, "SPY240611C00100010", "1"), {}, 'asset "SPY240611C00100010" not found'),
        ((Side.BUY, CALL, "1.5"), {}, "qty must be integer for options trading"),
        ((Side.BUY, CALL, "1"), {"time_in_force": TimeInForce.GTC}, "invalid option time_in_force"),
        ((Side.BUY, CALL, "1"), {"limit": "1", "extended_hours": True},
         "extended hours is not supported for options trading"),
        ((Side.BUY, CALL, "1"), {"order_class": OrderClass.OTO, "take_profit": D(9)},
         "complex orders not supported for options trading"),
        ((Side.BUY, CALL, "1"), {"type": OrderType.STOP, "stop_price": D(9)},
         "invalid order type for options trading: expected market or limit"),
        ((Side.BUY, CALL, "1"), {"limit": "1.005"},
         "invalid limit_price 1.005. sub-penny increment does not fulfill minimum pricing criteria"),
        ((Side.BUY, CALL, "1"), {"qty": None, "notional": D(100)},
         "notional orders are not supported for options trading"),
    ],
)  # fmt: skip
def test_what_the_rules_forbid_is_refused_in_alpacas_words(
    floor: Floor, asked: tuple[Any, ...], fields: dict[str, Any], message: str
) -> None:
    assert floor.refused(*asked, **fields) == (422, 42210000, message)


def test_what_is_not_covered_is_refused(floor: Floor) -> None:
    uncovered = (403, 40310000, "account not eligible to trade uncovered option contracts")
    assert floor.refused(Side.SELL, LATER, "1") == uncovered
    needed = "insufficient options buying power (required: 110000, available: 100000)"
    assert floor.refused(Side.SELL, PUT, "11") == (403, 40310000, needed)
    assert floor.refused(Side.BUY, LATER, "1000", limit="2")[2] == (
        "insufficient options buying power (required: 200000, available: 100000)"
    )
    floor.order(Side.BUY, "SPY", "150")
    floor.step()
    assert floor.refused(Side.SELL, LATER, "2")[2] == (
        "insufficient underlying qty available for covered call (required: 200, available: 150)"
    )
    floor.order(Side.SELL, LATER, "1")
    assert floor.refused(Side.SELL, "SPY", "60")[2] == (
        "insufficient qty available for order (requested: 60, available: 50)"
    )
    floor.step()
    assert floor.held() == {"SPY": D(150), LATER: D(-1)}
    assert floor.refused(Side.SELL, "SPY", "60")[0] == 403
    floor.order(Side.BUY, LATER, "1")
    floor.step()
    floor.order(Side.SELL, "SPY", "150")
    floor.step()
    assert floor.held() == {}


def test_a_short_put_holds_its_strike_in_cash(floor: Floor) -> None:
    floor.order(Side.SELL, PUT, "4", limit="0.01")
    assert floor.state.venue.non_marginable_buying_power("a") == D(60_000)
    floor.step()
    assert floor.held() == {PUT: D(-4)}
    premium = floor.cash - 100_000
    assert premium > 0
    assert floor.state.venue.non_marginable_buying_power("a") == 60_000 + premium


@pytest.mark.parametrize(
    ("level", "asked"), [(0, (Side.BUY, CALL, "1")), (1, (Side.BUY, CALL, "1")), (0, (Side.SELL, PUT, "1"))]
)
def test_a_lower_level_forbids_more(floor: Floor, level: int, asked: tuple[Any, ...]) -> None:
    floor.state.venue.change_settings("a", AccountSettings(max_options_trading_level=level))
    assert floor.refused(*asked)[2].startswith("account not eligible to trade options at this level")
    if level:
        floor.order(Side.SELL, PUT, "1")


def test_at_market_outside_the_session_and_after_the_end_nothing_is_taken() -> None:
    floor = Floor([100.0] * 3, first="2024-06-11 15:58").open()
    floor.step(2)
    assert floor.state.venue.now_ns == at(CLOSE)
    closed = "options market orders are only allowed during market hours"
    assert floor.refused(Side.BUY, LATER, "1") == (422, 42210000, closed)
    assert floor.refused(Side.BUY, CALL, "1", limit="1") == (422, 42210000, f'contract "{CALL}" is expired')
    assert floor.order(Side.BUY, LATER, "1", limit="1").status == "accepted"


# Exercise and end


def test_a_call_is_exercised_at_its_strike(floor: Floor) -> None:
    exercise = Exercise(key_id="a", symbol=CALL)
    with pytest.raises(RefusedError, match="no available position for the specified contract"):
        floor.state.execute(exercise)
    with pytest.raises(RefusedError, match="invalid symbol"):
        floor.state.execute(Exercise(key_id="a", symbol="SPY"))
    floor.order(Side.BUY, CALL, "2")
    floor.step()
    before = floor.cash
    floor.state.execute(exercise)
    assert floor.held() == {"SPY": D(200)}
    assert floor.cash == before - 20_000
    assert floor.kinds() == [("OPEXC", CALL, D(-2)), ("OPTRD", "SPY", D(200))]
    with pytest.raises(RefusedError, match="not taken back after an exercise"):
        floor.state.venue.take_back("a", floor.state.accounts["a"].fills[0], [])
    floor.order(Side.SELL, PUT, "1", limit="0.01")
    floor.step()
    with pytest.raises(RefusedError) as short:
        floor.state.execute(Exercise(key_id="a", symbol=PUT))
    assert (short.value.http_status, short.value.code) == (403, 40310001)


def test_a_put_is_exercised_with_the_shares_at_hand(floor: Floor) -> None:
    floor.order(Side.BUY, PUT, "1")
    floor.step()
    with pytest.raises(RefusedError, match=r"insufficient underlying qty available for exercise \(required: 100"):
        floor.state.execute(Exercise(key_id="a", symbol=PUT))
    floor.order(Side.BUY, "SPY", "100")
    floor.step()
    before = floor.cash
    floor.state.execute(Exercise(key_id="a", symbol=PUT))
    assert (floor.held(), floor.cash) == ({}, before + 10_000)


def test_at_the_close_what_is_in_the_money_becomes_shares_and_the_rest_nothing(floor: Floor) -> None:
    floor.order(Side.BUY, CALL, "2")
    floor.order(Side.BUY, PUT, "1")
    floor.step()
    before = floor.cash
    floor.step(7)
    assert floor.held() == {CALL: D(2), PUT: D(1)}
    floor.step()  # the minute before four
    assert floor.state.venue.now_ns == at(CLOSE)
    assert (floor.held(), floor.cash) == ({"SPY": D(200)}, before - 20_000)
    assert floor.kinds() == [("OPEXC", CALL, D(-2)), ("OPTRD", "SPY", D(200)), ("OPEXP", PUT, D(-1))]
    assert {one.time_ns for one in floor.state.accounts["a"].settlements} == {at(CLOSE)}


def test_short_contracts_are_assigned(floor: Floor) -> None:
    floor.order(Side.BUY, "SPY", "100")
    floor.step()
    floor.order(Side.SELL, CALL, "1")
    floor.step()
    before = floor.cash
    floor.step(7)
    assert (floor.held(), floor.cash) == ({}, before + 10_000)
    assert floor.kinds() == [("OPASN", CALL, D(1)), ("OPTRD", "SPY", D(-100))]


def test_who_cannot_take_the_shares_is_paid_what_the_contract_is_worth() -> None:
    floor = Floor([100.0] * 5 + [104.0] * 8, cash="1000").open()
    floor.step()
    floor.order(Side.BUY, CALL, "1")
    floor.step()
    before = floor.cash
    floor.step(8)
    assert (floor.held(), floor.cash) == ({}, before + 400)
    assert floor.kinds() == [("OPCSH", CALL, D(-1))]


def test_a_contract_whose_close_no_slice_saw_is_worth_what_the_stock_was_then() -> None:
    recording = record([100.0, 100.0, 104.0, 50.0])
    times = np.array(recording.columns("SPY")["ts_event_ns"])
    times[-1] = at("2024-06-12 10:00")
    floor = Floor([100.0, 100.0, 104.0, 50.0])
    columns = {name: np.array(column) for name, column in recording.columns("SPY").items()} | {"ts_event_ns": times}
    later = Recording({"SPY": columns})
    floor.state = ExchangeState(
        later, tables=MarketTables(later, TickRecording({})), rules="alpaca", cash=D(100_000), expected=0,
        calendar=CALENDAR, chains=OptionChains(later, CALENDAR),
    )  # fmt: skip
    floor.open()
    floor.step()
    floor.order(Side.BUY, CALL, "1")
    floor.step(3)
    assert floor.held() == {"SPY": D(100)}
    assert floor.state.accounts["a"].settlements[0].time_ns == at(CLOSE)


def test_a_restart_finds_the_same_options() -> None:
    commands: list[Any] = []
    floor = Floor([100.0] * 5 + [104.0] * 8, write=lambda command, relied_on: commands.append(command)).open()
    floor.step()
    floor.order(Side.BUY, CALL, "2")
    floor.order(Side.BUY, LATER, "1")
    floor.step()
    floor.state.execute(Exercise(key_id="a", symbol=LATER))
    floor.step(8)
    again = Floor([100.0] * 5 + [104.0] * 8)
    again.state.replay(commands)
    assert {type(command) for command in commands} >= {Submit, Exercise, Advance, CloseSlice}
    assert (again.held(), again.cash, again.kinds()) == (floor.held(), floor.cash, floor.kinds())
    assert again.held() == {"SPY": D(300)}


async def test_a_server_without_options_trades_none(
    run_exchange: Callable[..., ExchangeServer], connect: Callable[..., Any], tmp_path: Path
) -> None:
    from dry_work.exchange.offerings import Offerings

    client = connect(run_exchange(rules="alpaca", offerings=Offerings(options=False), state_dir=tmp_path))
    await client.register()
    assert (await client.call("GET", "/v2/options/contracts"))[1]["option_contracts"] == []
    status, body = await client.submit(symbol="SPY240611C00100000", time_in_force="day")
    assert (status, body["message"]) == (422, 'asset "SPY240611C00100000" not found')
    status, body = await client.call("POST", "/v2/orders", {"order_class": "mleg", "qty": "1", "legs": []})
    assert (status, body["code"], body["message"][:20]) == (422, 42210000, "mleg orders are not ")
