"""Orders that have ended and are let go of, and what stays of them. Engine thread only.

The newest of them stay whole. Of an older one stay its row of the results, on disk, and the names and totals by which
the venue may still speak of it: from then on it is to this run what an order of an earlier run is.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import structlog

from dry_work.broker.notices import Notices
from dry_work.broker.tickets import Ticket

KEPT_ORDERS = 500  # that have ended and stay whole
_AT_A_TIME = 256

Row = dict[str, Any]

_log = structlog.get_logger(__name__)


class RowFile:
    """Rows in a file without a name, which is gone with the process however that ends. Each has a number."""

    def __init__(self) -> None:
        self._file: Any = None
        self._end = 0
        self._is_told = False
        self.count = 0

    def add(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> bool:
        """Write rows behind those that are there, all or none; False when the disk does not take them."""
        rows = list(rows)
        content = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        try:
            if self._file is None:
                descriptor, name = tempfile.mkstemp(prefix="orders-")
                os.unlink(name)
                self._file = os.fdopen(descriptor, "w+b")
                weakref.finalize(self, self._file.close)
            self._file.seek(self._end)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                _log.warning("rows of old orders stay in memory: they cannot be written to disk", error=str(error))
            return False
        self._end += len(content)
        self.count += len(rows)
        return True

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Give the rows in the order in which they were written."""
        if self._file is not None:
            self._file.seek(0)
            for line in self._file.read(self._end).splitlines():
                number, row = msgspec.json.decode(line)
                yield number, row


class FillRows:
    """The fills of a run as the results list them: the newest in memory, the others on disk.

    Args:
        kept: how many stay in memory at least; None: `KEPT_ORDERS`.
    """

    def __init__(self, kept: int | None = None) -> None:
        self._kept = KEPT_ORDERS if kept is None else kept
        self._rows: dict[str, tuple[int, Row]] = {}  # by execution id
        self._file = RowFile()
        self._taken_back: set[str] = set()  # execution ids of rows in the file
        self._next = 0

    def add(self, execution_id: str, row: Row) -> None:
        """Keep the row of a fill."""
        self._rows[execution_id] = (self._next, row)
        self._next += 1
        if len(self._rows) >= self._kept + _AT_A_TIME:
            oldest = list(self._rows)[:_AT_A_TIME]
            named = [(name, *self._rows[name]) for name in oldest]
            if self._file.add((number, {"execution_id": name, "row": row}) for name, number, row in named):
                for name in oldest:
                    del self._rows[name]

    def take_back(self, execution_id: str) -> None:
        """Forget the row of a fill, if there is one."""
        if self._rows.pop(execution_id, None) is None:
            self._taken_back.add(execution_id)

    def rows(self) -> list[Row]:
        """Return all rows, in order."""
        before = [found["row"] for _, found in self._file.rows() if found["execution_id"] not in self._taken_back]
        return [*before, *(row for _, row in self._rows.values())]


class RetiredOrders:
    """Lets go of orders of a desk.

    Args:
        tickets: of the desk, all by client order id; this and the following three lose the orders that are let go of.
        names: by every client order id that the venue may have for them.
        ids: by every id of the venue.
        by_ref: by the numbers of Backtrader's orders.
        doubtful: client order ids of which something is being looked up.
        notices: knows of which not all is told.
        kept: how many orders that have ended stay whole at least; None: `KEPT_ORDERS`.
    """

    def __init__(
        self,
        *,
        tickets: dict[str, Ticket],
        names: dict[str, Ticket],
        ids: dict[str, Ticket],
        by_ref: dict[int, Ticket],
        doubtful: set[str],
        notices: Notices,
        kept: int | None = None,
    ) -> None:
        self._tickets = tickets
        self._names = names
        self._ids = ids
        self._by_ref = by_ref
        self._doubtful = doubtful
        self._notices = notices
        self._kept = KEPT_ORDERS if kept is None else kept
        self._numbers: dict[str, int] = {}  # place of each order that is there, by client order id
        self._file = RowFile()
        self._next = 0

    @property
    def order_count(self) -> int:
        """Orders so far, those that were let go of too."""
        return self._file.count + len(self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Take note of a new order."""
        self._numbers[ticket.client_order_id] = self._next
        self._next += 1

    def rows(self) -> list[Row]:
        """Return the rows of all orders, in order of submission."""
        found = dict(self._file.rows())
        found.update((self._numbers[name], ticket.record()) for name, ticket in self._tickets.items())
        return [found[number] for number in sorted(found)]

    def let_go(self, open_count: int) -> list[str]:
        """Let go of the oldest orders that have ended, when there are many; return every name they had at the venue.

        Args:
            open_count: how many have not ended.
        """
        surplus = len(self._tickets) - open_count - self._kept
        if surplus < _AT_A_TIME:
            return []
        gone: dict[int, Ticket] = {}
        for ticket in self._tickets.values():
            if len(gone) >= surplus:
                break
            group = ticket.members or [ticket]
            if id(ticket) not in gone and all(map(self._is_over, group)):
                gone.update((id(member), member) for member in group)
        there = [ticket for ticket in gone.values() if ticket.client_order_id in self._tickets]
        if not self._file.add((self._numbers[ticket.client_order_id], ticket.record()) for ticket in there):
            return []
        for ticket in there:
            del self._tickets[ticket.client_order_id], self._numbers[ticket.client_order_id]
            self._by_ref.pop(ticket.order.ref, None)
        names = [name for name, ticket in self._names.items() if id(ticket) in gone]
        for name in names:
            del self._names[name]
        for order_id in [order_id for order_id, ticket in self._ids.items() if id(ticket) in gone]:
            del self._ids[order_id]
        return names

    def _is_over(self, ticket: Ticket) -> bool:
        mark = ticket.cancel_mark
        return (
            not ticket.phase.is_open
            and ticket.queued == 0
            and (mark is None or not mark.is_queued)
            and ticket.client_order_id not in self._doubtful
            and not self._notices.is_unsettled(ticket)
        )
