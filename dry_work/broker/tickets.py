"""Tickets: what the broker keeps of each order beside Backtrader's own object. Engine thread only."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dry_work.broker.outcomes import PairHold
from dry_work.broker.told import SavedReplacement, SavedSubmit, ToldOrder
from dry_work.feeds.base import line_time
from dry_work.market.symbols import is_option
from dry_work.orders.books import Fill, PositionChange, position_key
from dry_work.orders.groups import Role
from dry_work.orders.lifecycle import Phase, status_word
from dry_work.orders.mapping import OrderTerms, order_type_word, parse_qty
from dry_work.orders.model import OrderRequest
from dry_work.wire.alpaca_rest import parse_venue_symbol
from dry_work.wire.pubsub import encode_time

__all__ = [
    "CancelMark",
    "PendingReplacement",
    "Ticket",
    "execute_order",
    "fill_record",
    "number",
    "position_key",
    "symbol_of",
    "utc_datetime",
]

_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - Backtrader's own times are naive UTC


class CancelMark:
    """Holds the place, among the notifications, of a cancellation that was asked for.

    Backtrader's simulated broker tells of a cancellation at once, so it stands before what was ordered after it. The
    venue's word comes later and is put in here.
    """

    def __init__(self, line_time: float) -> None:
        self.line_time = line_time  # when it was asked for, as Backtrader holds times
        self.notification: Any = None
        self.is_queued = True


@dataclass
class PendingReplacement:
    """A replacement that was asked for and whose outcome is not known."""

    request: OrderRequest  # the order as it is to stand then, under the new client order id
    is_unresolved: bool = False  # the venue may or may not have it
    saved: SavedReplacement | None = None


@dataclass(eq=False)
class Ticket:
    """One order of a strategy.

    The venue may have another order for it than the one that was submitted: a replacement, the second part of a split
    order, or a leg, whose client order id the venue makes.
    """

    order: Any  # Backtrader's
    client_order_id: str
    symbol: str  # canonical
    terms: OrderTerms
    submitted_ns: int
    request: OrderRequest | None = None  # None: refused before it was sent
    phase: Phase = Phase.SUBMITTED
    valid: float | None = None  # to be canceled after this time, as Backtrader holds times
    is_sent: bool = False
    is_unresolved: bool = False  # the venue may or may not have it
    is_expiring: bool = False  # its cancellation is its expiry
    cancel_mark: CancelMark | None = None
    cancel_asked: bool = False
    cancel_wanted: bool = False  # to be asked for when a replacement is settled
    number: int = 0  # its place in the session
    sent_name: str = ""  # by which the order worker knows it
    venue_name: str = (
        ""  # client order id of the venue's order that stands for it, empty for a leg that is not known yet
    )
    venue_id: str = ""  # id of that order, empty while it is not known
    role: Role | None = None  # in its group
    members: list[Ticket] = field(default_factory=list)  # of its group, in order of submission, with itself
    hold: PairHold | None = None  # while it may still become one of a pair
    remainder: Ticket.Remainder | None = None  # the second part of a split order, while it is not sent
    replacing: PendingReplacement | None = None
    filled: Decimal = Decimal(0)
    links: tuple[str, str, bool] = ("", "", True)  # client order ids of `parent` and `oco`, `transmit`
    standing: str = ""  # client order id of the replacement that stands for it
    saved: SavedSubmit | None = None  # as it was given to the order worker
    is_answered: bool = False  # what became of its submit is known, and so in the journal
    told: ToldOrder | None = None  # what the strategy knows of it
    queued: int = 0  # notifications that it has not heard yet
    asked_replacement: str = ""  # client order id of the one that it has asked for and not heard of
    asked_count: int = 0  # replacements that it has asked for

    @dataclass
    class Remainder:
        """The second part of an order that goes through zero."""

        request: OrderRequest
        number: int
        is_canceled: bool = False  # it is not to follow

    def __post_init__(self) -> None:
        self.sent_name = self.venue_name = self.client_order_id

    def join(self, members: list[Ticket], role: Role) -> None:
        """Become one of a group that goes out as one order."""
        self.members, self.role = members, role

    @property
    def head(self) -> Ticket:
        """The order under whose name the group goes out; itself without a group."""
        for member in self.members:
            if member.role is Role.ENTRY:
                return member
        return next((member for member in self.members if member.role is Role.TAKE_PROFIT), self)

    @property
    def is_leg(self) -> bool:
        """Tell whether the venue gives its client order id."""
        return self.head is not self

    def record(self) -> dict[str, object]:
        """Return the order as the results list it."""
        request = self.request
        qty = request.qty if request is not None else parse_qty(self.terms.size)
        return {
            "client_order_id": self.client_order_id,
            "symbol": self.symbol,
            "side": self.terms.side.value,
            "type": order_type_word(self.terms.kind),
            "qty": _optional_float(qty),
            "limit_price": _optional_float(request.limit_price if request is not None else None),
            "stop_price": _optional_float(request.stop_price if request is not None else None),
            "status": status_word(self.phase).value,
            "submitted_at": encode_time(self.submitted_ns),
        }


def fill_record(fill: Fill, *, symbol: str, commission: float) -> dict[str, object]:
    """Return a fill as the results list it."""
    return {
        "time": encode_time(fill.ts_event_ns),
        "symbol": symbol,
        "side": fill.side.value,
        "qty": float(fill.qty),
        "price": float(fill.price),
        "commission": commission,
        "client_order_id": fill.client_order_id,
    }


def execute_order(order: Any, change: PositionChange, comminfo: Any) -> float:
    """Give an order the execution bit of a fill, computed as BackBroker does; return its commission.

    The commission scheme is the strategy's own estimate: the account's cash is the venue's word alone.
    """
    fill = change.fill
    price = float(fill.price)
    closed, opened = number(change.closed), number(change.opened)
    price_before = float(change.price_before)
    pnl = comminfo.profitandloss(-closed, price_before, price)
    closed_value = comminfo.getvaluesize(-closed, price_before) if closed else 0.0
    closed_commission = comminfo.getcommission(closed, price) if closed else 0.0
    opened_value = comminfo.getvaluesize(opened, price) if opened else 0.0
    opened_commission = comminfo.getcommission(opened, price) if opened else 0.0
    comminfo.confirmexec(closed + opened, price)
    order.execute(
        line_time(fill.ts_event_ns),
        number(fill.change),
        price,
        closed,
        closed_value,
        closed_commission,
        opened,
        opened_value,
        opened_commission,
        comminfo.margin,
        pnl,
        number(change.qty_after),
        float(change.price_after),
    )
    order.addcomminfo(comminfo)
    return float(closed_commission + opened_commission)


def number(value: Decimal) -> int | float:
    """Return a quantity as strategies expect it: whole ones as int."""
    return int(value) if value == value.to_integral_value() else float(value)


def utc_datetime(time_ns: int) -> dt.datetime:
    """Return a time as Backtrader holds it: naive UTC with microseconds."""
    return _EPOCH + dt.timedelta(microseconds=time_ns // 1000)


def symbol_of(data: Any) -> str:
    """Return the symbol that a feed, or a clone or resampled form of one, stands for; canonical if it can be."""
    while True:
        symbol = getattr(data, "symbol", None) or getattr(data.p, "symbol", None)
        if isinstance(symbol, str) and symbol:
            return _canonical(symbol)
        if not data._clone:
            break
        data = data.data
    name = data._dataname if isinstance(data._dataname, str) else data._name
    return _canonical(data._name or name or "")


def _canonical(text: str) -> str:
    # Stocks have at most five letters, so what is longer and ends like a currency is a pair without its slash.
    symbol = text.strip().upper()
    pair = len(symbol) > 5 and symbol.isalnum() and not is_option(symbol)
    return parse_venue_symbol(symbol, "crypto" if pair else "")


def _optional_float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)
