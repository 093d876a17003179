"""The tape: recorded trades and quotes of all symbols in the order of their times. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from dry_work.exchange.tables import build_quote_item, build_trade_item
from dry_work.feeds.recorded_ticks import TickKind, TickRecording, TickTable


class Tick(msgspec.Struct, frozen=True):
    """One trade or quote, not yet encoded."""

    kind: TickKind
    symbol: str
    table: TickTable
    row: int

    def build_item(self) -> dict[str, Any]:
        """Return it as an item of the stream."""
        build = build_trade_item if self.kind == "trades" else build_quote_item
        return build(self.symbol, self.table, self.row)


class Tape:
    """Gives out the ticks once, by rising time; those of one time by symbol, quotes before trades.

    Args:
        start_ns: ticks before it are passed over.
    """

    def __init__(self, ticks: TickRecording, *, start_ns: int) -> None:
        self._keys = sorted(ticks.tables, key=lambda key: (key[1], key[0]))
        self._tables = [ticks.tables[key] for key in self._keys]
        times = [table.times for table in self._tables] or [np.empty(0, dtype=np.int64)]
        owners = np.repeat(np.arange(len(self._tables)), [len(table) for table in self._tables])
        rows = np.concatenate([np.arange(len(column)) for column in times])
        merged = np.concatenate(times)
        order = np.lexsort((rows, owners, merged)) if len(self._tables) else np.empty(0, dtype=np.int64)
        self._times = merged[order]
        self._owners = owners[order]
        self._rows = rows[order]
        self._next = int(np.searchsorted(self._times, start_ns, side="left"))
        self.time_ns = start_ns  # every tick before it was given out

    def __len__(self) -> int:
        return len(self._times)

    def take(self, until_ns: int) -> Sequence[Tick]:
        """Return the ticks before `until_ns` that were not given out before."""
        if until_ns <= self.time_ns:
            return ()
        first, self._next = self._next, int(np.searchsorted(self._times, until_ns, side="left"))
        self.time_ns = until_ns
        owners = self._owners[first : self._next].tolist()
        rows = self._rows[first : self._next].tolist()
        ticks = []
        for owner, row in zip(owners, rows, strict=True):
            kind, symbol = self._keys[owner]
            ticks.append(Tick(kind, symbol, self._tables[owner], row))
        return ticks
