"""The live engine: a Cerebro that sleeps until something arrives. Single thread.

It takes one slice of bars at a time, moves the feeds that have a bar in it, then does for every clone and resampled
feed what stock Backtrader's loop does with the slice's time (force, retry, rewind), then broker, then strategies. So
the order of calls is that of `Cerebro._runnext` on the same slices, while a feed without a bar costs nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import backtrader as bt

from dry_work.broker.flight import NO_FLIGHT, STOP, Flight
from dry_work.engine.bounds import LOOK_EVERY, trim_strategies
from dry_work.engine.expirations import Expirations
from dry_work.engine.lookback import LookBack
from dry_work.engine.movement import Movement
from dry_work.engine.step import StrategyStep
from dry_work.errors import ConfigError, FeedError
from dry_work.market.completeness import CompletenessTally, SymbolCompleteness
from dry_work.market.market_state import DataHealth, MarketState, SymbolTrading
from dry_work.market.messages import BarNote, News, PriceBands, Slice, TradingStatus
from dry_work.ports import MarketSource, SourceEvent, SourceFailed, SourceStatus
from dry_work.wakeup import Wakeup


class LockStepBroker(Protocol):
    """What the engine asks of a broker whose venue waits for it."""

    slice_end_ns: int

    def has_seen(self, event_id: str) -> bool: ...
    def end_slice(self, number: int) -> None: ...


class LiveCerebro(bt.Cerebro):
    """A Cerebro driven by slices of a market source instead of by polling its feeds.

    All its feeds are `LiveFeed`s and clones of them. `run` returns when the source says that no slice follows, after
    `runstop`, or with the error of a source that failed.

    Args:
        source: where slices come from.
        wakeup: what the engine sleeps on; the broker raises it too.
        warmup: slices from before the start; they move feeds and indicators, but no strategy hears of them.
        lockstep: the venue waits for each slice: `next` runs when all its trade events are there, and notifications
            come with slices only.
        forward_prenext: call `next` where Backtrader would call `prenext`.
        beat: called from the loop, at least every `beat_s` seconds; writes the heartbeat.
        check: called at every turn of the loop; raises what has failed elsewhere.
        on_slice: called after each slice of live bars with it.
        max_event_wait_s: in lock-step, how long a slice's trade events may take before the run fails.
        flight: is told of each turn of the loop.
        look_back: how much of each line is kept; None: as `LookBack` has it.
    """

    # A fill must be told when it happens, not with the symbol's next bar, which may be minutes away.
    params = (("live", True), ("stdstats", False), ("quicknotify", True))

    def __init__(
        self,
        *,
        source: MarketSource,
        wakeup: Wakeup,
        warmup: Iterable[Slice] = (),
        lockstep: bool = False,
        forward_prenext: bool = False,
        beat: Callable[[], None] | None = None,
        beat_s: float = 15.0,
        check: Callable[[], None] | None = None,
        on_slice: Callable[[Slice], None] | None = None,
        max_event_wait_s: float = 60.0,
        flight: Flight = NO_FLIGHT,
        look_back: LookBack | None = None,
    ) -> None:
        super().__init__()
        self._flight = flight
        self._look_back = LookBack() if look_back is None else look_back
        if lockstep:
            self.p.quicknotify = False
        for name in ("cheat_on_open", "oldsync"):
            if getattr(self.p, name):
                raise ConfigError(f"{name}=True has no meaning in a live run; leave it out")
        self._source = source
        self._wakeup = wakeup
        self._warmup = warmup
        self._lockstep = lockstep
        self._forward_prenext = forward_prenext
        self._beat = beat
        self._beat_s = beat_s
        self._check_health = check
        self._on_slice = on_slice
        self._max_event_wait_s = max_event_wait_s
        self._next_beat = 0.0
        # Called with each slice of lock-step that the strategies had their turn with, before it is reported.
        self.on_decided: Callable[[Slice], None] | None = None
        self.on_ready: Callable[[], None] | None = None  # called once before the first live slice, after the warm-up
        self.on_reconnect: Callable[[], None] | None = None  # called when the source is back after an outage
        self._live = False
        self._connected = True
        self._had_turn = False  # the strategies, with the slice at hand
        self._swallowed_nextstart: set[int] = set()
        self._steps: list[StrategyStep] = []
        self._movement = Movement(())  # of its datas, once it runs
        self._notices: list[Any] | None = None
        self.bars: Counter[str] = Counter()  # live bars delivered, by symbol
        self.warmup_bars: Counter[str] = Counter()
        self.filled_bars: Counter[str] = Counter()  # from history, after the warm-up
        self.completeness = CompletenessTally(())  # of the symbols of its feeds, once it runs
        self.market = MarketState()  # of the same
        self._expirations = Expirations(())  # of the same
        self.slices = 0
        self.step_began_ns = 0  # when the slice at hand was taken, by the machine's clock
        self.end_of_data = False

    @property
    def late_bars(self) -> int:
        """Bars that came behind their symbol's last one and were left out."""
        return self._movement.late_bars

    def runstop(self) -> None:
        """End the run as soon as possible; from any thread or signal handler."""
        super().runstop()
        self._wakeup.set()

    # The loop

    def _runnext(self, runstrats: list[Any]) -> None:
        self._prepare(runstrats)
        for piece in self._warmup:
            self._flight.note_warmup(piece)
            self._warm(piece, runstrats, self.warmup_bars)
            if self._event_stop:
                return
        if self.on_ready is not None:
            self.on_ready()
        self._flight.end_turn()
        while not self._is_stopped():
            self._tick()
            event = self._source.take()
            self._flight.begin(event)
            if not self._act(event, runstrats):
                return
            self._flight.end_turn()
            if event is None:
                wait_s = self._source.wait_s()
                self._wakeup.wait(self._beat_s if wait_s is None else min(wait_s, self._beat_s))

    def _act(self, event: SourceEvent | None, runstrats: list[Any]) -> bool:
        """Do what follows from an event; tell whether another turn comes."""
        if event is None:
            self._idle()
            return not self._is_stopped()
        if isinstance(event, Slice):
            self.completeness.note(event)
            for bar in self.market.note_bars(event.bars):
                self._end_halt(bar.symbol, bar.ts_event_ns, "bars are back")
            broker = self._broker
            if event.filled:
                return self._take_filled(event, runstrats)
            if self._lockstep and not self._await_events(broker, event):
                return False
            self.step_began_ns = time.time_ns()
            self._had_turn = False
            self._step(event, runstrats)
            if self._is_stopped():
                if self._had_turn:
                    self._tell_decided(event)
                return False
            if self._on_slice is not None:
                self._on_slice(event)
            if event.last:
                self._finish(runstrats)
                self.end_of_data = True
            self._tell_decided(event)
            if self._lockstep and event.number is not None:
                broker.end_slice(event.number)
            return not event.last
        if isinstance(event, SourceStatus):
            self._change_status(event)
        elif isinstance(event, News):
            self._notify("news", event)
        elif isinstance(event, TradingStatus):
            self._change_trading(event)
        elif isinstance(event, PriceBands):
            self.market.note_bands(event)
        elif isinstance(event, BarNote):
            self.completeness.note_undelivered(event)
            if event.is_told:
                self._notify("revised_bar", event.bar)
        else:
            self._raise_failure(event)
        return True

    def _take_filled(self, piece: Slice, runstrats: list[Any]) -> bool:
        """Take a slice without a turn of the strategies: from history, or one that an earlier process has decided."""
        self._fill(piece, runstrats)
        if self._is_stopped():
            return False
        if self._lockstep and piece.number is not None:
            self._broker.slice_end_ns = piece.end_ns
            self._broker.end_slice(piece.number)
        self.end_of_data = piece.last
        return not piece.last

    def _tell_decided(self, piece: Slice) -> None:
        if self._lockstep and piece.number is not None and self.on_decided is not None:
            self.on_decided(piece)

    def _is_stopped(self) -> bool:
        return self._flight.read(STOP, bool(self._event_stop))

    def _prepare(self, runstrats: list[Any]) -> None:
        self._look_back.follow(self.datas, runstrats)
        self._movement = Movement(self.datas)
        self._feeds = self._movement.feeds
        self.completeness = CompletenessTally(self._feeds, loads_hours=not self._lockstep)
        self.market = MarketState(tuple(self._feeds))
        self._expirations = Expirations(self._feeds)
        for data in self.datas:
            data.completeness = SymbolCompleteness(self.completeness, data.symbol)
            data.trading = SymbolTrading(self.market, data.symbol)
        self._live = False
        self._swallowed_nextstart.clear()
        self._steps = [StrategyStep(strat) for strat in runstrats]
        stock = bt.DataBase.get_notifications
        usual = all(type(data).get_notifications is stock for data in self.datas)
        self._notices = [data.notifs for data in self.datas] if usual else None
        if self._forward_prenext:
            for strat in runstrats:
                strat.prenext = strat.next

    def _tick(self) -> None:
        if self._check_health is not None:
            self._check_health()
        if self._beat is None:
            return
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + self._beat_s
            self._beat()

    def _await_events(self, broker: LockStepBroker, piece: Slice) -> bool:
        """Sleep until the broker has the slice's trade events; False when the run is to stop."""
        deadline = time.monotonic() + self._max_event_wait_s
        while not broker.has_seen(piece.event_id):
            if self._event_stop:
                break
            self._tick()
            left = deadline - time.monotonic()
            if left <= 0:
                waited = f"{self._max_event_wait_s:g} s"
                raise FeedError(f"slice {piece.number}: trade event {piece.event_id} did not arrive within {waited}")
            self._wakeup.wait(min(left, self._beat_s))
        # The flag may have been raised for the source as well; it is looked at next in any case.
        return not self._is_stopped()

    def _idle(self) -> None:
        self._storenotify()
        self._datanotify()
        if not self._lockstep and not self._is_stopped():
            self._brokernotify()

    # One slice

    def _step(self, piece: Slice, runstrats: list[Any]) -> None:
        if not self._live:
            self._live = True
            self._put_status(bt.DataBase.LIVE)
        self._broker.slice_end_ns = piece.end_ns
        for symbol in self._expirations.take(piece.end_ns):
            self.market.note_silence(symbol, "the contract has ended")
            self._put_symbol_status(symbol, connected=False, detail="the contract has ended")
        self._storenotify()
        if self._is_stopped():
            return
        self._datanotify()
        if self._is_stopped():
            return
        moved = self._move(piece, self.bars, is_whole=piece.number is not None)
        self.slices += 1
        self._look_back.after_slice()
        if self.slices % LOOK_EVERY == 0:
            trim_strategies(runstrats)
        self._datanotify()
        if self._is_stopped():
            return
        if moved:
            self._check_timers(runstrats, self._movement.time, cheat=True)
        self._brokernotify()
        if self._is_stopped() or not moved:
            return
        self._deliver(runstrats)
        while self._movement.holds_bars() and not self._is_stopped() and self._move_on():
            self._check_timers(runstrats, self._movement.time, cheat=True)
            if not self._lockstep:  # there what is told of orders comes with slices only
                self._brokernotify()
            if self._is_stopped():
                return
            self._deliver(runstrats)

    def _move(self, piece: Slice, counts: Counter[str], *, is_whole: bool) -> bool:
        moved = self._movement.move(piece.bars, counts, is_whole=is_whole)
        self._dtmaster, self._udtmaster = self._movement.moments
        return moved

    def _move_on(self) -> bool:
        moved = self._movement.move_on()
        self._dtmaster, self._udtmaster = self._movement.moments
        return moved

    def _deliver(self, runstrats: list[Any]) -> None:
        self._had_turn = True
        self._check_timers(runstrats, self._movement.time, cheat=False)
        stirred = self._movement.take_stirred()
        for strat, step in zip(runstrats, self._steps, strict=True):
            if id(strat) in self._swallowed_nextstart:
                # Its minimum period ended during the warm-up, so Backtrader will not call `nextstart` any more.
                self._swallowed_nextstart.discard(id(strat))
                strat.next = _nextstart_once(strat)
            step.run(stirred)
            if self._is_stopped():
                return
            self._next_writers(runstrats)

    def _datanotify(self) -> None:
        # Asking each of some hundred datas takes longer than all the rest of a slice.
        if self._notices is None or any(self._notices):
            super()._datanotify()

    def _finish(self, runstrats: list[Any]) -> None:
        """Deliver what resamplers still hold, as stock Backtrader does at the end of its data."""
        while self._movement.finish_sources():
            self._deliver_last(runstrats)
        if self._movement.finish():
            self._deliver_last(runstrats)
        self._datanotify()
        self._storenotify()

    def _deliver_last(self, runstrats: list[Any]) -> None:
        self._datanotify()
        self._check_timers(runstrats, self._movement.time, cheat=True)
        self._brokernotify()
        self._deliver(runstrats)

    # Warm-up

    def _fill(self, piece: Slice, runstrats: list[Any]) -> None:
        """Take a slice from history: what was missed while nothing was received."""
        if self._live:
            self._live = False
            self._put_status(bt.DataBase.DELAYED, "bars that were missed come from history")
        self._warm(piece, runstrats, self.filled_bars)

    def _warm(self, piece: Slice, runstrats: list[Any], counts: Counter[str]) -> None:
        self._look_back.after_slice()
        moved = self._move(piece, counts, is_whole=True)
        while moved:
            stirred = self._movement.take_stirred()
            for strat, step in zip(runstrats, self._steps, strict=True):
                if step.warm(stirred):
                    self._swallowed_nextstart.add(id(strat))
            moved = self._move_on()

    # Statuses and news

    def _put_status(self, status: int, *args: Any) -> None:
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.put_notification(status, *args)

    def _change_status(self, status: SourceStatus) -> None:
        if status.symbol:
            self.market.note_silence(status.symbol, "" if status.connected else status.detail)
            self._put_symbol_status(status.symbol, connected=status.connected, detail=status.detail)
            return
        if status.connected == self._connected:
            return
        self._connected = status.connected
        if not status.connected:
            self._put_status(bt.DataBase.DISCONNECTED, status.detail)
            return
        self._put_status(bt.DataBase.LIVE if self._live else bt.DataBase.DELAYED)
        if self.on_reconnect is not None:
            self.on_reconnect()

    def _put_symbol_status(self, symbol: str, *, connected: bool, detail: str) -> None:
        for feed in self._feeds.get(symbol, ()):
            feed.put_notification(bt.DataBase.LIVE if connected else bt.DataBase.DELAYED, detail)

    def _change_trading(self, status: TradingStatus) -> None:
        if status.symbol not in self._feeds:
            return
        halted = self.market.note_trading(status)
        if halted:
            self.completeness.note_halt(status.symbol, status.ts_event_ns)
            self._put_symbol_status(status.symbol, connected=False, detail=f"halted: {status.describe()}")
        elif halted is False:
            self._end_halt(status.symbol, status.ts_event_ns, status.describe())
        self._notify("trading_status", status)

    def _end_halt(self, symbol: str, at_ns: int, why: str) -> None:
        self.completeness.note_resumption(symbol, at_ns)
        self._put_symbol_status(symbol, connected=True, detail=f"traded again: {why}")

    def _notify(self, message: str, value: object) -> None:
        self._notify_store(message, value)
        for strat in self.runningstrats:
            strat.notify_store(message, value)

    def describe_data(self) -> DataHealth:
        """Return how the market data stand; the first call loads the calendar, see `MarketHours.is_loaded`."""
        market_ns = max((feed.last_end_ns for feeds in self._feeds.values() for feed in feeds), default=0)
        return self.market.describe(self.completeness, connected=self._connected, market_ns=market_ns)

    @staticmethod
    def _raise_failure(event: SourceFailed) -> None:
        if isinstance(event.error, Exception):
            raise event.error
        raise FeedError(f"market data ended: {event.error!r}") from event.error


def _nextstart_once(strat: Any) -> Callable[[], None]:
    def nextstart() -> None:
        del strat.next  # from here on, also inside `nextstart`, the strategy's own
        strat.nextstart()

    return nextstart
