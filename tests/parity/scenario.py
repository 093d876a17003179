"""The list of scenarios, and what they are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import backtrader as bt

from dry_work.backtest.records import run_once
from tests.parity import market

Build = Callable[[type[Any]], Any]


@dataclass(frozen=True)
class Scenario:
    """A backtest that both engines must run alike.

    Attributes:
        lean: True pins it to the fast path, so that a silent fall-back is a failure.
        least: how much of each count of the report it must have, so that it is not empty by mistake.
        raised: what the run ends with, as far as it is known here: the name of the exception.
    """

    name: str
    build: Build
    lean: bool
    least: Mapping[str, int] = field(default_factory=dict)
    raised: str = ""
    run: Callable[[Any], Any] = run_once


SCENARIOS: dict[str, Scenario] = {}


def add(
    name: str, build: Build, *, lean: bool, least: Mapping[str, int] | None = None, raised: str = "",
    run: Callable[[Any], Any] = run_once,
) -> None:  # fmt: skip
    """Enter a scenario into the list."""
    if name in SCENARIOS:
        raise ValueError(f"two scenarios are named {name!r}")
    SCENARIOS[name] = Scenario(name, build, lean, {"bars": 1, **(least or {})}, raised, run)


def scenario(*, lean: bool, **details: Any) -> Callable[[Build], Build]:
    """Enter a builder into the list under its own name."""

    def enter(build: Build) -> Build:
        add(f"{build.__module__.rpartition('.')[2]}: {build.__name__.replace('_', ' ')}", build, lean=lean, **details)
        return build

    return enter


class Acts(bt.Strategy):
    """Does at given bars what it is told: `acts` are pairs of a test of the bar number and an action."""

    params = (("acts", ()), ("wait", 0))

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.seen: list[Any] = []
        if self.p.wait:
            self.addminperiod(self.p.wait)

    def next(self) -> None:
        for test, act in self.p.acts:
            if test(len(self)):
                act(self)


def at(*bars: int) -> Callable[[int], bool]:
    return lambda bar: bar in bars


def every(step: int, offset: int = 0) -> Callable[[int], bool]:
    return lambda bar: bar % step == offset


def cerebro_of(
    engine: type[Any], frames: Iterable[Any] | None = None, *, feeds: Callable[[], list[Any]] = list,
    cash: float = 100_000.0, **params: Any,
) -> Any:  # fmt: skip
    """Return a Cerebro with the feeds of some frames, named A, B, C …, without default observers unless asked for.

    Args:
        feeds: makes further feeds, new ones for each run.
    """
    params.setdefault("stdstats", False)
    cerebro = engine(**params)
    if frames is None:
        frames = [market.walk()] if feeds is list else []
    for name, feed in zip("ABCDEFGHIJ", [*map(market.feed, frames), *feeds()], strict=False):
        cerebro.adddata(feed, name=name)
    cerebro.broker.setcash(cash)
    return cerebro


def acting(*acts: Any, frames: Iterable[Any] | None = None, wait: int = 0, strategy: type[Any] = Acts, **options: Any):
    """Return a builder of a backtest that does the acts, after `tune(cerebro)` if there is one."""
    tune = options.pop("tune", None)

    def build(engine: type[Any]) -> Any:
        cerebro = cerebro_of(engine, frames, **options)
        cerebro.addstrategy(strategy, acts=acts, wait=wait)
        if tune is not None:
            tune(cerebro)
        return cerebro

    return build


class Cross(bt.Strategy):
    """Trades the crossings of two averages of each data, long and short, and keeps a note of each bar."""

    params = (("fast", 3), ("slow", 8), ("size", 5), ("prenext", False))

    def __init__(self) -> None:
        self.crossings = [
            bt.ind.CrossOver(bt.ind.SMA(data, period=self.p.fast), bt.ind.SMA(data, period=self.p.slow))
            for data in self.datas
        ]

    def prenext(self) -> None:
        if self.p.prenext:
            self.next()

    def next(self) -> None:
        for data, crossing in zip(self.datas, self.crossings, strict=True):
            if not len(data):
                continue
            if crossing[0] > 0:
                self.order_target_size(data, target=self.p.size)
            elif crossing[0] < 0:
                self.order_target_size(data, target=-self.p.size)


def crossing(
    frames: Iterable[Any] | None = None, *, tune: Any = None, strategy: type[Any] = Cross, **options: Any
) -> Any:
    """Return a builder of a backtest of crossings, after `tune(cerebro)` if there is one."""
    params = {name: options.pop(name) for name in ("fast", "slow", "size", "prenext") if name in options}

    def build(engine: type[Any]) -> Any:
        cerebro = cerebro_of(engine, frames, **options)
        cerebro.addstrategy(strategy, **params)
        if tune is not None:
            tune(cerebro)
        return cerebro

    return build
