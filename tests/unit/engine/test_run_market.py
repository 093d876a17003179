from __future__ import annotations

from typing import Any

import pytest

from dry_work.alpaca.simulated import ConsumerPlace
from dry_work.engine.run_market import ExchangeSeat, ResumedSource, keep_warmup
from dry_work.errors import BrokerUnavailableError
from dry_work.market.messages import News, Slice

from .sources import ListSource

SLICES = [Slice(end_ns=number * 60, bars=(), number=number) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        (None, [1, 2, 3]),
        (ConsumerPlace(number=3, end_ns=180, owes=True), [1, 2]),  # it comes as a slice
        (ConsumerPlace(number=2, end_ns=120, owes=True), [1]),
        (ConsumerPlace(number=2, end_ns=120, owes=False), [1, 2]),  # the third opened meanwhile, and is owed
        (ConsumerPlace(number=0, end_ns=0, owes=False), []),
    ],
)
def test_the_warm_up_ends_before_the_first_slice_that_comes(place: ConsumerPlace | None, kept: list[int]) -> None:
    assert [piece.number for piece in keep_warmup(SLICES, place)] == kept


def test_the_slice_that_was_decided_comes_as_filled_and_all_else_as_it_is() -> None:
    news = News(symbols=("SPY",), headline="x")
    source = ResumedSource(
        ListSource([SLICES[1], news, SLICES[2]]), lambda number, end_ns: (number, end_ns) == (2, 120)
    )
    found = [source.take() for _ in range(4)]
    assert [piece.filled for piece in found if isinstance(piece, Slice)] == [True, False]
    assert found[1] is news
    assert found[3] is None


class Control:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[tuple[Any, ...]] = []

    def register(self, consumer: str, symbols: tuple[str, ...], *, resume: bool) -> None:
        self.calls.append((consumer, symbols, resume))
        if len(self.calls) <= self.failures:
            raise BrokerUnavailableError("not yet")


def test_a_run_registers_again_until_the_exchange_answers() -> None:
    control: Any = Control(failures=1)
    ExchangeSeat(control, "a", ["SPY"]).take_again(lambda: False)
    assert control.calls == [("a", ("SPY",), True)] * 2


def test_a_run_that_is_told_to_stop_registers_no_more() -> None:
    control: Any = Control(failures=5)
    ExchangeSeat(control, "a", ["SPY"]).take_again(lambda: True)
    assert len(control.calls) == 1
