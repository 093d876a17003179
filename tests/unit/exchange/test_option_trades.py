"""The trades that a contract's bar is made of."""

from __future__ import annotations

import msgpack
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.exchange.option_market import build_trade
from dry_work.exchange.option_trades import split_bars
from dry_work.hub.option_bars import OptionBars

CALL = "SPY240621C00550000"
START_NS = 1_718_112_600_000_000_000
CENTS = st.integers(1, 9_999)
ROWS = st.lists(
    st.tuples(CENTS, CENTS, CENTS, CENTS, st.one_of(st.integers(0, 40), st.floats(0, 9))), min_size=1, max_size=20
)


@given(ROWS)
def test_whoever_makes_a_bar_of_them_has_the_bar_again(rows: list[tuple[int, int, int, int, float]]) -> None:
    starts = np.array([START_NS + number * MINUTE_NS for number in range(len(rows))], dtype=np.int64)
    bars = []
    for one, two, three, four, volume in rows:
        bars.append((one / 100, max(one, two, three, four) / 100, min(one, two, three, four) / 100, two / 100, volume))
    names = ("open", "high", "low", "close", "volume")
    columns = {name: np.array([bar[at] for bar in bars], dtype=np.float64) for at, name in enumerate(names)}
    times, prices, sizes = split_bars(starts, columns, MINUTE_NS)
    assert np.all(np.diff(times) > 0)
    made = OptionBars()
    made.follow([CALL], 0)
    found = []
    for time_ns, price, size in zip(times.tolist(), prices.tolist(), sizes.tolist(), strict=True):
        found += made.close(time_ns // MINUTE_NS * MINUTE_NS)
        made.add(build_trade(CALL, time_ns, price, size), now_ns=time_ns)
    found += made.close(START_NS + len(rows) * MINUTE_NS)
    assert [(bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in found] == bars
    assert [bar.ts_event_ns for bar in found] == starts.tolist()


def test_sizes_are_whole_contracts_where_there_are_enough() -> None:
    columns = {
        name: np.array([price]) for name, price in zip(("open", "high", "low", "close"), (2.0, 3, 1, 2.5), strict=True)
    }
    times, prices, sizes = split_bars(np.array([START_NS]), columns | {"volume": np.array([7.0])}, MINUTE_NS)
    assert prices.tolist() == [2.0, 1.0, 3.0, 2.5]
    assert sizes.tolist() == [1.0, 1.0, 1.0, 4.0]
    assert [(time_ns - START_NS) // 1_000_000 for time_ns in times.tolist()] == [0, 15_000, 30_000, 59_999]
    _, _, few = split_bars(np.array([START_NS]), columns | {"volume": np.array([1.0])}, MINUTE_NS)
    assert few.tolist() == [0.25] * 4
    assert [build_trade(CALL, START_NS, 1.0, size)["s"] for size in (4.0, 0.25)] == [4, 0.25]
    assert build_trade(CALL, START_NS, 1.0, 4.0)["t"] == msgpack.Timestamp.from_unix_nano(START_NS)
