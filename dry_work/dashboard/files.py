"""An agent that shows no dashboard itself, as its files tell of it: lease, heartbeat, orders journal. Reads only."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import msgspec

from dry_work.broker.books_reader import JournalBooks, read_books
from dry_work.broker.journal import RiskRecord
from dry_work.broker.own_books import OrderState, OwnOrder, build_orders, sum_positions
from dry_work.clock import Clock, SystemClock
from dry_work.dashboard.board import ORDERS_KEPT, Board
from dry_work.dashboard.snapshot import BarCounts, Head, LogLine, OrderRow, RiskView, RunFacts, SymbolRow
from dry_work.engine.health import AgentHealth, Life, read_health
from dry_work.errors import DryWorkError
from dry_work.market.symbols import is_crypto
from dry_work.orders.client_ids import parse_client_order_id

READ_S = 1.0  # between two looks while somebody reads
_FILL_LINES = 50


class FilesReader:
    """Keeps a board up with the files of an agent, on a thread of its own, while somebody looks.

    Args:
        folder: the agent's state directory.
    """

    def __init__(self, folder: Path, *, clock: Clock | None = None) -> None:
        self._folder = folder
        self._clock = clock or SystemClock()
        self.readers = 0  # written by the server
        self.board = Board(Head(seq=1, run=RunFacts(agent=folder.name, mode="", symbols=0), account=None), ())
        self._told = ""  # the last problem
        self._fills = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read once, then go on while somebody looks."""
        self.read()
        self._thread = threading.Thread(target=self._run_thread, name="dashboard files", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run_thread(self) -> None:
        while not self._stop.wait(READ_S):
            if self.readers:
                self.read()

    def read(self) -> None:
        """Write what the files tell on the board, one thread at a time."""
        now_ns = self._clock.time_ns()
        health = read_health(self._folder, now_ns=now_ns)
        try:
            books = read_books(health.journal_path) if health.journal_path.is_file() else None
        except DryWorkError as error:
            books = None
            self._note_problem(str(error))
        board = self.board
        seq = board.seq + 1
        orders = build_orders(books) if books is not None else []
        if books is not None:
            self._put_rows(seq, books, orders, _read_counts(health))
            self._put_orders(seq, orders)
            self._put_fills(books)
        board.head = self._describe(seq, health, books, orders, now_ns)
        board.seq = seq

    def _note_problem(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self.board.log.add(LogLine(self._clock.time_ns() // 1_000_000, "warning", text))

    def _put_rows(self, seq: int, books: JournalBooks, orders: list[OwnOrder], counts: Mapping[str, BarCounts]) -> None:
        rows = dict(self.board.rows)
        for symbol, held in sum_positions(books).items():
            row = SymbolRow(
                seq=seq,
                symbol=symbol,
                crypto=is_crypto(symbol),
                position=float(held.qty),
                price=float(held.price) if held.qty else 0.0,
                open_orders=sum(order.symbol == symbol and order.is_open for order in orders),
                counts=counts.get(symbol),
                halted=next((halt.reason for halt in books.halts if halt.symbol == symbol.replace("/", "")), ""),
            )
            if not _is_same(rows.get(symbol), row):
                rows[symbol] = row
        self.board.rows = rows

    def _put_orders(self, seq: int, orders: list[OwnOrder]) -> None:
        known = self.board.orders
        shown = [order for order in orders if order.is_open] + orders[-ORDERS_KEPT:]
        fresh = [_describe_order(seq, order) for order in {order.name: order for order in shown}.values()]
        self.board.put_orders(order for order in fresh if not _is_same(known.get(order.id), order))

    def _put_fills(self, books: JournalBooks) -> None:
        for fill in books.fills[max(self._fills, len(books.fills) - _FILL_LINES) :]:
            text = f"{fill.side.value} {abs(fill.qty):f} {fill.symbol}: filled at {fill.price:,f}"
            self.board.log.add(LogLine(fill.ts_event_ns // 1_000_000, "info", text))
        self._fills = len(books.fills)

    def _describe(
        self, seq: int, health: AgentHealth, books: JournalBooks | None, orders: list[OwnOrder], now_ns: int
    ) -> Head:
        account = books.account if books is not None else None
        named = [parts for parts in (parse_client_order_id(order.name) for order in orders[-1:]) if parts is not None]
        beat_ns = health.heartbeat_ns
        beat = f", heartbeat {(now_ns - beat_ns) // 1_000_000_000} s ago" if beat_ns is not None else ""
        return Head(
            seq=seq,
            run=RunFacts(
                agent=health.strategy.strategy if health.strategy is not None else health.name,
                mode=account.mode if account is not None else "",
                symbols=len(self.board.rows),
                agent_id=health.name,
                session=named[0].session if named else "",
                started_ms=(health.since_ns or 0) // 1_000_000,
                restarts=max(health.recordings_sessions - 1, 0),
            ),
            phase="files",
            detail=f"{health.life.value}{beat if health.life in (Life.RUNNING, Life.HANGS) else ''}",
            at_ms=now_ns // 1_000_000,
            orders=len(orders),
            fills=len(books.fills) if books is not None else 0,
            open_orders=sum(order.is_open for order in orders),
            account=None,
            risk=_describe_risk(books.risk if books is not None else RiskRecord()),
        )


def _read_counts(health: AgentHealth) -> dict[str, BarCounts]:
    """Return what came of the bars of the symbols that the heartbeat lists."""
    if health.data is None:
        return {}
    return {each.symbol: BarCounts(*msgspec.structs.astuple(each.bars)) for each in health.data.symbols}


def _describe_risk(record: RiskRecord) -> RiskView:
    return RiskView(state=record.state.value, reason=record.reason, who=record.who, at_ms=record.at_ns // 1_000_000)


def _describe_order(seq: int, order: OwnOrder) -> OrderRow:
    return OrderRow(
        seq=seq,
        id=order.name,
        symbol=order.symbol,
        side=order.side.value,
        type=order.type,
        qty=float(order.qty or 0),
        status=order.state.value.lower(),
        is_open=order.state in (OrderState.OPEN, OrderState.UNKNOWN),
        filled=float(order.filled_qty),
        limit=_float(order.limit_price),
        stop=_float(order.stop_price),
        parent=order.parent,
        reason=order.note,
        placed_ms=order.intended_ns // 1_000_000,
        changed_ms=order.intended_ns // 1_000_000,
    )


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _is_same(before: SymbolRow | OrderRow | None, now: SymbolRow | OrderRow) -> bool:
    """Tell whether two rows say the same, whenever they were written."""
    if before is None:
        return False
    fields = now.__struct_fields__
    return all(getattr(before, name) == getattr(now, name) for name in fields if name != "seq")
