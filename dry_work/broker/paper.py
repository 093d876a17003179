"""`AlpacaPaperTradingBroker`: Backtrader's broker on Alpaca's Trading API and Broker API.

Everything of Backtrader is touched on the engine's thread alone, and nothing there waits for the network: `link` brings
the venue's words into an inbox, `next` lets `desk` apply them, `buy` and `sell` hand requests to the order worker.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import backtrader as bt
import structlog

from dry_work.alpaca.venue_api import VenueApi
from dry_work.alpaca.venues import open_venue
from dry_work.broker.account import REFRESH_S, AccountCache, AccountState
from dry_work.broker.account_reading import AccountReading
from dry_work.broker.account_watch import AccountWatch
from dry_work.broker.closing import PositionCloser
from dry_work.broker.delivery import Delivery, build_seeds
from dry_work.broker.desk import OrderDesk
from dry_work.broker.entry import OrderEntry
from dry_work.broker.flight import (
    NO_FLIGHT,
    STEADY_CLOCK,
    TROUBLE,
    Flight,
    FlightCache,
    FlightClock,
    Told,
)
from dry_work.broker.halts import SymbolHalts
from dry_work.broker.journal import Journal, RiskRecord
from dry_work.broker.journal_pruning import JournalPruner
from dry_work.broker.market_time import MarketTime
from dry_work.broker.option_scheme import fit_scheme
from dry_work.broker.order_placing import OrderPlacing
from dry_work.broker.outcomes import Outcome
from dry_work.broker.positions import PositionBook
from dry_work.broker.risk_desk import STORE_MESSAGE as RISK_MESSAGE
from dry_work.broker.risk_desk import RiskDesk
from dry_work.broker.starting import BrokerStart
from dry_work.broker.state_keeping import StateKeeping
from dry_work.broker.tickets import Ticket, symbol_of
from dry_work.broker.told import ToldRecord
from dry_work.broker.venue_link import VenueLink
from dry_work.clock import Clock, SystemClock
from dry_work.errors import ConfigError
from dry_work.orders.model import OrderRequest
from dry_work.orders.risk import Breach
from dry_work.orders.risk_limits import RiskLimits
from dry_work.orders.rules import Refusal
from dry_work.settings import parse_account_id

__all__ = ["AlpacaPaperTradingBroker"]

_log = structlog.get_logger(__name__)


class AlpacaPaperTradingBroker(BrokerStart, StateKeeping, OrderPlacing, AccountReading, bt.BrokerBase):
    """Trades with the account that the API key belongs to, or with one of a broker's, on paper unless told otherwise.

    `buy` and `sell` never raise for a refusal: the order comes back Rejected or Margin, with the reason in
    `order.info.reject_reason` and a code in `order.info.reject_code`. Cash and positions are the venue's: a snapshot at
    the start, then fills. A commission scheme only shows in what orders and trades report.

    Params:

      - ``api_key``, ``secret_key``: credentials of the account

      - ``account_id`` (default: ``None``): an account of the Broker API, to trade for it with the broker's key; without
        one the Trading API and the key's own account

      - ``sandbox`` (default: ``True``): trade on paper; ``False`` trades with real money

      - ``url_override``, ``stream_url_override`` (default: ``None``): base URL of the API and whole URL of the
        trade events' stream; the latter follows from the former

      - ``journal`` (default: ``None``): a `Journal`; without one it is kept in ``./.dry-work``

      - ``agent`` (default: ``'local'``): part of every client order id

      - ``session`` (default: ``None``): part of every client order id; without one it is minted and journalled

      - ``consumer`` (default: ``None``): name under which slices are reported in lock-step; without one ``agent``

      - ``wakeup`` (default: ``None``): raised whenever `next` has something to do

      - ``lockstep`` (default: ``False``): the venue is the simulated exchange and waits for every slice; nothing but
        trade events then changes orders, cash and positions, and `next` runs once a slice

      - ``request_timeout_s`` (default: ``10.0``): of every request

      - ``refresh_s`` (default: ``30.0``): seconds between two snapshots of the account; none in lock-step

      - ``clock`` (default: ``None``): where the time comes from while no slice has said it

      - ``risk`` (default: ``RiskLimits()``): limits of the risk gate; ``None`` switches gate and brake off

      - ``mode`` (default: ``None``): local, paper or live, for the journal; without one it follows from ``sandbox``

      - ``rules`` (default: ``None``): ``alpaca`` brings prices on their ticks, splits orders that go through zero and
        knows the hours of orders; ``backtrader`` sends orders as they are, to a simulated exchange that fills like
        Backtrader's own broker. Without one it is the latter in lock-step

      - ``flight`` (default: ``None``): a `Flight` that everything from outside passes

      - ``journal_days`` (default: ``None``): orders that ended so many days ago leave the journal; not in lock-step.
        Without it all stay
    """

    params = (
        ("api_key", None),
        ("secret_key", None),
        ("account_id", None),
        ("sandbox", True),
        ("url_override", None),
        ("stream_url_override", None),
        ("journal", None),
        ("agent", "local"),
        ("session", None),
        ("consumer", None),
        ("wakeup", None),
        ("lockstep", False),
        ("request_timeout_s", 10.0),
        ("refresh_s", REFRESH_S),
        ("clock", None),
        ("risk", RiskLimits()),
        ("mode", None),
        ("rules", None),
        ("flight", None),
        ("journal_days", None),
    )

    def __init__(self) -> None:
        for name in ("api_key", "secret_key"):
            if not getattr(self.p, name):
                raise ValueError(f"{name} is missing: set both ALPACA_API_KEY and ALPACA_SECRET_KEY")
        self._venue = open_venue(
            self.p.api_key,
            self.p.secret_key,
            url=self.p.url_override,
            stream_url=self.p.stream_url_override,
            account_id=parse_account_id(self.p.account_id or ""),
            paper=bool(self.p.sandbox),
            timeout_s=self.p.request_timeout_s,
        )
        self._url = self._venue.url
        self._flight: Flight = self.p.flight or NO_FLIGHT
        self._own_clock: Clock = self.p.clock or SystemClock()
        self._clock: Clock = FlightClock(self._own_clock, self._flight)
        self._lockstep = bool(self.p.lockstep)
        if self.p.rules not in (None, "alpaca", "backtrader"):
            raise ConfigError(f"rules {self.p.rules!r}: expected alpaca or backtrader")
        self._alpaca_rules = self.p.rules == "alpaca" or (self.p.rules is None and not self._lockstep)
        self._is_running = False
        self._link: VenueLink | None = None
        self._own_journal: Journal | None = None
        self._brake_api: VenueApi | None = None
        self._keeps_told = False
        self._told: ToldRecord | None = None
        self._kept_told: ToldRecord | None = None  # as it is on disk by now
        self._next_told: ToldRecord | None = None  # as it will be
        self._pruner: JournalPruner | None = None
        self.startingcash = self.startingvalue = 0.0
        self._option_schemes: dict[int, Any] = {}
        self._reset()
        super().__init__()

    def _reset(self) -> None:
        self.failure: BaseException | None = None
        self.counters: Counter[str] = Counter()
        self._cache = AccountCache()
        self._book = PositionBook()
        self._time = MarketTime(self._clock, lockstep=self._lockstep, monotonic=self._monotonic)
        self._delivery = Delivery(lambda: getattr(self, "cerebro", None))
        self._desk = OrderDesk(
            broker=self,
            book=self._book,
            cache=FlightCache(self._cache, self._flight),
            commission_of=self.getcommissioninfo,
            look_up=self._look_up,
            refresh=self.refresh_account,
            restart_stream=self._restart_stream,
            send=self._send_remainder,
            ask_cancel=self._ask_cancel,
            assign=self._assign,
            fail=self._fail,
            wake=self._wake,
            lockstep=self._lockstep,
            keeps_told=self._keeps_told,
            counters=self.counters,
        )
        self._risk: RiskDesk | None = None
        self._halts: SymbolHalts | None = None
        self._watch: AccountWatch | None = None
        self._closer = PositionCloser(book=self._book, open_of=self._open_of, cancel=self.cancel, close=self._close)
        self._entry = OrderEntry(
            broker=self,
            desk=self._desk,
            book=self._book,
            trouble=lambda: self._flight.read(TROUBLE, self._trouble),
            check_risk=self._check,
            has_lapsed=self._time.has_lapsed,
            market_ns=self._time.now_ns,
            time_ns=self._clock.time_ns,
            wake=self._wake,
            alpaca_rules=self._alpaca_rules,
            flight=self._flight,
        )
        self._is_seeded = False
        self._adopted: tuple[str, ...] = ()  # orders of earlier runs that have no owner yet

    # Start and stop

    def start(self) -> None:
        """Read the account and listen to the stream.

        Raises:
            VenueAuthError: the credentials were refused.
            BrokerUnavailableError: the venue did not answer, or its stream did not listen, in time.
            ConfigError: agent, session or journal cannot be used.
        """
        if self._is_running:
            return
        self._reset()
        super().start()
        try:
            self._connect()
        except BaseException:
            self.stop()
            raise
        self._is_running = True

    def getcommissioninfo(self, data: Any) -> Any:
        """Return the commission scheme of a data; of an option it counts 100 shares a contract."""
        return fit_scheme(super().getcommissioninfo(data), data, self._option_schemes)

    def _monotonic(self) -> float:
        return self._flight.read(STEADY_CLOCK, time.monotonic())

    def watch_orders(
        self,
        *,
        on_sent: Callable[[str, Outcome, float, float, float], None],
        on_note: Callable[[str, object], None],
    ) -> None:
        """Tell of each order that was sent, and of what strategies are told of the account; for a running broker.

        Args:
            on_sent: called on the order worker's thread; see `OrderGateway.on_sent`.
            on_note: takes message and record of `notify_store`, on the engine's thread.
        """
        self._delivery.listen = on_note
        if self._is_running:
            self._gateway.on_sent = on_sent

    @property
    def open_order_count(self) -> int:
        """Orders that can still be filled; from any thread."""
        return len(self._desk.open)

    def order_by_client_id(self, client_order_id: str) -> Any:
        """Return an open order, or a newer one of this run, by its `order.info.client_order_id`; it survives restarts.

        None when there is none. To be used from the start on, also in `load_state`.
        """
        ticket = self._desk.tickets.get(client_order_id)
        if ticket is None:
            return None
        self._own(ticket)
        return ticket.order

    def _own(self, ticket: Ticket) -> None:
        """Let an order of an earlier run belong to the first strategy, once there is one."""
        if ticket.order.p.owner is None and self._delivery.strategies:
            ticket.order.p.owner = self._delivery.strategies[0]

    def stop(self) -> None:
        """Send what is decided, close the stream, end all threads. May be called twice, and before `start`."""
        self._is_running = False
        if self._pruner is not None:
            self._pruner.stop()
            self._pruner = None
        if self._link is not None:
            self._link.stop()
        if self._risk is not None:
            self._risk.brake.stop()
        if self._brake_api is not None:
            self._brake_api.close()
            self._brake_api = None
        if self._own_journal is not None:
            self._own_journal.close()
            self._own_journal = None

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self._wake()

    def _wake(self) -> None:
        if self.p.wakeup is not None:
            self.p.wakeup.set()

    @property
    def halted(self) -> str:
        """Why no orders are taken, or no more than some of some symbols; empty while all are."""
        found = self._trouble or (self._risk.halted if self._risk is not None else "")
        return found or (self._halts.describe() if self._halts is not None else "")

    @property
    def halted_symbols(self) -> Mapping[str, str]:
        """Why symbols take only orders that shrink their positions; spelled without a slash."""
        halts = self._halts
        return {symbol: halts.reason(symbol) for symbol in halts.symbols} if halts is not None else {}

    @property
    def risk(self) -> RiskDesk | None:
        """Gate and brake, None before the start and when they are switched off."""
        return self._risk

    @property
    def _trouble(self) -> str:
        if self.failure is not None:
            return f"the broker has failed: {self.failure}"
        return self._cache.halted if self._is_running else "the broker is not started"

    def _datas(self) -> list[Any]:
        cerebro = getattr(self, "cerebro", None)
        return cerebro.datas if cerebro is not None else []

    # Orders

    def _check(self, request: OrderRequest, *, replaces: str = "") -> Breach | Refusal | None:
        """Return what refuses a request: the halt of its symbol, a risk limit. All that is to be sent passes here.

        Args:
            request: about to be sent; of a replacement, the order as it will be.
            replaces: client order id of the order that it replaces.
        """
        refusal = self._halts.check(request, replaces=replaces) if self._halts is not None else None
        if refusal is not None or self._risk is None:
            return refusal
        return self._risk.check(request, now_ns=self._time.now_ns(), replaces=replaces)

    def _tell_risk(self, record: RiskRecord) -> None:
        self._delivery.tell_store(RISK_MESSAGE, record)

    # Notifications

    def notify(self, order: Any) -> None:
        """Queue a notification of the order as it is now."""
        self._desk.notices.notify(order)

    def get_notification(self) -> Any:
        """Return the next notification, None after the last one up to `next`."""
        order = self._delivery.next_notification()
        if order is not None:
            ticket = self._desk.find(order)
            told = Told(
                client_order_id=ticket.client_order_id if ticket is not None else "",
                status=order.getstatusname(),
                executed=order.executed.size,
                symbol=symbol_of(order.data),
                size=order.created.size,
                reason=str(order.info.get("reject_reason", "")),
            )
            self._flight.tell(told)
        return order

    def next(self) -> None:
        """Take over what has come from the venue, in the order in which it came."""
        self._seed()
        if self._adopted:
            for name in self._adopted:
                self._own(self._desk.tickets[name])
            self._adopted = ()
        self._entry.release()
        for ticket in self._entry.take_lapsed():
            self._desk.lapse(ticket)
        inbox = self._link.inbox if self._link is not None else deque()
        self._flight.begin_next(inbox)
        while inbox:
            item = self._flight.take(inbox)
            if isinstance(item, AccountState) and self._risk is not None:
                self._risk.take_state(item)
            self._desk.take(item)
        self._closer.work()
        if not self._lockstep:
            self._time.cancel_lapsed(self._desk, self._entry)
        changes = self._desk.changes
        (fills, names), ends = changes.take_new_fills(), changes.take_new_ends()
        if fills or ends:
            self._gateway.record(fills, ends, at_ns=self._time.now_ns(), order_names=names)
        if self._watch is not None:
            self._watch.flush()
            self._let_go(self._watch)
        if self._risk is not None:
            self._risk.watch(self._time.now_ns())
        self._delivery.tell_notes()
        self._delivery.extend(self._desk.notices.release())

    def _let_go(self, watch: AccountWatch) -> None:
        """Let go of orders that ended long ago."""
        names = self._desk.retired.let_go(len(self._desk.open))
        if names:
            watch.note_retired(names)
            self._gateway.forget(names)
            if self._risk is not None:
                self._risk.brake.forget(names)

    def _seed(self) -> None:
        """Tell the strategy's trades, once, of the positions that were there before it."""
        if not self._is_seeded and self._datas():
            self._is_seeded = True
            for order in build_seeds(self._datas(), self._book, self.getcommissioninfo):
                self._desk.notices.notify(order)

    def _look_up(self, client_order_ids: Iterable[str]) -> None:
        assert self._link is not None
        self._link.look_up(client_order_ids)

    def _send_remainder(self, ticket: Ticket, request: OrderRequest, number: int) -> None:
        self._entry.send_remainder(ticket, request, number)

    def _ask_cancel(self, ticket: Ticket) -> None:
        self._entry.ask_cancel(ticket)

    def _assign(self, name: str, order_id: str) -> None:
        self._gateway.assign(name, order_id)

    def _restart_stream(self) -> None:
        if self._link is not None and not self._lockstep:
            self._link.restart_stream()

    # Times

    @property
    def slice_end_ns(self) -> int:
        """End of the slice at hand; set by the engine before `next`, 0 without such an engine."""
        return self._time.slice_end_ns

    @slice_end_ns.setter
    def slice_end_ns(self, end_ns: int) -> None:
        self._time.note_slice(end_ns)

    # Lock-step

    def has_seen(self, event_id: str) -> bool:
        """Tell whether the trade events up to `event_id` are in, so that `next` takes them over. Thread-safe."""
        return self._link is not None and self._link.has_seen(event_id)

    def end_slice(self, number: int) -> None:
        """Report the slice done once all its orders are sent; only in lock-step."""
        if self._lockstep and self._is_running:
            self._time.cancel_lapsed(self._desk, self._entry)
            if self._risk is not None and not self._risk.brake.is_settled:
                self._gateway.run(self._risk.brake.work)
            self._gateway.report(number)
            self._gateway.let_go()

    # Results

    @property
    def order_count(self) -> int:
        """Orders placed so far, refused ones too."""
        return self._desk.retired.order_count

    def results(self) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """Return the orders, in order of submission, and their fills, in order of execution."""
        return self._desk.retired.rows(), self._desk.changes.fill_rows.rows()
