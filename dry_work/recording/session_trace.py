"""Orders, fills and bars of a session, from its record alone: what two sessions are compared by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

import msgspec

from dry_work.broker.flight import BooksView, Decision
from dry_work.broker.outcomes import OrderLookedUp, OrderTaken
from dry_work.clock import MINUTE_NS
from dry_work.market.messages import Bar, Slice
from dry_work.orders.model import OrderRequest, TradeEvent
from dry_work.ports import SourceStatus
from dry_work.recording.compaction import parse_bars
from dry_work.recording.flight_frames import SessionFacts
from dry_work.recording.flight_log import FlightReader
from dry_work.recording.frames import Frame

BarKey = tuple[str, int]  # symbol and start


class FillTrace(msgspec.Struct, frozen=True):
    """An execution."""

    ts_ns: int
    qty: float
    price: float


class OrderTrace(msgspec.Struct, kw_only=True):
    """An order from its decision to its end. Quantities are positive."""

    name: str
    symbol: str
    side: str
    kind: str
    qty: float | None
    limit_price: float | None = None
    stop_price: float | None = None
    decided_ns: int  # end of the newest bar of its symbol, as Backtrader dates orders
    status: str = "submitted"
    reason: str = ""  # why it was refused
    fills: list[FillTrace] = msgspec.field(default_factory=list)
    fees: float = 0.0

    @property
    def filled(self) -> float:
        """How much was executed."""
        return sum(fill.qty for fill in self.fills)

    @property
    def price(self) -> float | None:
        """The average price of what was executed, None when nothing was."""
        filled = self.filled
        return sum(fill.qty * fill.price for fill in self.fills) / filled if filled else None

    @property
    def filled_ns(self) -> int:
        """When the last part was executed, 0 when nothing was."""
        return max((fill.ts_ns for fill in self.fills), default=0)


class SessionTrace(msgspec.Struct, kw_only=True):
    """What a session was in orders, fills and bars."""

    name: str
    orders: list[OrderTrace] = msgspec.field(default_factory=list)
    bars: dict[BarKey, Bar] = msgspec.field(default_factory=dict)  # as the strategy had them
    slice_of: dict[BarKey, int] = msgspec.field(default_factory=dict)  # end of the slice that each came in
    warmup: dict[BarKey, Bar] = msgspec.field(default_factory=dict)
    final: dict[BarKey, Bar] = msgspec.field(default_factory=dict)  # as they were received last, with corrections
    outages: list[int] = msgspec.field(default_factory=list)  # time of the slice before each
    start_cash: Decimal = Decimal(0)
    start_positions: int = 0
    start_value: float | None = None
    end_value: float | None = None
    books: BooksView | None = None  # the last ones
    facts: SessionFacts | None = None
    problem: str = ""

    @property
    def late(self) -> dict[BarKey, int]:
        """Bars that came behind their own slice, with the end of the one that they came in."""
        return {key: at for key, at in self.slice_of.items() if at > self.bars[key].end_ns}

    @property
    def revised(self) -> dict[BarKey, tuple[Bar, Bar]]:
        """Bars that were corrected after the strategy had them: (as it had them, as corrected)."""
        return {
            key: (bar, self.final[key])
            for key, bar in self.bars.items()
            if key in self.final and _prices(self.final[key]) != _prices(bar)
        }


_STATUSES = {"Completed": "filled", "Margin": "rejected"}  # as backtests list them


def _prices(bar: Bar) -> tuple[float, ...]:
    return (bar.open, bar.high, bar.low, bar.close, bar.volume)


def trace_session(reader: FlightReader) -> SessionTrace:
    """Return orders, fills and bars of a session, up to its end or its damage."""
    trace = SessionTrace(name=reader.folder.name, facts=reader.facts)
    by_name: dict[str, OrderTrace] = {}
    by_id: dict[str, OrderTrace] = {}
    seen: set[str] = set()
    now_ns = 0
    newest: dict[str, int] = {}  # end of the newest bar, by symbol

    dropped: Counter[str] = Counter()

    def keep_message(frame: Frame) -> None:
        for bar in parse_bars(frame, MINUTE_NS, dropped):
            key = (bar.symbol, bar.ts_event_ns)
            known = trace.final.get(key)
            if known is None or bar.revision >= known.revision:
                trace.final[key] = bar

    reader.on_message = keep_message
    for turn in reader.turns():
        for name, answer in turn.answers:
            if name == "connect" and not isinstance(answer, Exception):
                trace.start_cash = answer[0].account.cash
                trace.start_positions = len(answer[0].positions)
        for piece in turn.warmup:
            trace.warmup.update({(bar.symbol, bar.ts_event_ns): bar for bar in piece.bars})
        if isinstance(turn.event, Slice):
            now_ns = turn.event.end_ns
            for bar in turn.event.bars:
                trace.bars[bar.symbol, bar.ts_event_ns] = bar
                trace.slice_of[bar.symbol, bar.ts_event_ns] = now_ns
                newest[bar.symbol] = max(bar.end_ns, newest.get(bar.symbol, 0))
        elif isinstance(turn.event, SourceStatus) and not turn.event.connected:
            trace.outages.append(now_ns)
        for item in turn.items:
            if isinstance(item.value, OrderTaken | OrderLookedUp) and item.value.order is not None:
                found = by_name.get(item.value.client_order_id)
                if found is not None:
                    by_id[item.value.order.id] = found
                by_id.update({leg.id: by_name[name] for name, leg in item.value.legs if name in by_name})
            elif isinstance(item.value, TradeEvent):
                _take_event(item.value, by_name, by_id, seen)
        for decision in turn.record.decisions:
            for name, request in _requests(decision):
                if name not in by_name:
                    by_name[name] = _begin(name, request, newest.get(request.symbol, now_ns))
                    trace.orders.append(by_name[name])
        for told in turn.record.told:
            order = by_name.get(told.client_order_id)
            if order is None and told.client_order_id:
                order = by_name[told.client_order_id] = OrderTrace(
                    name=told.client_order_id,
                    symbol=told.symbol,
                    side="buy" if told.size > 0 else "sell",
                    kind="",
                    qty=abs(told.size),
                    decided_ns=newest.get(told.symbol, now_ns),
                )
                trace.orders.append(order)
            if order is not None:
                order.status = _STATUSES.get(told.status, told.status.lower())
                order.reason = told.reason or order.reason
        if turn.record.value is not None:
            trace.start_value = turn.record.value if trace.start_value is None else trace.start_value
            trace.end_value = turn.record.value
        trace.books = turn.record.books or trace.books
    trace.problem = "" if reader.is_complete or reader.is_cut else reader.problem
    return trace


def _requests(decision: Decision) -> list[tuple[str, OrderRequest]]:
    if decision.kind != "submit" or decision.request is None:
        return []
    found = [(decision.client_order_id, decision.request)]
    return found + [(leg.request.client_order_id, leg.request) for leg in decision.legs if leg.role != "remainder"]


def _begin(name: str, request: OrderRequest, now_ns: int) -> OrderTrace:
    return OrderTrace(
        name=name,
        symbol=request.symbol,
        side=request.side.value,
        kind=request.type.value,
        qty=None if request.qty is None else float(request.qty),
        limit_price=None if request.limit_price is None else float(request.limit_price),
        stop_price=None if request.stop_price is None else float(request.stop_price),
        decided_ns=now_ns,
    )


def _take_event(
    event: TradeEvent, by_name: Mapping[str, OrderTrace], by_id: dict[str, OrderTrace], seen: set[str]
) -> None:
    order = by_name.get(event.order.client_order_id) or by_id.get(event.order.id)
    if order is None:
        return
    by_id.setdefault(event.order.id, order)
    if event.price is None or event.qty is None or event.execution_id in seen:
        return
    seen.add(event.execution_id)
    order.fills.append(FillTrace(event.ts_event_ns, float(event.qty), float(event.price)))
