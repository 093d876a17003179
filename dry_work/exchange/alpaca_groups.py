"""The life of groups under the rule set `alpaca`: legs that wait, exits that end each other. Pure.

- The legs of a bracket or oto order are `held` until the entry is filled as a whole. Then the profit exit is `new`; the
  stop exit of a pair stays `held` behind it, an only exit is `new`.
- A partial fill of the profit exit takes as much from the stop exit, which is told as `restated`; its complete fill
  cancels it.
- When the stop exit triggers, the profit exit is canceled. The stop exit is then `new`, unless it fills at once.
- Whatever else ends one of the orders (a cancel, an expiry, a refusal) ends them all, but an entry that is filled
  leaves its exits alone.
"""

from __future__ import annotations

from msgspec.structs import replace

from dry_work.exchange.book import Book, OpenOrder
from dry_work.orders.model import OrderStatus


def follow_fill(book: Book, entry: OpenOrder, fill_ns: int, now_ns: int) -> None:
    """Carry on behind an execution of a member of a group."""
    group = entry.group
    if group is None or not group.is_linked:
        return
    if group.is_entry(entry):
        if entry.is_done:
            _activate(book, entry, fill_ns, now_ns)
        return
    others = [other for other in group.exits if other is not entry and not other.is_done]
    if entry.is_done or entry is not group.exits[0]:
        end_group(book, entry, now_ns)
        return
    for other in others:
        left = entry.remaining
        other.remaining = left
        other.order = replace(other.order, qty=left + other.order.filled_qty, updated_ns=now_ns)
        book.tell(other, "restated", now_ns)


def follow_trigger(book: Book, entry: OpenOrder, now_ns: int) -> None:
    """Carry on when the stop of an exit was hit."""
    group = entry.group
    if group is None or group.is_entry(entry):
        return
    if entry.is_held and not entry.is_done:
        show(book, entry, now_ns)
    end_group(book, entry, now_ns)


def end_group(book: Book, entry: OpenOrder, now_ns: int) -> None:
    """End the other orders of a group; those of an expired one expire, others are canceled."""
    group = entry.group
    if group is None or not group.is_linked:
        return
    group.is_linked = False
    status = OrderStatus.EXPIRED if entry.order.status == OrderStatus.EXPIRED else OrderStatus.CANCELED
    for other in group.others(entry):
        if not other.is_done:
            book.set_status(other, status, now_ns)


def show(book: Book, entry: OpenOrder, now_ns: int) -> None:
    """Make a held order a new one; while a change of it is on its way it keeps its status."""
    entry.is_held = False
    if entry.order.status == OrderStatus.HELD:
        book.set_status(entry, OrderStatus.NEW, now_ns)


def _activate(book: Book, entry: OpenOrder, fill_ns: int, now_ns: int) -> None:
    group = entry.group
    assert group is not None
    for leg in reversed(group.legs):  # the stop exit is tried first: a bar does not say which came first
        if not leg.is_done:
            leg.is_active = True
            leg.active_ns = fill_ns
            book.pending.append(leg)
    first = group.exits[0]
    if not first.is_done:
        show(book, first, now_ns)
