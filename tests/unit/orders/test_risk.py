"""The risk gate: each limit by its name, the states, and that nothing gets around them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, MINUTE_NS, SECOND_NS
from dry_work.orders.exposure import Holding, Portfolio, RiskOrder
from dry_work.orders.model import OrderType, Side
from dry_work.orders.risk import (
    Breach,
    LimitName,
    LossMarks,
    Quote,
    RiskCommand,
    RiskGate,
    RiskState,
    next_state,
    trading_day,
)
from dry_work.orders.risk_limits import (
    SETTING_NAMES,
    Bound,
    LossAction,
    RiskLimits,
    RiskValueError,
    parse_limits,
    share,
)

NOW = 20_000 * DAY_NS + 12 * 60 * MINUTE_NS
D = Decimal
PRICE = D(10)
OFF = RiskLimits(
    order_value=None, position_value=None, gross_exposure=None, orders_per_minute=0, repeated_orders=0,
    price_collar=None, stale_bars=0, day_loss=None, drawdown=None,
)  # fmt: skip


def limits(**given_: Any) -> RiskLimits:
    """Return limits that are all off but those given."""
    return msgspec.structs.replace(OFF, **given_)


class Desk:
    """A gate and an account of 1,000 whose prices are all 10."""

    def __init__(self, limits_: RiskLimits, **held: Any) -> None:
        self.gate = RiskGate(limits_)
        self.portfolio = Portfolio(D(1000), {name: Holding(D(str(qty)), PRICE) for name, qty in held.items()})
        self.count = 0

    def ask(
        self, side: str, qty: Any, *, symbol: str = "X", quote: Quote | None = None, now_ns: int = NOW, **given_: Any
    ) -> Breach | None:
        self.count += 1
        order = RiskOrder(id=str(self.count), symbol=symbol, side=Side(side), qty=D(str(qty)), **given_)
        return self.gate.check(order, self.portfolio, quote or Quote(PRICE), now_ns)


def name_of(breach: Breach | None) -> str:
    return breach.limit.value if breach is not None else ""


# Limits per order


def test_an_order_value_is_allowed_up_to_the_limit_and_refused_above_it() -> None:
    desk = Desk(limits(order_value=Bound(D(500))))
    assert desk.ask("buy", 50) is None
    refused = desk.ask("sell", "50.000000001")
    assert refused is not None
    assert refused.code == "risk_order_value"
    assert str(refused) == "risk limit order_value: 500.00; allowed: 500.00"  # the difference is below a cent
    assert str(desk.ask("buy", 51)) == "risk limit order_value: 510.00; allowed: 500.00"


def test_a_value_may_be_a_part_of_the_equity() -> None:
    desk = Desk(limits(order_value=share(50)))
    assert desk.ask("buy", 50) is None
    assert str(desk.ask("buy", 51)) == "risk limit order_value: 510.00; allowed: 500.00 (50 % of equity)"


def test_without_equity_a_part_of_it_allows_nothing() -> None:
    gate = RiskGate(limits(order_value=share(50)))
    order = RiskOrder(id="a", symbol="X", side=Side.BUY, qty=D(1))
    assert name_of(gate.check(order, Portfolio(D(-5), {}), Quote(PRICE), NOW)) == "order_value"


def test_a_position_counts_with_its_open_orders() -> None:
    desk = Desk(limits(position_value=Bound(D(100))), X=4)
    assert desk.ask("buy", 6) is None
    assert name_of(desk.ask("buy", 1)) == "position_value"
    assert desk.ask("sell", 14) is None  # to 10 short in the worst case
    assert name_of(desk.ask("sell", 1)) == "position_value"


def test_several_orders_at_once_count_together() -> None:
    desk = Desk(limits(gross_exposure=Bound(D(100))))
    assert desk.ask("buy", 5, symbol="X") is None
    assert desk.ask("sell", 5, symbol="Y") is None
    refused = desk.ask("buy", 1, symbol="Z")
    assert name_of(refused) == "gross_exposure"
    assert refused is not None
    assert (refused.found, refused.allowed) == ("110.00", "100.00")


def test_what_the_market_has_made_too_large_may_be_made_smaller() -> None:
    desk = Desk(limits(order_value=Bound(D(10)), position_value=Bound(D(10)), gross_exposure=Bound(D(10))), X=40, Y=40)
    assert desk.ask("sell", 40) is None
    assert name_of(desk.ask("sell", 1, symbol="Z")) == "gross_exposure"
    assert name_of(desk.ask("buy", 1, symbol="Y")) == "position_value"


def test_orders_a_minute_are_counted_by_the_time_given() -> None:
    desk = Desk(limits(orders_per_minute=3))
    for second in (0, 20, 40):
        assert desk.ask("buy", 1, now_ns=NOW + second * SECOND_NS) is None
    assert name_of(desk.ask("buy", 1, now_ns=NOW + MINUTE_NS - 1)) == "orders_per_minute"
    assert desk.ask("buy", 1, now_ns=NOW + MINUTE_NS) is None
    assert name_of(desk.ask("buy", 1, now_ns=NOW + MINUTE_NS)) == "orders_per_minute"


def test_a_clock_that_goes_back_a_little_gives_no_room() -> None:
    desk = Desk(limits(orders_per_minute=2))
    assert desk.ask("buy", 1, now_ns=NOW) is None
    assert desk.ask("buy", 1, now_ns=NOW - 2 * SECOND_NS) is None
    assert name_of(desk.ask("buy", 1, now_ns=NOW - SECOND_NS)) == "orders_per_minute"
    assert desk.ask("buy", 1, now_ns=NOW - DAY_NS) is None  # another clock


def test_equal_orders_are_refused_when_they_repeat_too_often() -> None:
    desk = Desk(limits(repeated_orders=2, repeated_seconds=10))
    assert desk.ask("buy", 1) is None
    assert desk.ask("buy", 1, now_ns=NOW + SECOND_NS) is None
    refused = desk.ask("buy", 1, now_ns=NOW + 2 * SECOND_NS)
    assert str(refused) == "risk limit repeated_orders: 3 equal orders for X within 10 s; allowed: 2"
    for other in ({"qty": 2}, {"side": "sell"}, {"symbol": "Y"}, {"limit_price": D(9), "type": OrderType.LIMIT}):
        assert desk.ask(**{"side": "buy", "qty": 1, "now_ns": NOW + 2 * SECOND_NS, **other}) is None
    assert desk.ask("buy", 1, now_ns=NOW + 10 * SECOND_NS) is None  # the first is forgotten


@pytest.mark.parametrize(
    ("side", "prices", "allowed"),
    [
        ("buy", {"limit_price": D(12)}, True),
        ("buy", {"limit_price": D("12.01")}, False),
        ("buy", {"limit_price": D("0.01")}, True),  # waits far below the market: no harm
        ("sell", {"limit_price": D(8)}, True),
        ("sell", {"limit_price": D("7.99")}, False),
        ("sell", {"limit_price": D(1000)}, True),
        ("buy", {"stop_price": D("7.99")}, False),  # would go off at once
        ("buy", {"stop_price": D(30)}, True),
        ("sell", {"stop_price": D("12.01")}, False),
        ("sell", {"stop_price": D(1)}, True),
        ("sell", {"stop_price": D(5), "limit_price": D(4)}, True),
        ("sell", {"stop_price": D(5), "limit_price": D("3.99")}, False),  # measured from where it begins
    ],
)
def test_a_price_may_be_so_much_worse_than_the_last_one(side: str, prices: dict[str, D], allowed: bool) -> None:
    desk = Desk(limits(price_collar=D("0.2")), X=1)
    assert name_of(desk.ask(side, 1, **prices)) == ("" if allowed else "price_collar")


def test_the_collar_says_what_is_wrong() -> None:
    refused = Desk(limits(price_collar=D("0.2"))).ask("buy", 1, limit_price=D(15))
    assert str(refused) == "risk limit price_collar: limit price 15 is 50.0 % worse than 10; allowed: 20 %"


def test_exits_that_come_with_an_entry_are_collared_by_its_price() -> None:
    gate, book = RiskGate(limits(price_collar=D("0.2"))), Portfolio(D(1000), {})
    entry = RiskOrder(id="a", symbol="X", side=Side.BUY, qty=D(1), limit_price=D(9))

    def exits(stop: str, limit: str) -> list[RiskOrder]:
        leg = RiskOrder(id="b", symbol="X", side=Side.SELL, qty=D(1), entry="a")
        return [msgspec.structs.replace(leg, stop_price=D(stop), limit_price=D(limit))]

    assert name_of(gate.check(entry, book, Quote(PRICE), NOW, legs=exits("8", "1"))) == "price_collar"
    assert gate.check(entry, book, Quote(PRICE), NOW, legs=exits("8", "7")) is None


def test_the_exits_of_a_pair_are_collared_by_the_last_price() -> None:
    gate = RiskGate(limits(price_collar=D("0.2")))
    book = Portfolio(D(1000), {"X": Holding(D(1), PRICE)})
    profit = RiskOrder(id="a", symbol="X", side=Side.SELL, qty=D(1), limit_price=D(15), group="g")
    stop = RiskOrder(id="b", symbol="X", side=Side.SELL, qty=D(1), stop_price=D(13), group="g")
    # Below the profit exit, but so far above the market that it would go off at once.
    refused = gate.check(profit, book, Quote(PRICE), NOW, legs=[stop])
    assert str(refused) == "risk limit price_collar: stop price 13 is 30.0 % worse than 10; allowed: 20 %"
    below = msgspec.structs.replace(stop, stop_price=D(9))
    assert gate.check(profit, book, Quote(PRICE), NOW, legs=[below]) is None


def test_old_data_stop_new_positions_but_no_exit() -> None:
    desk = Desk(limits(stale_bars=3), X=5)
    fresh, old = (Quote(PRICE, age_ns=age) for age in (3 * MINUTE_NS, 3 * MINUTE_NS + 1))
    assert desk.ask("buy", 1, quote=fresh) is None
    assert name_of(desk.ask("buy", 1, quote=old)) == "stale_bars"
    assert desk.ask("sell", 5, quote=old) is None
    assert desk.ask("buy", 1, quote=Quote(PRICE, age_ns=None)) is None  # the market is closed
    assert desk.ask("buy", 1, quote=Quote(PRICE, age_ns=3 * 60 * MINUTE_NS, bar_ns=60 * MINUTE_NS)) is None


@pytest.mark.parametrize("price", [None, D(0)])
def test_without_a_price_an_order_is_not_guessed_at(price: D | None) -> None:
    desk = Desk(limits(order_value=Bound(D(100))))
    assert name_of(desk.ask("buy", 1, quote=Quote(price))) == "no_price"
    assert desk.ask("buy", 1, quote=Quote(price), limit_price=D(5)) is None
    collared = Desk(limits(price_collar=D("0.2")))
    assert name_of(collared.ask("buy", 1, quote=Quote(price), limit_price=D(5))) == "no_price"


def test_a_refused_order_counts_nowhere() -> None:
    desk = Desk(limits(order_value=Bound(D(50)), orders_per_minute=2, repeated_orders=1))
    for _ in range(5):
        assert name_of(desk.ask("buy", 6)) == "order_value"
    assert desk.portfolio.gross == 0
    assert desk.ask("buy", 5) is None


@pytest.mark.parametrize("name", ["order_value", "position_value", "gross_exposure"])
@pytest.mark.parametrize("zero", [Bound(D(0)), share(0)])
def test_a_limit_of_zero_that_is_no_setting_lets_exits_through_alone(name: str, zero: Bound) -> None:
    desk = Desk(limits(**{name: zero}), X=5)
    assert name_of(desk.ask("buy", 1)) == name
    assert name_of(desk.ask("sell", 1, symbol="Y")) == name
    assert desk.ask("sell", 5) is None


def test_a_loss_of_zero_is_none_and_the_least_loss_is_one() -> None:
    gate = RiskGate(limits(day_loss=Bound(D(0))))
    assert gate.observe(D(1000), NOW) is None
    assert gate.observe(D(1000), NOW + 1) is None
    assert name_of(gate.observe(D("999.99"), NOW + 2)) == "day_loss"


def test_an_option_counts_with_the_shares_of_its_contract() -> None:
    option = "AAPL240719C00190000"
    desk = Desk(limits(order_value=Bound(D(5000))), **{option: 2})
    assert desk.portfolio.gross == 2000
    assert desk.ask("buy", 5, symbol=option) is None
    assert str(desk.ask("buy", 6, symbol=option)) == "risk limit order_value: 6,000.00; allowed: 5,000.00"
    assert desk.portfolio.gross == 7000


def test_a_trailing_stop_that_buys_counts_at_its_trail_above_the_market() -> None:
    desk = Desk(limits(order_value=Bound(D(100))))
    for trail in ({"trail_price": D(5)}, {"trail_percent": D(50)}):
        assert name_of(desk.ask("buy", 7, type=OrderType.TRAILING_STOP, **trail)) == "order_value"
        assert desk.ask("buy", 6, type=OrderType.TRAILING_STOP, **trail) is None
        assert desk.ask("sell", 10, type=OrderType.TRAILING_STOP, **trail) is None


def test_many_small_orders_and_alternating_sides_gain_nothing() -> None:
    desk = Desk(limits(position_value=Bound(D(100)), orders_per_minute=30))
    for _ in range(10):
        assert desk.ask("buy", 1) is None
    assert name_of(desk.ask("buy", "0.001")) == "position_value"
    for _ in range(10):
        assert desk.ask("sell", 1) is None  # the other side is measured by itself: both may not be filled
    assert name_of(desk.ask("sell", "0.001")) == "position_value"
    for number in range(10):
        assert desk.ask(("buy", "sell")[number % 2], "0.5", symbol="Y") is None
    assert name_of(desk.ask("sell", "0.5", symbol="Y")) == "orders_per_minute"


def test_everything_may_be_off() -> None:
    desk = Desk(OFF)
    for _ in range(50):
        assert desk.ask("buy", 10**9, limit_price=D(10**6), quote=Quote(PRICE, age_ns=DAY_NS)) is None
    assert desk.gate.observe(D(1), NOW) is None
    assert OFF.describe() == "every limit is off"


# Losses


def test_the_loss_of_a_day_is_measured_from_its_first_equity() -> None:
    gate = RiskGate(limits(day_loss=share(10)))
    assert gate.observe(D(1000), NOW) is None
    assert gate.observe(D(1200), NOW) is None
    assert gate.observe(D(900), NOW) is None
    breach = gate.observe(D("899.99"), NOW)
    assert str(breach) == (
        "risk limit day_loss: 100.01 lost since the day began, 1,000.00; allowed: 100.00 (10 % of equity)"
    )
    assert gate.observe(D(899), NOW + DAY_NS) is None
    assert gate.marks == LossMarks(day=20_001, day_equity=D(899), peak=D(1200))


def test_a_bar_that_ends_at_midnight_belongs_to_the_day_before() -> None:
    gate = RiskGate(limits(day_loss=Bound(D(10))))
    midnight = 20_001 * DAY_NS + 4 * 60 * MINUTE_NS  # of New York, in summer
    assert gate.observe(D(100), midnight - 1) is None
    assert name_of(gate.observe(D(80), midnight)) == "day_loss"
    assert gate.observe(D(80), midnight + 1) is None


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        ("2024-01-16 23:59", "2024-01-16"),
        ("2024-01-17 00:30", "2024-01-16"),  # 19:30 in New York: the late session is not over
        ("2024-01-17 05:00", "2024-01-16"),
        ("2024-01-17 05:01", "2024-01-17"),
        ("2024-07-17 04:01", "2024-07-17"),
        ("2024-03-10 05:01", "2024-03-10"),  # clocks go forward on this day
        ("2024-03-11 04:01", "2024-03-11"),
        ("2024-11-04 04:59", "2024-11-03"),  # and back
    ],
)
def test_a_day_begins_at_midnight_in_new_york(moment: str, day: str) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    found = trading_day(int(now.timestamp()) * SECOND_NS)
    assert datetime.fromtimestamp(found * 86_400, UTC).date().isoformat() == day


def test_a_loss_on_both_sides_of_midnight_utc_is_one_days_loss() -> None:
    gate = RiskGate(limits(day_loss=Bound(D(100))))
    midnight = 19_739 * DAY_NS  # 2024-01-17, 19:00 in New York
    assert gate.observe(D(1000), midnight - MINUTE_NS) is None
    assert gate.observe(D(940), midnight) is None
    assert name_of(gate.observe(D(890), midnight + MINUTE_NS)) == "day_loss"


def test_drawdown_is_measured_from_the_highest_equity_over_days() -> None:
    gate = RiskGate(limits(drawdown=share(20)))
    for day, equity in enumerate((1000, 1500, 1300, 1200)):
        assert gate.observe(D(equity), NOW + day * DAY_NS) is None
    assert name_of(gate.observe(D(1199), NOW + 4 * DAY_NS)) == "drawdown"


def test_marks_survive_a_restart_and_a_release_begins_anew() -> None:
    marks = LossMarks(day=20_000, day_equity=D(1000), peak=D(1100))
    gate = RiskGate(limits(day_loss=Bound(D(50))), marks=marks)
    assert name_of(gate.observe(D(949), NOW)) == "day_loss"
    gate.release()
    assert gate.observe(D(949), NOW) is None
    assert name_of(gate.observe(D(898), NOW)) == "day_loss"


# States


@pytest.mark.parametrize(
    ("state", "sell", "buy"),
    [
        (RiskState.ACTIVE, "", ""),
        (RiskState.REDUCING, "", "reducing"),
        (RiskState.FLATTENING, "flattening", "flattening"),
        (RiskState.HALTED, "halted", "halted"),
    ],
)
def test_a_state_says_which_orders_are_taken(state: RiskState, sell: str, buy: str) -> None:
    desk = Desk(OFF, X=5)
    desk.gate.state = state
    assert name_of(desk.ask("sell", 5)) == sell
    assert name_of(desk.ask("buy", 1)) == buy


def test_crossing_zero_is_not_shrinking() -> None:
    desk = Desk(OFF, X=5)
    desk.gate.state = RiskState.REDUCING
    assert name_of(desk.ask("sell", 6)) == "reducing"
    assert desk.ask("sell", 3) is None
    assert name_of(desk.ask("sell", 3)) == "reducing"
    assert desk.ask("sell", 2) is None


TABLE = {
    ("active", "reduce"): "reducing",
    ("active", "halt"): "halted",
    ("active", "flatten"): "flattening",
    ("reducing", "halt"): "halted",
    ("reducing", "flatten"): "flattening",
    ("reducing", "release"): "active",
    ("flattening", "flattened"): "halted",
    ("flattening", "release"): "active",
    ("halted", "flatten"): "flattening",
    ("halted", "release"): "active",
}


@pytest.mark.parametrize(("state", "command"), list(product(RiskState, RiskCommand)))
def test_a_command_leads_where_the_table_says_and_nowhere_else(state: RiskState, command: RiskCommand) -> None:
    assert next_state(state, command) == TABLE.get((state.value, command.value))


# Properties

quantities = st.decimals(min_value="0.001", max_value="500", places=3)
steps = st.lists(
    st.tuples(
        st.sampled_from(["buy", "sell"]),
        st.sampled_from(["X", "Y", "Z"]),
        quantities,
        st.sampled_from(["order", "order", "order", "fill", "part", "cancel"]),
        st.sampled_from([None, D(7), D(10), D(13)]),
    ),
    max_size=40,
)


class Account:
    """Fills and cancels open orders at prices that stand still."""

    def __init__(self, held: dict[str, D]) -> None:
        self.held = dict(held)
        self.open: dict[str, RiskOrder] = {}

    def portfolio(self) -> Portfolio:
        held = {symbol: Holding(self.held.get(symbol, D(0)), PRICE) for symbol in "XYZ"}
        return Portfolio(D(1000), held, self.open.values())

    def fill(self, order: RiskOrder, qty: D) -> None:
        assert order.qty is not None
        self.held[order.symbol] = self.held.get(order.symbol, D(0)) + (qty if order.side is Side.BUY else -qty)
        left = order.qty - qty
        if left:
            self.open[order.id] = msgspec.structs.replace(order, qty=left)
        else:
            del self.open[order.id]


def play(gate: RiskGate, account: Account, todo: list[Any], look: Any) -> None:
    for number, (side, symbol, qty, what, limit) in enumerate(todo):
        if what == "order":
            order = RiskOrder(id=str(number), symbol=symbol, side=Side(side), qty=qty, limit_price=limit)
            if gate.check(order, account.portfolio(), Quote(PRICE), NOW + number) is None:
                account.open[order.id] = order
        elif account.open:
            order = list(account.open.values())[number % len(account.open)]
            assert order.qty is not None
            if what == "cancel":
                del account.open[order.id]
            else:
                account.fill(order, order.qty if what == "fill" else order.qty / 2)
        look(account)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_whatever_is_ordered_and_filled_the_values_stay_within_the_limits(todo: list[Any]) -> None:
    gate = RiskGate(limits(position_value=Bound(D(800)), gross_exposure=Bound(D(1500))))

    def look(account: Account) -> None:
        values = {symbol: abs(qty) * PRICE for symbol, qty in account.held.items()}
        assert max(values.values(), default=D(0)) <= 800
        assert sum(values.values()) <= 1500

    # A fill at a limit below the price that stands still would be worth more than it cost: not in this market.
    play(gate, Account({}), [step for step in todo if not (step[0] == "buy" and step[4] == 7)], look)


@settings(max_examples=150, deadline=None)
@given(steps, st.dictionaries(st.sampled_from(["X", "Y", "Z"]), st.decimals(-300, 300, places=2)))
def test_while_reducing_no_position_grows_or_turns(todo: list[Any], held: dict[str, D]) -> None:
    gate, account = RiskGate(OFF, state=RiskState.REDUCING), Account(held)
    last = dict(held)

    def look(account: Account) -> None:
        for symbol, qty in account.held.items():
            before = last.get(symbol, D(0))
            assert abs(qty) <= abs(before)
            assert qty * before >= 0
        last.update(account.held)

    play(gate, account, todo, look)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=60), st.integers(1, 5))
def test_no_minute_holds_more_orders_than_allowed(gaps: list[int], allowed: int) -> None:
    gate, now_ns, sent = RiskGate(limits(orders_per_minute=allowed)), NOW, []
    for number, gap in enumerate(gaps):
        now_ns += gap * SECOND_NS // 4
        order = RiskOrder(id=str(number), symbol="X", side=Side.BUY, qty=D(1))
        if gate.check(order, Portfolio(D(1000), {}), Quote(PRICE), now_ns) is None:
            sent.append(now_ns)
    assert all(later - first >= MINUTE_NS for first, later in zip(sent, sent[allowed:], strict=False))


# Settings


def test_settings_are_put_over_the_defaults() -> None:
    found = parse_limits(
        {
            "order_value": "50%", "position_value": 25_000, "gross_exposure": "off", "orders_per_minute": 0,
            "repeated_orders": "off", "price_collar": "7.5%", "stale_bars": 3, "day_loss": "1,000.50",
            "drawdown": 0, "loss_action": "flatten", "on_breach": "hold", "open_orders": "keep",
        }
    )  # fmt: skip
    assert found.order_value == Bound(D("0.5"), is_share=True)
    assert found.position_value == Bound(D(25_000))
    assert found.gross_exposure is None
    assert (found.orders_per_minute, found.repeated_orders, found.stale_bars) == (0, 0, 3)
    assert found.price_collar == D("0.075")
    assert found.day_loss == Bound(D("1000.50"))
    assert found.drawdown is None
    assert found.loss_action is LossAction.FLATTEN
    assert (found.on_breach.value, found.open_orders.value) == ("hold", "keep")
    assert parse_limits({}) == RiskLimits()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("order_valu", 1, "no setting 'order_valu'; the settings: order_value, position_value"),
        ("order_value", "much", "order_value = 'much': expected an amount, a part of the equity"),
        ("order_value", -1, "order_value = -1"),
        ("order_value", True, "order_value = True"),
        ("order_value", "nan", "order_value = 'nan'"),
        ("price_collar", 5, 'expected percent such as "20%", or "off"'),
        ("price_collar", False, "price_collar = False"),
        ("orders_per_minute", 1.5, "orders_per_minute = 1.5: expected a whole number"),
        ("orders_per_minute", -1, "orders_per_minute = -1"),
        ("loss_action", "panic", "loss_action = 'panic': expected one of reduce, halt, flatten"),
    ],
)
def test_a_setting_that_is_not_usable_is_named(name: str, value: object, says: str) -> None:
    with pytest.raises(RiskValueError) as caught:
        parse_limits({name: value})
    assert says in str(caught.value)


def test_the_limits_are_told_in_one_line() -> None:
    assert RiskLimits().describe() == (
        "order up to 200 % of equity, position up to 150 % of equity, gross up to 200 % of equity, "
        "600 orders a minute, 5 equal orders in 10 s, prices up to 20 % worse than the last, data up to 15 bars old, "
        "day loss 10 % or drawdown 20 %: reduce"
    )


def test_every_limit_has_a_name_that_stands_in_its_code() -> None:
    for limit in LimitName:
        assert Breach(limit=limit, found="", allowed="").code == f"risk_{limit.value}"


def test_the_page_about_limits_names_every_setting_and_limit_and_shows_the_line_of_the_start() -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "risk.md").read_text(encoding="utf-8")
    for name in SETTING_NAMES:
        assert re.search(rf"^\| .*`{name}`", page, re.MULTILINE), name
    for limit in LimitName:
        assert f"`{limit.value}`" in page or f"`risk_{limit.value}`" in page, limit
    assert f"risk: {RiskLimits().describe()}" in " ".join(page.split())
