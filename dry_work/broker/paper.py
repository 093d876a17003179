"""`AlpacaPaperTradingBroker`: Backtrader's broker on Alpaca's trading API.

Everything of Backtrader is touched on the engine's thread alone, and nothing there waits for the network: `link` brings
the venue's words into an inbox, `next` lets `desk` apply them, `buy` and `sell` hand requests to the order worker.
"""

from __future__ import annotations

import copy
import datetime as dt
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import structlog

from dry_work.alpaca.trading import TradingApi, choose_url
from dry_work.broker.account import REFRESH_S, AccountCache, AccountState
from dry_work.broker.brake import Brake
from dry_work.broker.desk import OrderDesk
from dry_work.broker.entry import OrderEntry
from dry_work.broker.journal import AccountRecord, Journal, RiskRecord
from dry_work.broker.positions import PositionBook
from dry_work.broker.risk_desk import STORE_MESSAGE, RiskDesk
from dry_work.broker.tickets import Ticket, line_time, line_time_ns, number, position_key, symbol_of
from dry_work.broker.venue_link import VenueLink
from dry_work.clock import MINUTE_NS, SECOND_NS, Clock, SystemClock
from dry_work.errors import ConfigError
from dry_work.market.symbols import is_crypto
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.mapping import ChangeTerms, OrderTerms
from dry_work.orders.model import OrderRequest, Side
from dry_work.orders.risk import Breach
from dry_work.orders.risk_limits import RiskLimits
from dry_work.wakeup import Wakeup

__all__ = ["AlpacaPaperTradingBroker"]

DEFAULT_JOURNAL = Path(".dry-work") / "orders.sqlite"

_log = structlog.get_logger(__name__)


