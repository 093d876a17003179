"""Putting a broker together when it starts: account, journal, order worker, brake, watch. Part of `paper`.

Main thread, before anything is traded; here the venue is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from dry_work.alpaca.limits import Priority
from dry_work.alpaca.venue_api import VenueApi
from dry_work.alpaca.venues import VenueAccess
from dry_work.broker.account import AccountCache, AccountState
from dry_work.broker.account_watch import AccountWatch
from dry_work.broker.adoption import Adoption
from dry_work.broker.books_reader import read_books
from dry_work.broker.brake import Brake
from dry_work.broker.delivery import Delivery
from dry_work.broker.desk import OrderDesk
from dry_work.broker.entry import OrderEntry
from dry_work.broker.flight import SESSION, Flight
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.halts import SymbolHalts
from dry_work.broker.journal import AccountRecord, Journal, RiskRecord
from dry_work.broker.journal_pruning import JournalPruner
from dry_work.broker.market_time import MarketTime
from dry_work.broker.positions import PositionBook
from dry_work.broker.risk_desk import RiskDesk
from dry_work.broker.tickets import symbol_of
from dry_work.broker.told import ToldRecord
from dry_work.broker.venue_link import VenueLink
from dry_work.clock import Clock
from dry_work.market.symbols import is_crypto
from dry_work.orders.books import Fill
from dry_work.wakeup import Wakeup

DEFAULT_JOURNAL = Path(".dry-work") / "orders.sqlite"


class BrokerStart:
    """Putting the parts of a broker together."""

    p: Any
    counters: Counter[str]
    startingcash: float
    startingvalue: float
    _venue: VenueAccess
    _url: str
    _flight: Flight
    _own_clock: Clock
    _clock: Clock
    _lockstep: bool
    _alpaca_rules: bool
    _is_running: bool
    _link: VenueLink | None
    _gateway: OrderGateway
    _own_journal: Journal | None
    _brake_api: VenueApi | None
    _keeps_told: bool
    _told: ToldRecord | None
    _kept_told: ToldRecord | None
    _pruner: JournalPruner | None
    _cache: AccountCache
    _book: PositionBook
    _time: MarketTime
    _delivery: Delivery
    _desk: OrderDesk
    _risk: RiskDesk | None
    _halts: SymbolHalts | None
    _watch: AccountWatch | None
    _entry: OrderEntry
    _adopted: tuple[str, ...]
    _datas: Callable[[], list[Any]]
    _fail: Callable[[BaseException], None]
    _seed: Callable[[], None]
    _tell_risk: Callable[[RiskRecord], None]
    _wake: Callable[[], None]
    getcommissioninfo: Callable[[Any], Any]

    def _connect(self) -> None:
        desk = self._desk
        self._link = self._open_link()
        state, now_ns = self._link.connect()
        increments: dict[str, Decimal] = {}
        if self._alpaca_rules:
            pairs = {symbol for symbol in map(symbol_of, self._datas()) if is_crypto(symbol)}
            increments = self._link.price_increments(sorted(pairs))
        journal = self.p.journal
        if journal is None:
            journal = self._own_journal = Journal(DEFAULT_JOURNAL)
        books = read_books(journal.path)
        session = self._flight.answer(
            SESSION, lambda: journal.mint_session(self.p.agent, session=self.p.session, started_ns=now_ns)
        )
        self._risk = self._build_risk(journal, state)
        self._gateway = self._link.open_gateway(
            journal,
            agent=self.p.agent,
            session=session,
            consumer=self.p.consumer or self.p.agent,
            judge=self._risk.brake.judge if self._risk is not None else lambda _name: None,
        )
        told = self._told or ToldRecord()
        last_number = max(session.last_number, told.numbers.get(session.session, 0))
        self._entry.begin(
            self._gateway, agent=self.p.agent, session=session, last_number=last_number, increments=increments
        )
        self._halts = SymbolHalts(
            journal,
            held=lambda symbol: self._book.held(symbol).qty,
            open_tickets=desk.exposed,
            tell=self._delivery.add_halt,
            time_ns=self._clock.time_ns,
        )
        self._halts.forget("restart")
        watch = AccountWatch(
            agent=self.p.agent,
            journal=journal,
            book=self._book,
            desk=desk,
            halts=self._halts,
            tell=self._delivery.add_note,
            ask=self._link.refresh_account,
            write=self._write,
            time_ns=self._clock.time_ns,
            counters=self.counters,
            flight=self._flight,
        )
        adoption = Adoption(
            books,
            self._told,
            broker=self,
            desk=desk,
            entry=self._entry,
            book=self._book,
            link=self._link,
            gateway=self._gateway,
            agent=self.p.agent,
            datas=self._datas(),
            commission_of=self.getcommissioninfo,
            halt=self._halts.halt,
            seed=self._seed,
            journal=journal,
            wall_ns=self._clock.time_ns(),
            venue_ns=now_ns,
            counters=self.counters,
        )
        state = adoption.run(state)
        self._adopted = tuple(desk.tickets)
        if self._risk is not None:
            self._risk.take_state(state)
            self._start_brake(self._risk, now_ns)
        if self._keeps_told:
            self._gateway.keep_back()
        recorded = self._write_progress(journal)
        watch.begin(books, recorded, state, self._link.fetch_history)
        self._watch = desk.watch = watch
        self.startingcash = float(state.account.cash)
        self.startingvalue = float(state.account.equity)
        self._link.begin()
        if self.p.journal_days is not None and not self._lockstep:
            self._start_pruning(journal, self.p.journal_days)

    def _start_pruning(self, journal: Journal, days: float) -> None:
        journal.pruning.prepare()
        # What is known of orders is read when it is needed: by then the strategy's state is newer.
        self._pruner = JournalPruner(
            journal.path, journal.pruning, days=days, time_ns=self._own_clock.time_ns,
            read_record=lambda: self._kept_told if self._keeps_told else None,
        )  # fmt: skip
        self._pruner.start()

    def _open_link(self) -> VenueLink:
        return VenueLink(
            venue=self._venue,
            refresh_s=None if self._lockstep else self.p.refresh_s,
            wakeup=self.p.wakeup or Wakeup(),
            cache=self._cache,
            open_orders=self._desk.open_names,
            is_due=lambda: self._time.is_due(self._entry.next_valid),
            on_failure=self._fail,
            counters=self.counters,
            flight=self._flight,
        )

    def _open_brake_api(self) -> VenueApi:
        # A connection of its own, so that the brake works while the others wait.
        return self._venue.open_api(priority=Priority.BRAKE, patience_s=0.0)

    def _start_brake(self, risk: RiskDesk, now_ns: int) -> None:
        risk.brake.start(lambda: risk.prepare(now_ns))

    def _write_progress(self, journal: Journal) -> list[Fill]:
        """Write down, before anything else, what has happened while nobody traded; return the fills."""
        changes = self._desk.changes
        (fills, names), ends = changes.take_new_fills(), changes.take_new_ends()
        if fills or ends:
            journal.record_progress(fills, ends, at_ns=self._clock.time_ns(), order_names=names)
        return fills

    def _write(self, write: Callable[[], None]) -> None:
        """Let something be written to the journal behind what was handed over for it before."""
        if self._is_running:
            self._gateway.run(lambda _venue: write())
        else:
            write()

    def _build_risk(self, journal: Journal, state: AccountState) -> RiskDesk | None:
        mode = self.p.mode or ("paper" if self.p.sandbox else "live")
        journal.record_account(AccountRecord(agent=self.p.agent, account_id=state.account.id, url=self._url, mode=mode))
        if self.p.risk is None:
            return None
        self._brake_api = self._open_brake_api()
        link, desk = self._link, self._desk
        brake = Brake(
            journal,
            self._brake_api,
            agent=self.p.agent,
            limits=self.p.risk,
            clock=self._own_clock,
            lockstep=self._lockstep,
            is_sending=lambda: link is not None and link.gateway is not None and link.gateway.is_sending,
            on_change=self._wake,
            on_failure=self._fail,
        )
        return RiskDesk(
            self.p.risk,
            brake,
            journal,
            book=self._book,
            open_tickets=desk.exposed,
            is_known=desk.is_known,
            datas=self._datas,
            tell=self._tell_risk,
            lockstep=self._lockstep,
            counters=self.counters,
            flight=self._flight,
        )
