"""What a strategy was told of its orders, kept with its state. Part of `paper`. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dry_work.broker.desk import OrderDesk
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.told import ToldRecord


class StateKeeping:
    """Orders that leave only when the strategy's state that knows of them is kept."""

    _is_running: bool
    _desk: OrderDesk
    _gateway: OrderGateway
    _keeps_told: bool
    _told: ToldRecord | None
    _kept_told: ToldRecord | None
    _next_told: ToldRecord | None
    _reset: Callable[[], None]

    def keep_told(self, record: ToldRecord | None) -> None:
        """Before the start: keep what the strategy is told, which whoever calls this keeps with the strategy's state.

        Orders then leave with `release_orders` alone, when that state is kept.

        Args:
            record: what the strategy's state knows; None: there is none yet.
        """
        self._keeps_told, self._told, self._kept_told = True, record, record
        self._reset()

    def note_told(self, notification: Any) -> None:
        """Take note of a notification that the strategy has heard."""
        self._desk.notices.note_told(notification)

    @property
    def has_untold_changes(self) -> bool:
        """Tell whether something was told or decided since the last `told_record`."""
        return self._desk.notices.is_changed or (self._is_running and self._gateway.has_kept)

    def told_record(self) -> ToldRecord:
        """Return what the strategy has been told of its orders."""
        self._next_told = self._desk.notices.record()
        return self._next_told

    def release_orders(self) -> None:
        """Let the orders go that were decided by now: the last `told_record` is kept."""
        self._kept_told = self._next_told or self._kept_told
        if self._is_running:
            self._gateway.let_go()