class AlpacaPaperTradingBroker(bt.BrokerBase):
    """Trades with the account that the API key belongs to, on paper unless told otherwise.

    `buy` and `sell` never raise for a refusal: the order comes back Rejected or Margin, with the reason in
    `order.info.reject_reason` and a code in `order.info.reject_code`. Cash and positions are the venue's: a snapshot at
    the start, then fills. A commission scheme only shows in what orders and trades report.

    Params:

      - ``api_key``, ``secret_key``: credentials of the account

      - ``account_id`` (default: ``None``): an account of the Broker API; not offered in this version

      - ``sandbox`` (default: ``True``): trade on paper; ``False`` trades with real money

      - ``url_override``, ``stream_url_override`` (default: ``None``): base URL of the API and whole URL of the
        trade_updates stream; the latter follows from the former

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
    )

    def __init__(self) -> None:
        for name in ("api_key", "secret_key"):
            if not getattr(self.p, name):
                raise ValueError(f"{name} is missing: set both ALPACA_API_KEY and ALPACA_SECRET_KEY")
        if self.p.account_id:
            raise ConfigError(
                "account_id is set: accounts of the Broker API come with a later version. "
                "Unset ALPACA_ACCOUNT_ID to trade with the key's own account"
            )
        self._url = choose_url(self.p.url_override, paper=bool(self.p.sandbox))
        self._stream_url = self.p.stream_url_override or f"ws{self._url.removeprefix('http')}/stream"
        self._clock: Clock = self.p.clock or SystemClock()
        self._lockstep = bool(self.p.lockstep)
        if self.p.rules not in (None, "alpaca", "backtrader"):
            raise ConfigError(f"rules {self.p.rules!r}: expected alpaca or backtrader")
        self._alpaca_rules = self.p.rules == "alpaca" or (self.p.rules is None and not self._lockstep)
        self._is_running = False
        self._link: VenueLink | None = None
        self._own_journal: Journal | None = None
        self._brake_api: TradingApi | None = None
        self.startingcash = self.startingvalue = 0.0
        self._reset()
        super().__init__()

    def _reset(self) -> None:
        self.failure: BaseException | None = None
        self.counters: Counter[str] = Counter()
        self._cache = AccountCache()
        self._book = PositionBook()
        self._desk = OrderDesk(
            broker=self,
            book=self._book,
            cache=self._cache,
            commission_of=self.getcommissioninfo,
            look_up=self._look_up,
            refresh=self.refresh_account,
            restart_stream=self._restart_stream,
            send=self._send_remainder,
            ask_cancel=self._ask_cancel,
            assign=self._assign,
            fail=self._fail,
            lockstep=self._lockstep,
            counters=self.counters,
        )
        self._risk: RiskDesk | None = None
        self._closing: list[Any] = []  # datas whose position is to be closed when nothing is open
        self._entry = OrderEntry(
            broker=self,
            desk=self._desk,
            book=self._book,
            trouble=lambda: self._trouble,
            check_risk=self._check_risk,
            has_lapsed=self._has_lapsed,
            market_ns=self._market_ns,
            time_ns=self._clock.time_ns,
            wake=lambda: self.p.wakeup.set() if self.p.wakeup is not None else None,
            alpaca_rules=self._alpaca_rules,
        )
        self._ready: deque[Any] = deque()  # notifications up to the last `next`
        self._is_seeded = False
        self._slice_end_ns = 0
        self._slice_seen_s = 0.0

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

    def _connect(self) -> None:
        desk = self._desk
        self._link = VenueLink(
            url=self._url,
            stream_url=self._stream_url,
            api_key=self.p.api_key,
            secret_key=self.p.secret_key,
            request_timeout_s=self.p.request_timeout_s,
            refresh_s=None if self._lockstep else self.p.refresh_s,
            wakeup=self.p.wakeup or Wakeup(),
            cache=self._cache,
            open_orders=desk.open_names,
            is_due=self._is_due,
            on_failure=self._fail,
            counters=self.counters,
        )
        state, now_ns = self._link.connect()
        increments: dict[str, Decimal] = {}
        if self._alpaca_rules:
            pairs = {symbol for symbol in map(symbol_of, self._datas()) if is_crypto(symbol)}
            increments = self._link.price_increments(sorted(pairs))
        journal = self.p.journal
        if journal is None:
            journal = self._own_journal = Journal(DEFAULT_JOURNAL)
        session = journal.mint_session(self.p.agent, session=self.p.session, started_ns=now_ns)
        self._risk = self._build_risk(journal, state)
        self._gateway = self._link.open_gateway(
            journal,
            agent=self.p.agent,
            session=session,
            consumer=self.p.consumer or self.p.agent,
            judge=self._risk.brake.judge if self._risk is not None else lambda _name: None,
        )
        self._entry.begin(self._gateway, agent=self.p.agent, session=session, increments=increments)
        self._book.take_snapshot(state)
        if self._risk is not None:
            risk = self._risk
            risk.brake.start(lambda: risk.prepare(now_ns))
        self.startingcash = float(state.account.cash)
        self.startingvalue = float(state.account.equity)
        parts = [parse_client_order_id(order.client_order_id) for order in state.open_orders]
        left = sum(1 for found in parts if found is not None and found.agent == self.p.agent)
        if left:
            self.counters["open orders of an earlier run"] = left
            _log.warning("open orders of an earlier run are left as they are", orders=left)

    def _build_risk(self, journal: Journal, state: AccountState) -> RiskDesk | None:
        mode = self.p.mode or ("paper" if self.p.sandbox else "live")
        journal.record_account(AccountRecord(agent=self.p.agent, account_id=state.account.id, url=self._url, mode=mode))
        if self.p.risk is None:
            return None
        # A connection of its own, so that the brake works while the others wait.
        self._brake_api = TradingApi(
            self.p.api_key, self.p.secret_key, url=self._url, timeout_s=self.p.request_timeout_s
        )
        link, desk = self._link, self._desk
        brake = Brake(
            journal,
            self._brake_api,
            agent=self.p.agent,
            limits=self.p.risk,
            clock=self._clock,
            lockstep=self._lockstep,
            is_sending=lambda: link is not None and link.gateway is not None and link.gateway.is_sending,
            on_change=lambda: self.p.wakeup.set() if self.p.wakeup is not None else None,
            on_failure=self._fail,
        )
        risk = RiskDesk(
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
        )
        risk.take_state(state)
        return risk

    def stop(self) -> None:
        """Send what is decided, close the stream, end all threads. May be called twice, and before `start`."""
        self._is_running = False
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
        if self.p.wakeup is not None:
            self.p.wakeup.set()

    # Account: cached, without I/O

    def getcash(self) -> float:
        """Return the cash of the account as of the last `next`."""
        return float(self._book.books.cash)

    get_cash = getcash

    def getvalue(self, datas: Iterable[Any] | None = None) -> float:
        """Return cash and positions at their last close; with `datas`, the value of their positions alone."""
        if datas is None:
            return self.getcash() + sum(self._value_of(symbol) for symbol in self._book.books.symbols)
        return sum((self._value_of(key) for key in {self._book.key_of(data): None for data in datas}), 0.0)

    get_value = getvalue

    def getposition(self, data: Any, clone: bool = True) -> Any:
        """Return the position of the data's symbol; without `clone` the object that moves with the fills."""
        position = self._book.position(self._book.key_of(data))
        return position.clone() if clone else position

    @property
    def positions(self) -> Mapping[Any, Any]:
        """Positions by data."""
        return {data: self._book.position(self._book.key_of(data)) for data in self._datas()}

    def position_of(self, symbol: str) -> float:
        """Return the signed quantity held of a symbol, in any spelling."""
        return float(self._book.held(symbol).qty)

    def refresh_account(self) -> None:
        """Ask for a snapshot of the account, which a later `next` takes over. In lock-step there are none."""
        if self._link is not None:
            self._link.refresh_account()

    @property
    def halted(self) -> str:
        """Why no orders are taken; empty while they are."""
        return self._trouble or (self._risk.halted if self._risk is not None else "")

    @property
    def risk(self) -> RiskDesk | None:
        """Gate and brake, None before the start and when they are switched off."""
        return self._risk

    @property
    def _trouble(self) -> str:
        if self.failure is not None:
            return f"the broker has failed: {self.failure}"
        return self._cache.halted if self._is_running else "the broker is not started"

    def _value_of(self, key: str) -> float:
        return float(self._book.books.position(key).qty) * self._book.last_price(key, self._datas())

    def _datas(self) -> list[Any]:
        cerebro = getattr(self, "cerebro", None)
        return cerebro.datas if cerebro is not None else []

    # Orders

    def buy(
        self,
        owner: Any,
        data: Any,
        size: float,
        price: float | None = None,
        plimit: float | None = None,
        exectype: int | None = None,
        valid: Any = None,
        tradeid: int = 0,
        oco: Any = None,
        trailamount: float | None = None,
        trailpercent: float | None = None,
        parent: Any = None,
        transmit: bool = True,
        histnotify: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Place a buy order; see `bt.Strategy.buy`. A refusal is in the order's status."""
        # fmt: off
        return self._place(
            bt.BuyOrder, valid, oco, kwargs, owner=owner, data=data, size=size, price=price, pricelimit=plimit,
            exectype=exectype, tradeid=tradeid, trailamount=trailamount, trailpercent=trailpercent, parent=parent,
            transmit=transmit, histnotify=histnotify,
        )
        # fmt: on

    def sell(
        self,
        owner: Any,
        data: Any,
        size: float,
        price: float | None = None,
        plimit: float | None = None,
        exectype: int | None = None,
        valid: Any = None,
        tradeid: int = 0,
        oco: Any = None,
        trailamount: float | None = None,
        trailpercent: float | None = None,
        parent: Any = None,
        transmit: bool = True,
        histnotify: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Place a sell order; see `bt.Strategy.sell`. A refusal is in the order's status."""
        # fmt: off
        return self._place(
            bt.SellOrder, valid, oco, kwargs, owner=owner, data=data, size=size, price=price, pricelimit=plimit,
            exectype=exectype, tradeid=tradeid, trailamount=trailamount, trailpercent=trailpercent, parent=parent,
            transmit=transmit, histnotify=histnotify,
        )
        # fmt: on

    def _place(self, order_class: Any, valid: Any, oco: Any, info: dict[str, Any], *, data: Any, **given: Any) -> Any:
        day = _is_day(valid)
        has_bar = len(data) > 0
        # Without a bar Backtrader can build no order but a simulated one.
        valid = None if not has_bar else bt.Order.DAY if day else valid
        order = order_class(data=data, valid=valid, simulated=not has_bar, **given)
        order.addinfo(**info)
        order.addcomminfo(self.getcommissioninfo(data))
        kinds = bt.Order.ExecTypes
        is_trail = order.exectype == bt.Order.StopTrail
        terms = OrderTerms(
            kind=kinds[order.exectype] if order.exectype in range(len(kinds)) else str(order.exectype),
            symbol=symbol_of(data),
            side=Side.BUY if order.isbuy() else Side.SELL,
            size=given["size"],
            price=order.created.price,
            limit_price=order.created.pricelimit,
            day=day,
            until=None if day or order.valid is None else float(order.valid),
            trail_amount=given["trailamount"],
            trail_percent=given["trailpercent"],
            trail_start=given["price"] if is_trail else None,
            options=info,
        )
        self._entry.place(
            order,
            terms,
            is_started=self._is_running,
            has_bar=has_bar,
            at_ns=self._slice_end_ns or (line_time_ns(data.datetime[0]) if has_bar else self._clock.time_ns()),
            parent=given["parent"],
            transmit=given["transmit"],
            oco=oco,
        )
        return order

    def _check_risk(self, request: OrderRequest, *, replaces: str = "") -> Breach | None:
        """Return the risk limit that refuses a request. Everything that is to be sent passes here.

        Args:
            request: about to be sent; of a replacement, the order as it will be.
            replaces: client order id of the order that it replaces.
        """
        if self._risk is None:
            return None
        return self._risk.check(request, now_ns=self._market_ns(), replaces=replaces)

    def _tell_risk(self, record: RiskRecord) -> None:
        cerebro = getattr(self, "cerebro", None)
        for strategy in getattr(cerebro, "runningstrats", ()):
            strategy.notify_store(STORE_MESSAGE, record)

    def submit(self, order: Any) -> Any:
        """Return the order: `buy` and `sell` have submitted it."""
        return order

    def cancel(self, order: Any) -> bool:
        """Ask for an order's cancellation; False when there is nothing to cancel. The venue's word follows."""
        ticket = self._desk.find(order)
        if ticket is None or not ticket.phase.is_open or not ticket.is_sent:
            return False
        if ticket.cancel_asked or ticket.cancel_wanted:
            return False
        self._entry.ask_cancel(ticket)
        return True

    def cancel_all(self) -> int:
        """Ask for the cancellation of all open orders of this run; return how many that were."""
        return sum(self.cancel(ticket.order) for ticket in tuple(self._desk.open.values()))

    def replace(
        self,
        order: Any,
        *,
        size: float | None = None,
        price: float | None = None,
        plimit: float | None = None,
        trailamount: float | None = None,
        trailpercent: float | None = None,
    ) -> bool:
        """Ask for a change of an open order, which stays the same order of Backtrader's.

        The strategy is told in any case: of the order as it stands then, or with the reason in
        `order.info.replace_reason`. A change that cannot be asked for is answered at once with False, and the reason
        in the same place.

        Args:
            size: new size of the whole order; its sign says nothing.
            price: as in `buy` and `sell`: the limit of a Limit order, the trigger of a Stop or StopLimit order.
            plimit: limit of a StopLimit order.
            trailamount, trailpercent: of a StopTrail order, of the kind that it has.
        """
        wanted = ChangeTerms(
            size=size, price=price, limit_price=plimit, trail_amount=trailamount, trail_percent=trailpercent
        )
        return self._entry.replace(order, wanted)

    def close_position(self, data: Any) -> bool:
        """Close the position of the data's symbol at market; False when there is none.

        Open orders of the symbol are canceled first, since they hold its quantity; the closing order follows when the
        venue has told of their end. It belongs to the first strategy.
        """
        key = self._book.key_of(data)
        if not self._book.books.position(key).qty:
            return False
        for ticket in self._open_of(key):
            self.cancel(ticket.order)
        if all(self._book.key_of(other) != key for other in self._closing):
            self._closing.append(data)
        self._close_positions()
        return True

    def close_all(self) -> int:
        """Close the positions of all datas as `close_position` does; return how many that were."""
        datas = {self._book.key_of(data): data for data in reversed(self._datas())}
        return sum(self.close_position(data) for data in datas.values())

    def _open_of(self, key: str) -> list[Ticket]:
        return [ticket for ticket in self._desk.open.values() if position_key(ticket.symbol) == key]

    def _close_positions(self) -> None:
        for data in tuple(self._closing):
            key = self._book.key_of(data)
            if self._open_of(key):
                continue
            self._closing.remove(data)
            qty = self._book.books.position(key).qty
            if qty:
                place = self.sell if qty > 0 else self.buy
                place(None, data, number(abs(qty)), exectype=bt.Order.Market)

    def orderstatus(self, order: Any) -> int:
        """Return the status of an order, or of the order that a clone was made of."""
        ticket = self._desk.find(order)
        return int(ticket.order.status if ticket is not None else order.status)

    def get_orders_open(self, safe: bool = False) -> list[Any]:
        """Return the orders that can still be filled, with `safe` copies of them."""
        orders = [ticket.order for ticket in self._desk.open.values()]
        # `Order.clone` would take the executions away from the next notification.
        return [copy.copy(order) for order in orders] if safe else orders

    # Notifications

    def notify(self, order: Any) -> None:
        """Queue a notification of the order as it is now."""
        self._desk.notify(order)

    def get_notification(self) -> Any:
        """Return the next notification, None after the last one up to `next`."""
        return self._ready.popleft() if self._ready else None

    def next(self) -> None:
        """Take over what has come from the venue, in the order in which it came."""
        self._seed()
        self._entry.release()
        for ticket in self._entry.take_lapsed():
            self._desk.lapse(ticket)
        inbox = self._link.inbox if self._link is not None else deque()
        while inbox:
            item = inbox.popleft()
            if isinstance(item, AccountState) and self._risk is not None:
                self._risk.take_state(item)
            self._desk.take(item)
        if self._closing:
            self._close_positions()
        if not self._lockstep:
            self._cancel_lapsed()
        fills, ends = self._desk.take_new_fills(), self._desk.take_new_ends()
        if fills or ends:
            self._gateway.record(fills, ends, at_ns=self._market_ns())
        if self._risk is not None:
            self._risk.watch(self._market_ns())
        self._ready.extend(self._desk.release())

    def _seed(self) -> None:
        """Tell the strategy's trades, once, of the positions that were there before it."""
        if self._is_seeded:
            return
        self._is_seeded = True
        for data in {self._book.key_of(data): data for data in reversed(self._datas())}.values():
            position = self._book.position(self._book.key_of(data))
            size, price = position.size, position.price
            if not size:
                continue
            order_class = bt.BuyOrder if size > 0 else bt.SellOrder
            order = order_class(data=data, size=abs(size), price=price, exectype=bt.Order.Market, simulated=True)
            order.addcomminfo(self.getcommissioninfo(data))
            order.execute(0, size, price, 0, 0.0, 0.0, size, size * price, 0.0, 0.0, 0.0, size, price)
            order.completed()
            self._desk.notify(order)

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
        return self._slice_end_ns

    @slice_end_ns.setter
    def slice_end_ns(self, end_ns: int) -> None:
        self._slice_seen_s = time.monotonic()
        self._slice_end_ns = end_ns

    def _market_ns(self) -> int:
        """Return the market's time: it stands still between slices in lock-step, and goes on otherwise."""
        if not self._slice_end_ns:
            return self._clock.time_ns()
        passed_s = 0.0 if self._lockstep else time.monotonic() - self._slice_seen_s
        return self._slice_end_ns + round(passed_s * SECOND_NS)

    def _has_lapsed(self, ticket: Ticket) -> bool:
        """Tell whether an order's time has passed. In lock-step it has when it will have with its symbol's next bar."""
        if ticket.valid is None:
            return False
        ahead_ns = getattr(ticket.order.data, "bar_length_ns", MINUTE_NS) if self._lockstep else 0
        return line_time(self._market_ns() + ahead_ns) > ticket.valid

    def _cancel_lapsed(self) -> None:
        if not math.isfinite(self._entry.next_valid):
            return
        waiting = [t for t in self._desk.open.values() if t.valid is not None and t.is_sent and not t.cancel_asked]
        for ticket in waiting:
            if self._has_lapsed(ticket) and not any(member.is_expiring for member in ticket.members):
                ticket.is_expiring = True
                self._entry.ask_cancel(ticket)
        self._entry.next_valid = min(
            (t.valid for t in waiting if t.valid is not None and not t.cancel_asked), default=math.inf
        )

    def _is_due(self) -> bool:
        return (
            not self._lockstep
            and self._entry.next_valid < math.inf
            and line_time(self._market_ns()) > self._entry.next_valid
        )

    # Lock-step

    def has_seen(self, event_id: str) -> bool:
        """Tell whether the trade events up to `event_id` are in, so that `next` takes them over. Thread-safe."""
        return self._link is not None and self._link.has_seen(event_id)

    def end_slice(self, number: int) -> None:
        """Report the slice done once all its orders are sent; only in lock-step."""
        if self._lockstep and self._is_running:
            self._cancel_lapsed()
            if self._risk is not None and not self._risk.brake.is_settled:
                self._gateway.run(self._risk.brake.work)
            self._gateway.report(number)

    # Results

    @property
    def order_count(self) -> int:
        """Orders placed so far, refused ones too."""
        return len(self._desk.tickets)

    def results(self) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """Return the orders, in order of submission, and their fills, in order of execution."""
        return [ticket.record() for ticket in self._desk.tickets.values()], list(self._desk.fill_records)


def _is_day(valid: Any) -> bool:
    """Tell whether `valid` means DAY: Backtrader's constant, or 0, which Backtrader documents and does not honour."""
    if isinstance(valid, dt.timedelta):
        return bool(valid == bt.Order.DAY)
    return isinstance(valid, int | float) and valid == 0
