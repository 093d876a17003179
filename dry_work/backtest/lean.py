"""A drop-in `Cerebro` that gives Backtrader's own results, to the last digit, in a fraction of the time.

It is Backtrader with feeds loaded by whole columns, its own indicators computed by numpy and a loop without what
nobody can see. Nothing of Backtrader is replaced: other `Cerebro`s in the process stay as they are. Where one of the
three cannot be exact, Backtrader's own code runs, and `fallback` says why. docs/design/backtest.md has the details.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import backtrader as bt

from dry_work.backtest import lean_account
from dry_work.backtest.lean_loop import find_obstacle, run_loop
from dry_work.backtest.lean_once import compute_once
from dry_work.feeds.columnar import PandasRows, is_plain_pandas, preload_pandas

_COLLECT_AFTER = 100_000  # new objects between two looks of the garbage collector, instead of 700


class LeanCerebro(bt.Cerebro):
    """A `Cerebro` with the results of Backtrader's own, faster.

    After `run()`, `fallback` is '' or says why Backtrader's own path was taken, wholly or in part. With `optstrategy`
    in several processes it says what is known beforehand.
    """

    fallback: str = ""
    _lent: tuple[tuple[Any, str], ...] | list[tuple[Any, str]] = ()

    def run(self, **kwargs: Any) -> Any:
        """Run as `Cerebro.run` does."""
        self.fallback = ""
        with _rare_collections():
            try:
                if self._dooptimize:
                    self._lend_loading()  # the feeds may be loaded once for all processes
                return super().run(**kwargs)
            finally:
                self._return_loading()

    def runstrategies(self, iterstrat: Any, predata: bool = False) -> Any:
        """Run one combination of strategies as `Cerebro.runstrategies` does."""
        try:
            if not predata:
                self._lend_loading()
            return super().runstrategies(iterstrat, predata=predata)
        finally:
            self._return_loading()

    def __getstate__(self) -> dict[str, Any]:
        self._return_loading()  # before the feeds go to another process
        state: dict[str, Any] = super().__getstate__()
        return state

    def _runonce(self, runstrats: Any) -> None:
        for strategy in runstrats:
            self._compute(strategy)
        obstacle = find_obstacle(self, LeanCerebro, runstrats)
        if obstacle:
            self._fall_back(obstacle)
            self._run_computed(runstrats)
            return
        if not lean_account.is_known(self._broker):
            self._fall_back(f"broker {type(self._broker).__name__} is not known: it is asked at every bar")
        run_loop(self, runstrats)

    def _compute(self, strategy: Any) -> None:
        compute_once(strategy)
        strategy.reset()

    def _run_computed(self, strategies: Any) -> None:
        """Run Backtrader's own loop with indicators that are computed already."""
        for strategy in strategies:
            strategy.__dict__["_once"] = _nothing
            strategy.__dict__["reset"] = _nothing
        try:
            super()._runonce(strategies)
        finally:
            for strategy in strategies:
                strategy.__dict__.pop("_once", None)
                strategy.__dict__.pop("reset", None)

    def _runnext(self, runstrats: Any) -> None:
        self._fall_back(self._reason_of_next())
        super()._runnext(runstrats)

    def _runonce_old(self, runstrats: Any) -> None:
        self._fall_back("oldsync")
        super()._runonce_old(runstrats)

    def _runnext_old(self, runstrats: Any) -> None:
        self._fall_back("oldsync")
        super()._runnext_old(runstrats)

    def _reason_of_next(self) -> str:
        if self._exactbars:
            return f"exactbars={self.p.exactbars}"
        if self._dolive or self.p.live:
            return "a live feed" if self._dolive else "live=True"
        if self._doreplay:
            return "a feed that is resampled or replayed"
        if not self.p.runonce:
            return "runonce=False"
        if not self.p.preload:
            return "preload=False"
        return "an indicator that needs next at every bar"

    def _fall_back(self, reason: str) -> None:
        if not self.fallback:
            self.fallback = reason

    def _lend_loading(self) -> None:
        """Give plain `PandasData` feeds a loading by columns until `_return_loading`."""
        self._return_loading()
        self._lent = lent = []
        for feed in self.datas:
            if is_plain_pandas(feed):
                feed.__dict__["preload"] = partial(_preload, feed)
                lent.append((feed, "preload"))
                if int(self.p.exactbars) <= 0:
                    feed.__dict__["_load"] = PandasRows(feed)
                    lent.append((feed, "_load"))

    def _return_loading(self) -> None:
        for feed, name in self._lent:
            feed.__dict__.pop(name, None)
        self._lent = ()


def _preload(feed: Any) -> None:
    if not preload_pandas(feed):
        type(feed).preload(feed)


def _nothing() -> None:
    """Stand for what is done already."""


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look less often: a run makes few cycles and keeps most of what it makes."""
    before = gc.get_threshold()
    if not before[0]:
        yield
        return
    gc.set_threshold(max(before[0], _COLLECT_AFTER), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
