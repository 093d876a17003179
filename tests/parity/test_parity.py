"""Each scenario with both engines: equal to the last digit, on the fast path where that is expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dry_work.backtest.verify import verify
from tests.parity import brokers, feeds, indicators, orders, runs, watchers  # noqa: F401 - importing enters their scenarios
from tests.parity.scenario import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_engines_give_the_same_records(name: str, record_property: Callable[[str, Any], None]) -> None:
    each = SCENARIOS[name]
    report = verify(each.build, run=each.run)
    record_property("parity", (name, report.fallback))
    assert report.identical, str(report)
    assert report.raised.partition(":")[0] == each.raised, report.raised
    short = {count: report.counts[count] for count, least in each.least.items() if report.counts[count] < least}
    assert not short, f"the scenario does too little to show anything: {short}"
    assert not (each.lean and report.fallback), f"fell back: {report.fallback}"
