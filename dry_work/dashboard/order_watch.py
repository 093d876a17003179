"""What a run's dashboard knows of its orders and fills. Engine thread only; part of the collector."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import backtrader as bt

from dry_work.broker.order_objects import ID_FACT
from dry_work.broker.tickets import symbol_of
from dry_work.clock import Clock
from dry_work.dashboard.board import Board
from dry_work.dashboard.latency import StageTimes
from dry_work.dashboard.snapshot import FillMark, OrderRow
from dry_work.feeds.base import line_time_ns
from dry_work.orders.mapping import order_type_word

ACKNOWLEDGED, FILLED = "order → acknowledged", "order → filled"
_MINUTE_S = 60.0


class _Times:
    """When an order was told of, by the machine's steady clock."""

    def __init__(self, placed_s: float) -> None:
        self.placed_s = placed_s
        self.ack_ms: float | None = None
        self.fill_ms: float | None = None


class OrderWatch:
    """Orders by their client order ids, and what their fills have earned.

    Args:
        board: gets rows of orders, and marks of fills on its charts.
        stages: gets how long an order takes.
        own_time: orders have the market's time, not the machine's.
    """

    def __init__(self, board: Board, stages: StageTimes, *, clock: Clock, own_time: bool) -> None:
        self.fills = 0
        self.realised = 0.0
        self.realised_by: dict[str, float] = {}
        self.fills_by: dict[str, int] = {}
        self.open_by: dict[str, set[str]] = {}
        self.market_ns = 0  # end of the newest slice
        self._board = board
        self._stages = stages
        self._clock = clock
        self._own_time = own_time
        self._changed: dict[str, Any] = {}  # since the last look
        self._times: dict[str, _Times] = {}
        self._sent: deque[float] = deque(maxlen=100_000)  # orders of the last minute

    @property
    def open_count(self) -> int:
        """Open orders of all symbols."""
        return sum(map(len, self.open_by.values()))

    def count_last_minute(self, now_s: float) -> int:
        """Return how many orders were sent in the last minute."""
        while self._sent and now_s - self._sent[0] > _MINUTE_S:
            self._sent.popleft()
        return len(self._sent)

    def note_open(self, order: Any) -> None:
        """Take note of an order of an earlier run."""
        name = order.info.get(ID_FACT)
        if name:
            self._changed[name] = order
            self.open_by.setdefault(symbol_of(order.data), set()).add(name)

    def note(self, order: Any) -> str:
        """Take note of what the strategy is told of an order; return its symbol, empty when it is not told."""
        name = order.info.get(ID_FACT)
        if not name:
            return ""  # made for Backtrader's trades alone: the strategy does not hear of it
        now_s = self._clock.monotonic()
        symbol = symbol_of(order.data)
        times = self._times.get(name)
        if times is None:
            times = self._times[name] = _Times(now_s)
            self._sent.append(now_s)
        waited_ms = (now_s - times.placed_s) * 1000
        if times.ack_ms is None and order.status not in (bt.Order.Created, bt.Order.Submitted):
            times.ack_ms = waited_ms
            if waited_ms > 0:  # a replay knows the time of a turn alone
                self._stages.add(ACKNOWLEDGED, waited_ms)
        for bit in order.executed.iterpending():
            times.fill_ms = waited_ms
            self._note_fill(name, symbol, bit)
        if times.fill_ms == waited_ms > 0:
            self._stages.add(FILLED, waited_ms)
        opened = self.open_by.setdefault(symbol, set())
        if order.alive():
            opened.add(name)
        else:
            opened.discard(name)
        self._changed[name] = order
        return symbol

    def _note_fill(self, name: str, symbol: str, bit: Any) -> None:
        side = "buy" if bit.size > 0 else "sell"
        self.fills += 1
        self.fills_by[symbol] = self.fills_by.get(symbol, 0) + 1
        gain = float(bit.pnl)  # of a contract the commission scheme has counted a hundred shares
        self.realised += gain
        self.realised_by[symbol] = self.realised_by.get(symbol, 0.0) + gain
        chart = self._board.charts.get(symbol)
        if chart is not None:
            at_ms = line_time_ns(bit.dt) // 1_000_000 if bit.dt else self.market_ns // 1_000_000
            closes = bool(bit.closed) and not bit.opened
            chart.add_mark(FillMark(at_ms, side, abs(float(bit.size)), float(bit.price), closes, name))

    def publish(self, seq: int) -> None:
        """Put what has changed on the board."""
        if self._changed:
            changed, self._changed = self._changed, {}
            self._board.put_orders(self._describe(seq, name, order) for name, order in changed.items())

    def _describe(self, seq: int, name: str, order: Any) -> OrderRow:
        times = self._times.get(name)
        is_open = bool(order.alive())
        created, executed = order.created, order.executed
        kind = order.ExecTypes[order.exectype]
        is_limit = kind == "Limit"
        is_plain = kind in ("Market", "Close")
        now_ms = (self.market_ns if self._own_time else self._clock.time_ns()) // 1_000_000
        known = self._board.orders.get(name)
        if not is_open:
            self._times.pop(name, None)
        parent = getattr(order, "parent", None)
        return OrderRow(
            seq=seq,
            id=name,
            symbol=symbol_of(order.data),
            side="buy" if order.isbuy() else "sell",
            type=order_type_word(kind),
            qty=abs(float(created.size)),
            status=order.getstatusname().lower(),
            is_open=is_open,
            filled=abs(float(executed.size)),
            price=float(executed.price) if executed.size else None,
            limit=_number(created.price) if is_limit else _number(created.pricelimit) if "Limit" in kind else None,
            stop=None if is_plain or is_limit else _number(created.price),
            parent=str(parent.info.get(ID_FACT) or "") if parent is not None else "",
            reason=str(order.info.get("reject_reason") or ""),
            placed_ms=known.placed_ms if known is not None else _created_ms(created) or now_ms,
            changed_ms=now_ms,
            ack_ms=times.ack_ms or None if times is not None else known.ack_ms if known is not None else None,
            fill_ms=times.fill_ms or None if times is not None else known.fill_ms if known is not None else None,
        )


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _created_ms(created: Any) -> int:
    return line_time_ns(created.dt) // 1_000_000 if created.dt and math.isfinite(created.dt) else 0
