"""The broker of a replay: the same code, without a venue behind it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from dry_work.broker.desk import OrderDesk
from dry_work.broker.flight import Flight
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.journal import Journal, JournalSession
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.broker.positions import PositionBook
from dry_work.broker.risk_desk import RiskDesk
from dry_work.broker.venue_link import VenueLink
from dry_work.errors import BrokerUnavailableError
from dry_work.orders.risk import Breach


class NoVenue:
    """Stands where a venue is: whatever is asked of it was not asked in the session."""

    def close(self) -> None:
        """Nothing is open."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_given: object, **_named: object) -> NoReturn:
            raise BrokerUnavailableError(f"a replay has no venue ({name})")

        return refuse


class NoJournal:
    """Takes what the order worker writes down, which the journal of the session has."""

    path = Path("the journal of a replay")

    def record_intents(self, *_given: object, **_named: object) -> None:
        """Keep nothing."""

    def record_outcome(self, *_given: object, **_named: object) -> None:
        """Keep nothing."""

    def record_progress(self, *_given: object, **_named: object) -> None:
        """Keep nothing."""


class ReplayLink(VenueLink):
    """The way to the venue: what came from there is recorded, what goes there stays here.

    Args:
        flight: fills the inbox and answers.
        venue: what the order worker talks to once it works.
        on_outcome: takes what came of that.
    """

    def __init__(
        self, flight: Flight, venue: Any, *, on_outcome: Callable[[Any], None], counters: Counter[str]
    ) -> None:
        self._on_outcome = on_outcome
        self.inbox = deque()
        self.gateway: OrderGateway | None = None
        self._flight = flight
        self._venue = venue
        self._counters = counters

    def open_gateway(
        self,
        journal: Journal,
        *,
        agent: str,
        session: JournalSession,
        consumer: str,
        judge: Callable[[str], Breach | None],
    ) -> OrderGateway:
        unwritten: Any = NoJournal()
        self.gateway = OrderGateway(
            self._venue,
            unwritten,
            on_outcome=self._on_outcome,
            on_failure=lambda _error: None,
            agent=agent,
            session=session,
            consumer=consumer,
            judge=judge,
            flight=self._flight,
        )
        return self.gateway

    def begin(self) -> None:
        """No thread works in a replay."""

    def stop(self) -> None:
        """Nothing was started."""

    def refresh_account(self, history_of: Iterable[str] = ()) -> None:
        """Snapshots are recorded."""

    def look_up(self, client_order_ids: Iterable[str]) -> None:
        """Ask the venue that takes over once orders are not as recorded; until then look-ups are recorded."""
        super().look_up(client_order_ids)

    def restart_stream(self) -> None:
        """There is none."""

    def has_seen(self, event_id: str) -> bool:
        return True


class ReplayBroker(AlpacaPaperTradingBroker):
    """A broker whose venue is a record.

    Params (beside those of `AlpacaPaperTradingBroker`):

      - ``venue`` (default: ``None``): what the order worker talks to once it works

      - ``on_outcome`` (default: ``None``): takes what came of that
    """

    params = (("venue", None), ("on_outcome", None))  # type: ignore[assignment] # Backtrader merges them with those of the base class

    @property
    def link(self) -> VenueLink:
        """The way to the venue, once the broker is started."""
        assert self._link is not None
        return self._link

    @property
    def book(self) -> PositionBook:
        """Cash and positions."""
        return self._book

    @property
    def desk(self) -> OrderDesk:
        """The orders."""
        return self._desk

    def _open_link(self) -> VenueLink:
        return ReplayLink(
            self._flight,
            self.p.venue or NoVenue(),
            on_outcome=self.p.on_outcome or (lambda _outcome: None),
            counters=self.counters,
        )

    def _open_brake_api(self) -> Any:
        return NoVenue()

    def _start_pruning(self, journal: Journal, days: float) -> None:
        """The journal of a replay is thrown away."""

    def _start_brake(self, risk: RiskDesk, now_ns: int) -> None:
        """Changes of the risk state are recorded."""
