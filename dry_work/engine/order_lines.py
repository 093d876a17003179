"""One line in the log, and the spans, for each order that has ended. Engine thread only.

An order may have ended before the order worker told what it sent: its line then waits for that a moment.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from dry_work.broker.tickets import symbol_of
from dry_work.observability.order_trails import OrderTrail, OrderTrails, describe_trail, trace_order
from dry_work.observability.tracing import is_tracing
from dry_work.orders.risk import CODE_PREFIX
from dry_work.orders.rules import RefusalCode

WAIT_S = 2.0

_log = structlog.get_logger(__name__)


class OrderLines:
    """Writes the lines.

    Args:
        trails: what the orders went through.
        agent: returns whose they are.
        has_lines: lines are wanted; spans are as soon as tracing is on.
    """

    def __init__(self, trails: OrderTrails, *, agent: Callable[[], str], has_lines: bool) -> None:
        self._trails = trails
        self._agent = agent
        self._has_lines = has_lines
        self._waiting: deque[tuple[float, str, dict[str, Any]]] = deque()

    def add(self, order: Any, status: str, name: str, *, slice_end_ns: int) -> None:
        """Take an order that has ended.

        Args:
            order: the clone that the strategy is told of.
            slice_end_ns: end of the last slice before.
        """
        facts = {
            "client_order_id": name,
            "symbol": symbol_of(order.data),
            "side": order.ordtypename().lower(),
            "type": order.ExecTypes[order.exectype].lower(),
            "size": abs(order.created.size),
            "status": status,
            "reason": str(order.info.get("reject_reason", "")),
            "code": str(order.info.get("reject_code", "")),
            "filled": abs(order.executed.size),
            "price": order.executed.price,
            "slice_end_ns": slice_end_ns,
        }
        self._waiting.append((time.monotonic(), name, facts))

    def write(self, now_s: float | None, *, own_time: bool, gate: bool) -> None:
        """Write the lines of orders of which all is known, or for which it was waited long enough.

        Args:
            now_s: monotonic; None: of all, since it is the end.
            own_time: see `measure_slice`.
            gate: there is a risk gate.
        """
        while self._waiting:
            since_s, name, facts = self._waiting[0]
            trail = self._trails.find(name)
            is_whole = trail.answered_ns or is_refused_here(facts["code"])
            if not is_whole and now_s is not None and now_s - since_s < WAIT_S:
                return
            self._waiting.popleft()
            self._trails.drop(name)
            self._write(trail, facts, own_time=own_time, gate=gate)

    def _write(self, trail: OrderTrail, facts: dict[str, Any], *, own_time: bool, gate: bool) -> None:
        facts["risk"] = judge_risk(facts["code"], is_passed=trail.is_passed, gate=gate)
        link = None
        if is_tracing():
            named = {key: facts[key] for key in ("client_order_id", "symbol", "side", "status", "filled", "risk")}
            link = trace_order(trail, **named)
        if self._has_lines:
            _log.info(
                "order",
                agent=self._agent(),
                **facts,
                **describe_trail(trail, own_time=own_time),
                **(link.fields if link is not None else {}),
            )


def is_refused_here(code: str) -> bool:
    """Tell whether an order with this reject code was never sent."""
    return code.startswith(CODE_PREFIX) or code in set(RefusalCode)


def judge_risk(code: str, *, is_passed: bool, gate: bool) -> str:
    """Return what the risk gate said of an order: passed, off, or the limit that refused it; empty: not asked."""
    if code.startswith(CODE_PREFIX):
        return code.removeprefix(CODE_PREFIX)
    if not gate:
        return "off"
    return "passed" if is_passed else ""
