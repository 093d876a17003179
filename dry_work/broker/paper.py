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
from pathlib import Path
from typing import Any

import backtrader as bt
import structlog

from dry_work.alpaca.trading import choose_url
from dry_work.broker.account import REFRESH_S, AccountCache
from dry_work.broker.desk import OrderDesk
from dry_work.broker.journal import Journal
from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import Ticket, line_time, line_time_ns, symbol_of
from dry_work.broker.venue_link import VenueLink
from dry_work.clock import MINUTE_NS, SECOND_NS, Clock, SystemClock
from dry_work.errors import ConfigError
from dry_work.orders.client_ids import build_client_order_id, parse_client_order_id
from dry_work.orders.lifecycle import Phase
from dry_work.orders.mapping import OrderTerms, Refusal, RefusalCode, build_order_request
from dry_work.orders.model import OrderRequest, Side, TimeInForce
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
        self._is_running = False
        self._link: VenueLink | None = None
        self._own_journal: Journal | None = None
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
            fail=self._fail,
            lockstep=self._lockstep,
            counters=self.counters,
        )
        self._lapsed: list[Ticket] = []  # orders whose time passed before they were sent
        self._ready: deque[Any] = deque()  # notifications up to the last `next`
        self._next_valid = math.inf  # the first time at which an order has to be canceled
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
            open_orders=lambda: tuple(desk.open),
            is_due=self._is_due,
            on_failure=self._fail,
            counters=self.counters,
        )
        state, now_ns = self._link.connect()
        journal = self.p.journal
        if journal is None:
            journal = self._own_journal = Journal(DEFAULT_JOURNAL)
        session = journal.mint_session(self.p.agent, session=self.p.session, started_ns=now_ns)
        self._session, self._number = session.session, session.last_number
        self._gateway = self._link.open_gateway(
            journal, agent=self.p.agent, session=session, consumer=self.p.consumer or self.p.agent
        )
        self._book.take_snapshot(state)
        self.startingcash = float(state.account.cash)
        self.startingvalue = float(state.account.equity)
        parts = [parse_client_order_id(order.client_order_id) for order in state.open_orders]
        left = sum(1 for found in parts if found is not None and found.agent == self.p.agent)
        if left:
            self.counters["open orders of an earlier run"] = left
            _log.warning("open orders of an earlier run are left as they are", orders=left)

    def stop(self) -> None:
        """Send what is decided, close the stream, end all threads. May be called twice, and before `start`."""
        self._is_running = False
        if self._link is not None:
            self._link.stop()
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
        ties = (("parent", given["parent"] is not None), ("oco", oco is not None), ("transmit", not given["transmit"]))
        kinds = bt.Order.ExecTypes
        terms = OrderTerms(
            kind=kinds[order.exectype] if order.exectype in range(len(kinds)) else str(order.exectype),
            symbol=symbol_of(data),
            side=Side.BUY if order.isbuy() else Side.SELL,
            size=given["size"],
            price=order.created.price,
            limit_price=order.created.pricelimit,
            day=day,
            linked=", ".join(name for name, is_tied in ties if is_tied),
            options=info,
        )
        if not self._is_running:
            # No session, and so no client order id: nothing that could be told apart later.
            self._refuse(order, RefusalCode.NOT_TRADING, f"no orders are taken: {self.halted}")
            return order
        self._number += 1
        ticket = Ticket(
            order=order,
            client_order_id=build_client_order_id(self.p.agent, self._session, self._number),
            symbol=terms.symbol,
            terms=terms,
            submitted_ns=self._slice_end_ns or (line_time_ns(data.datetime[0]) if has_bar else self._clock.time_ns()),
        )
        self._desk.add(ticket)
        request: OrderRequest | Refusal
        if self.halted:
            request = Refusal(RefusalCode.NOT_TRADING, f"no orders are taken: {self.halted}")
        elif not has_bar:
            request = Refusal(RefusalCode.NO_BAR, f"{terms.symbol} has no bar yet")
        else:
            request = build_order_request(terms, ticket.client_order_id)
        if isinstance(request, Refusal):
            ticket.phase = Phase.REJECTED
            self._refuse(order, request.code, request.reason)
        else:
            ticket.request = request
            self._send(ticket, request)
        return order

    def _refuse(self, order: Any, code: RefusalCode, reason: str) -> None:
        order.addinfo(reject_reason=reason, reject_code=code.value)
        order.reject(self)
        order.p.simulated = False  # so that the strategy hears of it
        _log.warning("order refused", code=code.value, reason=reason)
        self._desk.notify(order)

    def _send(self, ticket: Ticket, request: OrderRequest) -> None:
        order = ticket.order
        order.submit(self)
        self._desk.open[ticket.client_order_id] = ticket
        self._desk.notify(order)
        # Market orders never expire in Backtrader, and a `day` that the venue knows ends there.
        ends_at_venue = ticket.terms.day and request.time_in_force is TimeInForce.DAY
        if order.valid is not None and ticket.terms.kind != "Market" and not ends_at_venue:
            ticket.valid = float(order.valid)
            self._next_valid = min(self._next_valid, ticket.valid)
            if self._has_lapsed(ticket):
                self._lapsed.append(ticket)
                return
        ticket.is_sent = True
        self._gateway.submit(request, number=self._number, at_ns=self._clock.time_ns())

    def submit(self, order: Any) -> Any:
        """Return the order: `buy` and `sell` have submitted it."""
        return order

    def cancel(self, order: Any) -> bool:
        """Ask for an order's cancellation; False when there is nothing to cancel. The venue's word follows."""
        ticket = self._desk.find(order)
        if ticket is None or not ticket.phase.is_open or ticket.cancel_asked or not ticket.is_sent:
            return False
        self._ask_cancel(ticket)
        return True

    def _ask_cancel(self, ticket: Ticket) -> None:
        ticket.cancel_asked = True
        self._desk.mark_cancel(ticket)
        self._gateway.cancel(ticket.client_order_id, at_ns=self._clock.time_ns())

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
        lapsed, self._lapsed = self._lapsed, []
        for ticket in lapsed:
            self._desk.lapse(ticket)
        inbox = self._link.inbox if self._link is not None else deque()
        while inbox:
            self._desk.take(inbox.popleft())
        if not self._lockstep:
            self._cancel_lapsed()
        fills = self._desk.take_new_fills()
        if fills:
            self._gateway.record(fills)
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
        if not math.isfinite(self._next_valid):
            return
        waiting = [t for t in self._desk.open.values() if t.valid is not None and t.is_sent and not t.cancel_asked]
        for ticket in waiting:
            if self._has_lapsed(ticket):
                ticket.is_expiring = True
                self._ask_cancel(ticket)
        self._next_valid = min(
            (t.valid for t in waiting if t.valid is not None and not t.cancel_asked), default=math.inf
        )

    def _is_due(self) -> bool:
        return not self._lockstep and self._next_valid < math.inf and line_time(self._market_ns()) > self._next_valid

    # Lock-step

    def has_seen(self, event_id: str) -> bool:
        """Tell whether the trade events up to `event_id` are in, so that `next` takes them over. Thread-safe."""
        return self._link is not None and self._link.has_seen(event_id)

    def end_slice(self, number: int) -> None:
        """Report the slice done once all its orders are sent; only in lock-step."""
        if self._lockstep and self._is_running:
            self._cancel_lapsed()
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
