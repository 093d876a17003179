"""Whatever is ordered and whatever the market does, our books equal the exchange's after every slice.

`DRY_WORK_PROPERTY_EXAMPLES=2000` tries so many plays, new ones each time; without it some fixed ones are tried.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dry_work.orders.model import OrderClass, OrderType

from .random_trading import KINDS, SIZES, STARTS, SYMBOLS, Action, Play, Setup, build_play, run_play

ASKED = int(os.environ.get("DRY_WORK_PROPERTY_EXAMPLES", "0"))

actions = st.builds(
    Action,
    kind=st.sampled_from(KINDS),
    symbol=st.integers(0, len(SYMBOLS) - 1),
    buys=st.booleans(),
    size=st.integers(0, len(SIZES) - 1),
    offset=st.integers(-60, 60),
    pick=st.integers(0, 11),
)
steps = st.lists(st.lists(actions, max_size=4).map(tuple), min_size=12, max_size=40).map(tuple)
setups = st.one_of(
    st.builds(
        lambda seed, limits: Setup("backtrader", seed=seed, has_limits=limits), st.integers(0, 99), st.booleans()
    ),
    st.builds(
        Setup,
        rules=st.just("alpaca"),
        matching=st.sampled_from(["bars", "volume"]),
        in_flight=st.booleans(),
        start=st.sampled_from(sorted(STARTS)),
        seed=st.integers(0, 99),
        has_limits=st.booleans(),
    ),
)
plays = st.builds(Play, setup=setups, steps=steps)


@pytest.mark.timeout(60 + 10 * ASKED if ASKED else 900)  # against a hang, not against a machine under load
@settings(
    max_examples=ASKED or 32,
    deadline=None,
    derandomize=not ASKED,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.shrink],
    print_blob=False,
    database=None,
)
@given(plays)
def test_our_books_equal_the_exchanges_after_every_slice_and_money_is_conserved(play: Play) -> None:
    with tempfile.TemporaryDirectory() as folder:
        comparison = run_play(play, Path(folder))
    assert comparison.slices >= len(play.steps)


@pytest.mark.parametrize(
    ("setup", "statuses", "times"),
    [
        (Setup("backtrader", seed=4), {"filled", "canceled", "rejected"}, {"day", "gtc", "cls"}),
        (
            Setup("alpaca", matching="volume", in_flight=True, seed=4),
            {"filled", "canceled", "rejected", "replaced"},
            {"day", "gtc", "cls", "ioc", "fok"},
        ),
    ],
    ids=["backtrader", "alpaca"],
)
def test_a_long_play_comes_by_everything(tmp_path: Path, setup: Setup, statuses: set[str], times: set[str]) -> None:
    found = run_play(build_play(setup, 140), tmp_path)
    assert found.slices >= 140
    assert found.fills >= 80
    assert found.orders_seen >= 100
    assert {str(order.type) for order in found.orders} == set(OrderType)
    assert {str(order.status) for order in found.orders} >= statuses
    assert {str(order.time_in_force) for order in found.orders} >= times
    assert {order.order_class for order in found.orders} == set(OrderClass)
    assert {order.symbol for order in found.orders} == set(SYMBOLS)
    assert any(order.notional is not None for order in found.orders)
    assert any(order.qty is not None and order.qty % 1 for order in found.orders)
    ended_in_part = [order for order in found.orders if order.status == "canceled" and order.filled_qty]
    assert bool(ended_in_part) is (setup.matching == "volume")
