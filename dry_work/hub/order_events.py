"""Order updates of one account: each told once, under an id that never changes, with what a lost connection swallowed.

Pure; not thread-safe. The stream tells of each event; after a gap the venue's own history does, or a comparison of its
orders and executions with what was told before (`compare`). An event that both bring is told once: those of the history
have the same id, those made from a comparison are known by what they say.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from dry_work.errors import CodecError
from dry_work.wire.pubsub import parse_time

REMEMBERED = 20_000  # events and orders, against those that come twice
ORDER_EVENTS = frozenset((
    "new", "fill", "partial_fill", "canceled", "expired", "done_for_day", "replaced", "rejected", "pending_new",
    "stopped", "pending_cancel", "pending_replace", "calculated", "suspended", "order_replace_rejected",
    "order_cancel_rejected", "accepted", "held", "restated", "trade_bust", "trade_correct",
))  # fmt: skip
MADE = "dw-"  # begins the ids of events that the venue has given none

Data = Mapping[str, Any]
_Key = tuple[str, str]  # order id, and what happened to it

_FILLS = ("fill", "partial_fill")
_ENDS = {"canceled": "canceled", "expired": "expired", "rejected": "rejected", "replaced": "replaced"}
_FINAL = frozenset((*_ENDS, "filled"))
_ONCE = frozenset(("new", *_ENDS.values()))  # an order sees each of these once at most
_NOT_LIVE = frozenset(("accepted", "pending_new", "accepted_for_bidding", "held", "pending_review"))


class OrderEvent(msgspec.Struct, frozen=True):
    """An event to tell."""

    event_id: str
    symbol: str
    data: Data  # as in the stream's `data`


class OrderMemory(msgspec.Struct):
    """What is kept over a restart."""

    last_id: str = ""  # the venue's id of the last event
    last_ns: int = 0  # time of the last event
    orders: dict[str, tuple[str, str]] = {}  # status and filled quantity of the orders that were told of, by id
    event_ids: list[str] = []  # the last ones, oldest first


class OrderLedger:
    """What was told of one account.

    Args:
        memory: of an earlier run.
    """

    def __init__(self, memory: OrderMemory | None = None, *, remembered: int = REMEMBERED) -> None:
        memory = memory or OrderMemory()
        self.last_id = memory.last_id
        self.last_ns = memory.last_ns
        self.duplicates = 0
        self.told = 0
        self.made = 0  # events that the stream did not bring
        self._remembered = remembered
        self._ids: OrderedDict[str, None] = OrderedDict.fromkeys(memory.event_ids)
        self._keys: OrderedDict[_Key, bool] = OrderedDict()  # what was told -> whether it was made here
        self._covered: OrderedDict[str, Decimal] = OrderedDict()  # filled quantity that was told by events made here
        self._orders: OrderedDict[str, tuple[str, Decimal]] = OrderedDict(
            (order_id, (status, _decimal(filled))) for order_id, (status, filled) in memory.orders.items()
        )

    @property
    def is_new(self) -> bool:
        """Tell whether nothing is known of the account: then there is nothing that could be missed."""
        return not (self._orders or self._ids or self.last_id or self.last_ns)

    @property
    def open_ids(self) -> frozenset[str]:
        """Ids of the orders that can still change, by what was told."""
        return frozenset(order_id for order_id, (status, _) in self._orders.items() if status not in _FINAL)

    @property
    def has_told(self) -> bool:
        """Tell whether anything was told of the account so far."""
        return bool(self._ids)

    @property
    def venue_ids(self) -> list[str]:
        """The venue's ids of the last events, in the order in which they were told."""
        return [event_id for event_id in self._ids if not event_id.startswith(MADE)]

    @property
    def memory(self) -> OrderMemory:
        """What to keep over a restart."""
        orders = {order_id: (status, f"{filled:f}") for order_id, (status, filled) in self._orders.items()}
        return OrderMemory(self.last_id, self.last_ns, orders, list(self._ids)[-1_000:])

    def take(self, data: Data) -> OrderEvent | None:
        """Take an event of the venue's; return it unless it was told before.

        Raises:
            CodecError: it names no event or no order.
        """
        event, order = data.get("event"), data.get("order")
        if not isinstance(event, str) or not isinstance(order, Mapping) or not isinstance(order.get("id"), str):
            raise CodecError("the update has no event, or no order with an id")
        given = data.get("event_id")
        event_id = str(given) if isinstance(given, str | int) and given else make_id(data)
        key = _key_of(event, order)
        if event_id in self._ids or self._is_made(event, order, key):
            self.duplicates += 1
            self._remember(event_id, key, made=False)
            return None
        if given:
            # The stream's order is the account's; ids of one millisecond have none of their own.
            self.last_id = event_id
        return self._tell(event_id, key, data, made=False)

    def _is_made(self, event: str, order: Data, key: _Key | None) -> bool:
        """Tell whether an event made here has said the same, or a fill made here covers this one."""
        if event in _FILLS:
            covered = self._covered.get(str(order.get("id")))
            return covered is not None and _decimal(order.get("filled_qty")) <= covered
        return key is not None and self._keys.get(key, False)

    def is_behind(self, order: Data) -> bool:
        """Tell whether an order, as the venue's REST API has it, is further than what was told of it.

        Orders that are not live yet do not count: not every venue tells of them.
        """
        if str(order.get("status")) in _NOT_LIVE:
            return False
        keys = (_key_of(str(data["event"]), data["order"]) for data in self._differences(order, []))
        return any(key not in self._keys for key in keys)

    def seed(self, orders: Iterable[Data]) -> None:
        """Take orders as they are, without telling of them: where a new account stands."""
        for order in orders:
            self._note(order)

    def forget(self, order_id: str) -> None:
        """Let go of an order that the venue does not know any more."""
        self._orders.pop(order_id, None)

    def compare(self, orders: Iterable[Data], executions: Iterable[Data]) -> list[OrderEvent]:
        """Return what must have happened to `orders` since they were told of, in the order in which it happened.

        Args:
            orders: as the venue's REST API answers them now, without those that nothing has happened to for long.
            executions: account activities of the kind FILL, of the time in question. What they do not have of an
                order's filled quantity is told as one fill at the average price.
        """
        by_order: dict[str, list[Data]] = {}
        for execution in executions:
            by_order.setdefault(str(execution.get("order_id")), []).append(execution)
        found: list[tuple[int, int, _Key | None, Data]] = []
        for order in orders:
            order_id = str(order.get("id"))
            for data in self._differences(order, by_order.get(order_id, [])):
                key = _key_of(str(data["event"]), data["order"])
                if key is None or key not in self._keys:
                    found.append((_time_ns(data), len(found), key, data))
            self._note(order)
        found.sort(key=lambda item: item[:2])
        return [self._tell(make_id(data), key, data, made=True) for _, _, key, data in found]

    def _differences(self, order: Data, executions: list[Data]) -> Iterator[Data]:
        status, filled = str(order.get("status")), _decimal(order.get("filled_qty"))
        known = self._orders.get(str(order.get("id")))
        if status in _NOT_LIVE:
            if known is None:
                yield _make(order, status, order.get("submitted_at"))
        elif status != "rejected" and (known is None or known[0] in _NOT_LIVE):
            yield _make(order, "new", order.get("submitted_at"), status="new", filled=Decimal(0))
        before = known[1] if known is not None else Decimal(0)
        if filled > before:
            yield from self._missing_fills(order, before, filled, executions)
        if status in _ENDS and (known is None or known[0] != status):
            yield _make(order, _ENDS[status], _time_of_end(order, status))

    def _missing_fills(self, order: Data, before: Decimal, filled: Decimal, executions: list[Data]) -> Iterator[Data]:
        at = before
        for execution in sorted(executions, key=lambda item: _decimal(item.get("cum_qty"))):
            cumulated = _decimal(execution.get("cum_qty"))
            if not at < cumulated <= filled:
                continue
            qty = min(_decimal(execution.get("qty")), cumulated - at)
            if cumulated - qty > at:
                yield self._lump(order, at, cumulated - qty, execution.get("transaction_time"))
            yield self._fill(
                order,
                cumulated,
                qty,
                str(execution.get("price")),
                execution.get("transaction_time"),
                str(execution.get("id") or "").rpartition("::")[2],
            )
            at = cumulated
        if at < filled:
            yield self._lump(order, at, filled, order.get("filled_at") or order.get("updated_at"))

    def _lump(self, order: Data, before: Decimal, until: Decimal, at: object) -> Data:
        """Return one fill in place of several whose executions are not known."""
        return self._fill(order, until, until - before, str(order.get("filled_avg_price") or ""), at, "")

    def _fill(self, order: Data, cumulated: Decimal, qty: Decimal, price: str, at: object, execution_id: str) -> Data:
        is_last = cumulated == _decimal(order.get("filled_qty")) and order.get("status") == "filled"
        data = dict(
            _make(
                order,
                "fill" if is_last else "partial_fill",
                at,
                status="filled" if is_last else "partially_filled",
                filled=cumulated,
            )
        )
        data |= {"qty": f"{qty:f}", "price": price}
        if execution_id:
            data["execution_id"] = execution_id
        return data

    def _tell(self, event_id: str, key: _Key | None, data: Data, *, made: bool) -> OrderEvent:
        self._remember(event_id, key, made=made)
        self.told += 1
        order = data["order"]
        if made:
            self.made += 1
            if data["event"] in _FILLS:
                order_id, filled = str(order.get("id")), _decimal(order.get("filled_qty"))
                self._covered[order_id] = max(self._covered.get(order_id, filled), filled)
                if len(self._covered) > self._remembered:
                    self._covered.popitem(last=False)
        self._note(order)
        self.last_ns = max(self.last_ns, _time_ns(data))
        return OrderEvent(event_id, str(order.get("symbol") or "").upper(), data)

    def _remember(self, event_id: str, key: _Key | None, *, made: bool) -> None:
        self._ids[event_id] = None
        if len(self._ids) > self._remembered:
            self._ids.popitem(last=False)
        if key is not None:
            self._keys[key] = self._keys.get(key, False) or made
            if len(self._keys) > self._remembered:
                self._keys.popitem(last=False)

    def _note(self, order: Data) -> None:
        order_id, filled = str(order.get("id")), _decimal(order.get("filled_qty"))
        before = self._orders.pop(order_id, None)
        # A late event does not take back what a later one has told.
        if before is not None and before[0] in _FINAL:
            self._orders[order_id] = (before[0], max(before[1], filled))
        else:
            self._orders[order_id] = (str(order.get("status")), max(filled, before[1] if before else filled))
        if len(self._orders) > self._remembered:
            self._orders.popitem(last=False)


