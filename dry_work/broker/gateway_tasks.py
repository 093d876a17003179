"""What the engine asks of the order worker; see `gateway`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dry_work.broker.outcomes import LegIntent, PairHold
from dry_work.orders.books import Fill
from dry_work.orders.model import OrderRequest, Replacement


class SubmitTask(msgspec.Struct, frozen=True):
    """Send an order, and write down what goes with it."""

    request: OrderRequest
    number: int
    at_ns: int
    legs: tuple[LegIntent, ...] = ()
    hold: PairHold | None = None
    is_intended: bool = False  # its intent is in the journal
    terms: str = ""  # JSON: the order as the strategy gave it


class ReplaceTask(msgspec.Struct, frozen=True):
    """Change an order."""

    client_order_id: str
    change: Replacement
    request: OrderRequest  # what stands afterwards
    number: int
    at_ns: int
    is_intended: bool = False


class CancelTask(msgspec.Struct, frozen=True):
    """Cancel an order."""

    client_order_id: str
    at_ns: int


class LookUpTask(msgspec.Struct, frozen=True):
    """Ask for orders."""

    client_order_ids: tuple[str, ...]
    is_resync: bool


class ReportTask(msgspec.Struct, frozen=True):
    """Report a slice done."""

    number: int


class RecordTask(msgspec.Struct, frozen=True):
    """Write down fills and ends."""

    fills: tuple[Fill, ...]
    ends: tuple[tuple[str, str], ...]
    at_ns: int
    order_names: Mapping[str, str]


class RunTask(msgspec.Struct, frozen=True):
    """Call with the venue."""

    call: Callable[[Any], None]


Task = SubmitTask | ReplaceTask | CancelTask | LookUpTask | ReportTask | RecordTask | RunTask | None
