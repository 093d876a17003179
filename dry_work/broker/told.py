"""What a strategy has been told of its orders. Pure.

It is kept with the strategy's state, in one file: one is never there without the other.
A strategy that keeps its state hears, after a restart, what that state does not know yet, and nothing twice. What it
has decided is part of the record too, until the journal is sure to have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import msgspec

from dry_work.broker.placed import PlacedOrder
from dry_work.errors import ConfigError
from dry_work.orders.groups import Role
from dry_work.orders.lifecycle import Phase
from dry_work.orders.model import OrderRequest, Replacement


class SavedLeg(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order that goes out as part of another."""

    role: Role
    request: OrderRequest
    number: int
    placed: PlacedOrder | None = None


class SavedSubmit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order that the journal may not have yet."""

    number: int
    placed: PlacedOrder
    at_ns: int = 0
    request: OrderRequest | None = None  # None: it was refused before it could be sent
    legs: tuple[SavedLeg, ...] = ()


class SavedReplacement(msgspec.Struct, frozen=True, kw_only=True):
    """A replacement that the journal may not have yet."""

    change: Replacement
    request: OrderRequest  # the order as it is to stand then
    number: int
    at_ns: int


class ToldOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a strategy knows of an order."""

    phase: Phase | None = None  # None: nothing was told
    filled: Decimal = Decimal(0)
    standing: str = ""  # client order id of the replacement that it knows of
    replacing: str = ""  # of the one that it has asked for and does not know the outcome of
    cancel_asked: bool = False
    submit: SavedSubmit | None = None
    replacement: SavedReplacement | None = None


class ToldRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy knows of all its orders."""

    numbers: Mapping[str, int] = {}  # by session: its orders up to here are known
    orders: Mapping[str, ToldOrder] = {}  # of those the ones of which it does not know all

    def knows(self, session: str, number: int) -> bool:
        """Tell whether the strategy knew of an order when the record was made."""
        return number <= self.numbers.get(session, 0)


def encode_told(record: ToldRecord) -> object:
    """Return a record as JSON values."""
    return msgspec.to_builtins(record)


def parse_told(content: object) -> ToldRecord:
    """Read a record.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return msgspec.convert(content, type=ToldRecord)
    except msgspec.ValidationError as error:
        raise ConfigError(f"what the strategy was told of its orders cannot be read: {error}") from None
