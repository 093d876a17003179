"""Books and funds rules of accounts."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.exchange.account import (
    Account,
    AlpacaAccount,
    BacktraderAccount,
    Position,
    Reservation,
    truncate_qty,
)
from dry_work.exchange.identifiers import (
    EventIds,
    build_account_id,
    build_client_order_id,
    build_execution_id,
    build_order_id,
    encode_ulid,
)

D = Decimal


def position_of(qty: str, price: str) -> Position:
    position = Position()
    position.apply(D(qty), D(price))
    return position


@pytest.mark.parametrize(
    ("held", "change", "closed", "opened"),
    [
        ("0", "5", "0", "5"),
        ("10", "5", "0", "5"),
        ("-10", "-5", "0", "-5"),
        ("10", "-4", "-4", "0"),
        ("10", "-10", "-10", "0"),
        ("10", "-15", "-10", "-5"),
        ("-10", "15", "10", "5"),
    ],
)
def test_a_change_first_closes_then_opens(held: str, change: str, closed: str, opened: str) -> None:
    assert position_of(held, "1").split(D(change)) == (D(closed), D(opened))


@pytest.mark.parametrize(
    ("change", "price", "qty", "average"),
    [
        pytest.param("10", "20", "20", "15", id="an increase averages"),
        pytest.param("-4", "20", "6", "10", id="a decrease leaves the average"),
        pytest.param("-10", "20", "0", "0", id="flat has no price"),
        pytest.param("-15", "20", "-5", "20", id="a flip begins a new average"),
    ],
)
def test_the_average_price_is_that_of_what_is_open(change: str, price: str, qty: str, average: str) -> None:
    position = position_of("10", "10")
    position.apply(D(change), D(price))
    assert (position.qty, position.avg_entry_price) == (D(qty), D(average))


def test_equity_is_cash_plus_positions_at_their_last_price() -> None:
    account = Account(D(1000))
    account.book("SPY", D(3), D(100), D(-300))
    account.book("IBM", D(-2), D(50), D(100))
    assert account.cash == 800
    assert account.equity({"SPY": D(110), "IBM": D(40)}) == 800 + 330 - 80
    assert account.equity({"SPY": D(110)}) == 800 + 330 - 100
    assert list(account.positions()) == ["SPY", "IBM"]


def test_money_of_many_digits_is_kept_exactly() -> None:
    account = BacktraderAccount(D("1000000.01"))
    qty, price = D("33333.33333333333357"), D("0.30000000000000004")
    account.execute("SPY", qty, price)
    account.execute("SPY", -qty, price)
    assert account.cash == D("1000000.01")
    assert account.qty("SPY") == 0


money = st.decimals(min_value=D("0.01"), max_value=D(1000), places=2)
changes = st.lists(st.tuples(st.sampled_from(["A", "B"]), st.integers(-50, 50).filter(bool), money), max_size=20)


@given(changes)
def test_cash_and_shares_conserve(trades: list[tuple[str, int, Decimal]]) -> None:
    account = BacktraderAccount(D(5000))
    paid, held = D(0), {"A": D(0), "B": D(0)}
    for symbol, change, price in trades:
        before = held[symbol]
        executed, refused = account.execute(symbol, D(change), price)
        paid += executed * price
        held[symbol] += executed
        if refused:
            # what closes is executed whatever it costs
            assert held[symbol] == (0 if before * change < 0 else before)
        else:
            assert executed == change
    assert account.cash == 5000 - paid
    assert {symbol: account.qty(symbol) for symbol in held} == held


def test_a_flip_that_cannot_be_paid_only_closes() -> None:
    account = BacktraderAccount(D(1000))
    assert account.execute("SPY", D(-10), D(100)) == (D(-10), False)
    assert account.execute("SPY", D(25), D(100)) == (D(10), True)
    assert (account.cash, account.qty("SPY")) == (D(1000), D(0))


def test_closing_a_short_may_leave_the_cash_negative() -> None:
    account = BacktraderAccount(D(100))
    account.execute("SPY", D(-10), D(100))
    assert account.execute("SPY", D(10), D(150)) == (D(10), False)
    assert account.cash == -400
    # and then not even a short sale that brings too little may open
    assert account.execute("SPY", D(-1), D(150)) == (D(0), True)
    assert account.execute("SPY", D(-4), D(150)) == (D(-4), False)


def check_all(account: BacktraderAccount, wanted: list[tuple[str, Decimal, Decimal]]) -> list[bool]:
    check = account.begin_check()
    return [check.take(*order) for order in wanted]


def test_the_check_at_submit_runs_on_a_copy() -> None:
    account = BacktraderAccount(D(1000))
    assert check_all(account, [("SPY", D(5), D(100)), ("IBM", D(5), D(100))]) == [True, True]
    assert check_all(account, [("SPY", D(10), D(100))]) == [True]
    assert (account.cash, account.positions()) == (D(1000), {})


def test_an_order_that_fails_the_check_takes_the_cash_from_those_behind_it() -> None:
    account = BacktraderAccount(D(1000))
    wanted = [("SPY", D(11), D(100)), ("IBM", D(1), D(50)), ("IBM", D(-3), D(50)), ("BAC", D(1), D(50))]
    # -100 after the first, -150, then the sale of the 1 and of 2 more brings 150: 0, then -50
    assert check_all(account, wanted) == [False, False, True, False]


def test_the_check_counts_what_the_orders_before_would_close() -> None:
    account = BacktraderAccount(D(1000))
    account.execute("SPY", D(10), D(100))
    assert check_all(account, [("SPY", D(-10), D(100)), ("IBM", D(10), D(100))]) == [True, True]
    assert check_all(account, [("IBM", D(10), D(100)), ("SPY", D(-10), D(100))]) == [False, True]


def test_a_margin_account_buys_stocks_for_twice_its_free_equity() -> None:
    account = AlpacaAccount(D(100_000))
    power = account.buying_power({}, [])
    assert (power.equity, power.multiplier) == (100_000, 2)
    assert (power.marginable, power.non_marginable) == (200_000, 100_000)
    account.execute("SPY", D(1000), D(100))
    power = account.buying_power({"SPY": D(100)}, [])
    assert (account.cash, power.marginable, power.non_marginable) == (0, 100_000, 0)


def test_a_short_sale_gives_no_cash_for_crypto() -> None:
    account = AlpacaAccount(D(100_000))
    account.execute("SPY", D(-500), D(100))
    power = account.buying_power({"SPY": D(100)}, [])
    assert (account.cash, power.equity) == (150_000, 100_000)
    assert (power.marginable, power.non_marginable) == (150_000, 75_000)


def test_open_orders_hold_buying_power_back() -> None:
    account = AlpacaAccount(D(100_000))
    stock = account.buying_power({}, [Reservation("SPY", D(60_000), True)])
    assert (stock.marginable, stock.non_marginable) == (140_000, 40_000)
    crypto = account.buying_power({}, [Reservation("BTC/USD", D(60_000), True)])
    assert (crypto.marginable, crypto.non_marginable) == (80_000, 40_000)
    short = account.buying_power({}, [Reservation("SPY", D(60_000), False)])
    assert (short.marginable, short.non_marginable) == (140_000, 70_000)


def test_a_small_account_is_a_cash_account() -> None:
    power = AlpacaAccount(D("1999.99")).buying_power({}, [Reservation("SPY", D(1000), True)])
    assert (power.multiplier, power.marginable, power.non_marginable) == (1, D("999.99"), D("999.99"))


def test_crypto_pays_its_fee_in_what_is_received() -> None:
    account = AlpacaAccount(D(10_000))
    account.execute("BTC/USD", D(2), D(1000))
    assert (account.qty("BTC/USD"), account.cash) == (D("1.995"), 8000)
    account.execute("BTC/USD", D("-1.995"), D(1000))
    assert (account.qty("BTC/USD"), account.cash) == (0, 8000 + D("1995") * D("0.9975"))


def test_the_crypto_fee_is_rounded_up_to_the_increment() -> None:
    account = AlpacaAccount(D(10_000))
    account.execute("BTC/USD", D("0.000000002"), D(1000))
    assert account.qty("BTC/USD") == D("0.000000001")


def test_stocks_pay_no_fee() -> None:
    account = AlpacaAccount(D(10_000))
    account.execute("SPY", D(2), D(1000))
    assert (account.qty("SPY"), account.cash) == (2, 8000)


def test_quantities_are_cut_to_nine_places() -> None:
    assert truncate_qty(D("1.2345678919")) == D("1.234567891")
    assert str(truncate_qty(D("1.5"))) == "1.5"
    assert truncate_qty(D("1E-10")) == 0


def test_a_ulid_has_26_characters_of_crockfords_alphabet() -> None:
    assert encode_ulid(0, 0) == "0" * 26
    assert encode_ulid(0, 33) == "0" * 24 + "11"
    assert encode_ulid((1 << 48) - 1, (1 << 80) - 1) == "7" + "Z" * 25
    assert encode_ulid(1_469_918_176_385, 0)[:10] == "01ARYZ6S41"  # the example of the ULID specification


@pytest.mark.parametrize(("time_ms", "count"), [(-1, 0), (1 << 48, 0), (0, -1), (0, 1 << 80)])
def test_what_no_ulid_can_hold_is_refused(time_ms: int, count: int) -> None:
    with pytest.raises(ValueError, match="a ULID cannot hold the"):
        encode_ulid(time_ms, count)


@given(st.lists(st.tuples(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 80) - 1)), min_size=2))
def test_ulids_sort_like_time_and_count(parts: list[tuple[int, int]]) -> None:
    assert sorted(encode_ulid(*part) for part in parts) == [encode_ulid(*part) for part in sorted(parts)]


def test_event_ids_count_up_within_and_across_moments() -> None:
    ids = EventIds()
    assert ids.last == ""
    found = [ids.take(now_ns) for now_ns in (5_000_000, 5_000_000, 5_999_999, 60_000_000_000)]
    assert found == sorted(set(found))
    assert ids.last == found[-1]


def test_identifiers_are_the_same_in_every_run_and_differ_by_account() -> None:
    assert build_order_id("k", 1) == build_order_id("k", 1)
    made = [build_order_id("k", 1), build_order_id("k", 2), build_order_id("l", 1), build_client_order_id("k", 1)]
    made += [build_execution_id(made[0], 1), build_execution_id(made[0], 2), build_account_id("k")]
    assert len(set(made)) == len(made)
