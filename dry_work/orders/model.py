"""Orders, fills and trade events as values, in Alpaca's own words. Pure.

Money and quantities are `Decimal`; quantities are positive and the side says the direction. Times are integer
nanoseconds since 1970 UTC.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

import msgspec


class Side(StrEnum):
    BUY = "buy"
    SELL = "sell"


class OrderType(StrEnum):
    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"
    TRAILING_STOP = "trailing_stop"


class TimeInForce(StrEnum):
    DAY = "day"
    GTC = "gtc"
    OPG = "opg"
    CLS = "cls"
    IOC = "ioc"
    FOK = "fok"


class OrderClass(StrEnum):
    """How the orders of one request belong together."""

    SIMPLE = "simple"
    BRACKET = "bracket"  # an entry, and its two exits of which the first that fills cancels the other
    OTO = "oto"  # an entry, and one exit
    OCO = "oco"  # two exits of what is held, of which the first that fills cancels the other


class OrderStatus(StrEnum):
    """Alpaca's order states. An unknown one is kept as plain text beside this enum, never guessed."""

    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    DONE_FOR_DAY = "done_for_day"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REPLACED = "replaced"
    PENDING_CANCEL = "pending_cancel"
    PENDING_REPLACE = "pending_replace"
    PENDING_REVIEW = "pending_review"
    ACCEPTED = "accepted"
    PENDING_NEW = "pending_new"
    ACCEPTED_FOR_BIDDING = "accepted_for_bidding"
    STOPPED = "stopped"
    REJECTED = "rejected"
    SUSPENDED = "suspended"
    CALCULATED = "calculated"
    HELD = "held"


TERMINAL = frozenset(
    {
        OrderStatus.FILLED,
        OrderStatus.CANCELED,
        OrderStatus.EXPIRED,
        OrderStatus.REJECTED,
        OrderStatus.REPLACED,
    }
)


class StopLoss(msgspec.Struct, frozen=True):
    """The exit of a group that limits its loss: a stop order, with a limit price a stop-limit order."""

    stop_price: Decimal
    limit_price: Decimal | None = None


class OrderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the venue. Exactly one of `qty` and `notional` is given.

    A trailing stop has exactly one of `trail_price` and `trail_percent`. With an `order_class` other than simple the
    exits stand in `take_profit`, a limit price, and `stop_loss`; the first exit of an oco order is the order itself.
    """

    client_order_id: str
    symbol: str  # canonical
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    qty: Decimal | None = None
    notional: Decimal | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_price: Decimal | None = None  # dollars behind the best price
    trail_percent: Decimal | None = None  # 1 is one per cent
    extended_hours: bool = False
    order_class: OrderClass = OrderClass.SIMPLE
    take_profit: Decimal | None = None
    stop_loss: StopLoss | None = None
    commission: Decimal | None = None  # dollars that the owner of a sub-account is charged, Broker API only


class VenueOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order as the venue tells of it.

    `status` is one of `OrderStatus`, or the venue's own text when it is unknown. Each order of a chain of replacements
    has executions of its own.
    """

    id: str  # the venue's order id
    client_order_id: str
    symbol: str  # canonical
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    status: str
    qty: Decimal | None = None
    notional: Decimal | None = None
    filled_qty: Decimal = Decimal(0)
    filled_avg_price: Decimal | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None  # of a trailing stop: where it stands now
    trail_price: Decimal | None = None
    trail_percent: Decimal | None = None
    hwm: Decimal | None = None  # best price that a trailing stop has seen
    extended_hours: bool = False
    order_class: str = "simple"  # one of `OrderClass`, or the venue's own text
    legs: tuple[VenueOrder, ...] = ()  # the exits of a group, when they were asked for
    replaces: str = ""  # id of the order whose place this one has taken
    replaced_by: str = ""  # id of the order that has taken this one's place
    replaced_ns: int | None = None
    created_ns: int = 0
    updated_ns: int = 0
    submitted_ns: int = 0
    filled_ns: int | None = None
    canceled_ns: int | None = None
    expired_ns: int | None = None
    failed_ns: int | None = None
    commission: Decimal | None = None  # dollars, Broker API only
    reject_reason: str = ""  # own field of the simulated exchange, empty elsewhere


class Replacement(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be changed in an open order; None leaves as it is."""

    qty: Decimal | None = None
    time_in_force: TimeInForce | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail: Decimal | None = None  # of a trailing stop, in the unit that it has
    client_order_id: str = ""  # of the new order; empty: the venue makes one


class TradeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the trade_updates stream.

    `event_id` sorts by time as text (a ULID). The execution and what follows it are given on fills only; `price` and
    `qty` are those of this execution, `position_qty` is signed and holds after it. A bust or a correction names the
    execution that it takes back or replaces; the quantity of a bust may be negative.
    """

    event: str  # new, fill, partial_fill, canceled, expired, rejected, ...
    event_id: str
    ts_event_ns: int
    order: VenueOrder
    execution_id: str = ""
    price: Decimal | None = None
    qty: Decimal | None = None
    position_qty: Decimal | None = None
    previous_execution_id: str = ""
    code: int | None = None  # own fields of the simulated exchange: why an order was rejected after its submit
    message: str = ""


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """One execution, as the account's list of activities has it."""

    execution_id: str
    order_id: str  # the venue's
    qty: Decimal
    price: Decimal
    ts_event_ns: int
    filled_qty: Decimal | None = None  # of the order after it


class VenuePosition(msgspec.Struct, frozen=True, kw_only=True):
    """A position as the venue tells of it. `qty` is signed."""

    symbol: str
    qty: Decimal
    avg_entry_price: Decimal


class AccountSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The account as the venue tells of it."""

    id: str
    account_number: str
    cash: Decimal
    equity: Decimal
    buying_power: Decimal
    status: str = "ACTIVE"
    trading_blocked: bool = False