def make_id(data: Data) -> str:
    """Return an id for an event that the venue has given none: always the same for the same event."""
    order = data["order"]
    parts = (
        order.get("id"),
        data.get("event"),
        data.get("execution_id"),
        data.get("timestamp"),
        order.get("filled_qty"),
    )
    return MADE + hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:26]


def _key_of(event: str, order: Data) -> _Key | None:
    """Return what an event says, as far as that can be said only once; None for what may happen again."""
    order_id = str(order.get("id"))
    if event in _FILLS:
        return order_id, f"filled {_decimal(order.get('filled_qty')).normalize():f}"
    return (order_id, event) if event in _ONCE else None


def _make(order: Data, event: str, at: object, *, status: str = "", filled: Decimal | None = None) -> Data:
    told = dict(order)
    if status:
        told["status"] = status
    if filled is not None:
        told["filled_qty"] = f"{filled:f}"
    if filled is not None and not filled:
        told["filled_avg_price"] = None
    return {"event": event, "timestamp": at or order.get("updated_at"), "order": told}


def _time_of_end(order: Data, status: str) -> object:
    name = {"canceled": "canceled_at", "expired": "expired_at", "rejected": "failed_at", "replaced": "replaced_at"}
    return order.get(name[status]) or order.get("updated_at")


def _time_ns(data: Data) -> int:
    for name in ("timestamp", "at"):
        text = data.get(name)
        if isinstance(text, str):
            try:
                return parse_time(text)
            except ValueError:
                continue
    return 0


def _decimal(value: object) -> Decimal:
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        return Decimal(0)
    return found if found.is_finite() else Decimal(0)
