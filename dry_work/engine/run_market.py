"""Where a run has its bars from: how messages are read, history, and its place in a market that waits for it.

Main thread.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
import structlog

from dry_work.alpaca.simulated import ConsumerPlace, ExchangeControl, is_alpaca
from dry_work.alpaca.venue_api import VenueApi
from dry_work.backoff import Backoff
from dry_work.errors import BrokerUnavailableError, ConfigError, DryWorkError
from dry_work.feeds.filling import FillingSource
from dry_work.feeds.source import ReaderSettings
from dry_work.market.completeness import MarketHours
from dry_work.market.market_state import DataHealth
from dry_work.market.messages import Slice
from dry_work.ports import MarketSource, SourceEvent
from dry_work.settings import RunSettings
from dry_work.wakeup import Wakeup

if TYPE_CHECKING:
    from dry_work.alpaca.history import BarHistory
    from dry_work.engine.live import LiveCerebro

# How long the bars of one time wait for those that are missing.
GRACE_S = 5.0
LOCK_STEP_GRACE_S = 300.0
_REGISTER_ATTEMPTS = 10

_log = structlog.get_logger(__name__)


def build_reader(settings: RunSettings, hours: MarketHours, *, lockstep: bool) -> ReaderSettings:
    """Return how a run reads its market data.

    In lock-step the market waits, so a slice is never released by time. The hours are those of real time, which a
    simulated exchange does not keep: beside one no symbol is stale.
    """
    if lockstep or not is_alpaca(settings.alpaca_url):
        return ReaderSettings(
            watermarks=True if lockstep else None,
            grace_s=LOCK_STEP_GRACE_S if lockstep else GRACE_S,
            drops_late=settings.drops_late,
            tells_revised=settings.tells_revised,
        )
    return ReaderSettings(
        grace_s=GRACE_S,
        drops_late=settings.drops_late,
        tells_revised=settings.tells_revised,
        stale_s=settings.stale_s,
        is_open=hours.is_open,
        stops_when_stale=settings.stops_when_stale,
    )


def describe_data(cerebro: LiveCerebro | None, settings: RunSettings) -> DataHealth | None:
    """Return how the market data of a run stand, None before the first slice and where they are a recording."""
    if cerebro is None or not cerebro.slices or settings.mode == "local":
        return None
    return cerebro.describe_data()


def open_history(settings: RunSettings, api: VenueApi) -> BarHistory:
    """Return the history of the venue's market-data API.

    Raises:
        ConfigError: without credentials.
    """
    from dry_work.alpaca.history import BarHistory

    if settings.credentials is None:
        raise ConfigError("there is no history without credentials")
    return BarHistory(
        settings.credentials,
        api=api,
        data_url=settings.data_url,
        stock_feed=settings.stock_feed,
        is_broker=bool(settings.account_id),
        timeout_s=settings.request_timeout_s,
    )


def fetch_warmup(settings: RunSettings, api: VenueApi, place: ConsumerPlace | None) -> list[Slice]:
    """Return the slices of history from before the first one that is to come.

    Args:
        place: of the run in a market that waits for it, None when it is new there.
    """
    if settings.warmup <= 0 or settings.credentials is None:
        return []
    # The slice that is open comes as such; its bars are not taken from history as well.
    count = settings.warmup if place is None else settings.warmup + 1
    return keep_warmup(open_history(settings, api).newest_bars(settings.symbols, count), place)


def keep_warmup(slices: list[Slice], place: ConsumerPlace | None) -> list[Slice]:
    """Return the slices of history that are over for a run at `place`."""
    if place is None:
        return slices
    return [piece for piece in slices if piece.end_ns < place.end_ns + (0 if place.owes else 1)]


def fill_from_history(
    source: MarketSource, settings: RunSettings, api: VenueApi, warmup: list[Slice], hours: MarketHours
) -> MarketSource:
    """Return the source with what it missed filled from history."""
    return FillingSource(
        source,
        symbols=settings.symbols,
        fetch=lambda symbols, start_ns, end_ns: open_history(settings, api).bars_between(symbols, start_ns, end_ns),
        since_ns=warmup[-1].end_ns if warmup else 0,
        hours=hours,
    )


class ResumedSource:
    """A market source that marks as filled the slice that an earlier process has decided.

    Args:
        source: whose events are passed on.
        is_decided: tells whether a slice of this number and end was decided.
    """

    def __init__(self, source: MarketSource, is_decided: Callable[[int, int], bool]) -> None:
        self._source = source
        self._is_decided = is_decided

    def start(self, wakeup: Wakeup) -> None:
        """Begin to receive."""
        self._source.start(wakeup)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End, and leave no thread behind. May be called twice."""
        self._source.stop(timeout_s)

    def take(self) -> SourceEvent | None:
        """Return the next event in order, or None when there is nothing now."""
        event = self._source.take()
        if isinstance(event, Slice) and event.number is not None and self._is_decided(event.number, event.end_ns):
            _log.info("the open slice was decided before the start", number=event.number)
            return msgspec.structs.replace(event, filled=True)
        return event

    def wait_s(self) -> float | None:
        """Return the seconds after which `take` may have something without a wake-up; None: only after one."""
        return self._source.wait_s()

    def counters(self) -> Mapping[str, int]:
        """Return the source's counters."""
        return self._source.counters()


class ExchangeSeat:
    """A run's registration at a simulated exchange, which may wait for it. One thread at a time.

    Args:
        consumer: name of the run there.
        symbols: those it wants.
    """

    def __init__(self, control: ExchangeControl, consumer: str, symbols: Iterable[str]) -> None:
        self._control = control
        self._consumer = consumer
        self._symbols = tuple(symbols)

    def find(self) -> ConsumerPlace | None:
        """Return where an earlier process of this run was, None when the exchange does not wait for it."""
        return self._control.place(self._consumer)

    def take(self) -> None:
        """Let the market wait for this run, from where it was."""
        self._control.register(self._consumer, self._symbols, resume=True)

    def take_again(self, is_stopped: Callable[[], bool]) -> None:
        """Register again after an outage; what it swallowed is sent again."""
        backoff = Backoff(random.Random(), initial_s=0.2, cap_s=2.0)
        for _ in range(_REGISTER_ATTEMPTS):
            try:
                self.take()
            except BrokerUnavailableError as error:
                _log.warning("the exchange is not reached", error=str(error))
                if is_stopped():
                    return
                time.sleep(backoff.next_wait_s(time.monotonic()))
            else:
                return

    def leave(self) -> None:
        """Let the market go on without this run."""
        # The exchange may be gone already, which is why the run ends.
        with contextlib.suppress(DryWorkError):
            self._control.unregister(self._consumer)
