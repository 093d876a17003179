from __future__ import annotations

from datetime import date

import backtrader as bt
import pytest

from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.market.calendar import SessionCalendar
from dry_work.wakeup import Wakeup

from .sources import ListSource, make_bar, slices_of


@pytest.mark.parametrize(("symbol", "is_loaded"), [("AAA", True), ("BTC/USD", False)])
def test_the_calendar_is_there_before_the_first_slice_where_there_is_a_share(
    monkeypatch: pytest.MonkeyPatch, symbol: str, is_loaded: bool
) -> None:
    calendar = SessionCalendar(first=date(2024, 6, 1), last=date(2024, 6, 30))
    monkeypatch.setattr("dry_work.market.completeness.shared_calendar", lambda: calendar)
    found: list[bool] = []

    class Look(bt.Strategy):
        def next(self) -> None:
            found.append(calendar.is_loaded)

    cerebro = LiveCerebro(
        source=ListSource(slices_of(make_bar(symbol, minute, 50.0) for minute in range(2))), wakeup=Wakeup()
    )
    cerebro.adddata(LiveFeed(symbol=symbol))
    cerebro.addstrategy(Look)
    cerebro.run()
    assert found == [is_loaded, is_loaded]
