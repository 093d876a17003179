"""What `dry-work status` shows: tables for people, JSON for programs. Quantities and money are text in JSON: exact."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from dry_work.broker.books_reader import JournalBooks
from dry_work.broker.journal import RiskRecord, describe_record
from dry_work.broker.own_books import OrderState, build_orders, sum_positions
from dry_work.broker.status import Comparison, Mark, OrderRow, PositionRow, VenueSnapshot, short_name
from dry_work.clock import SECOND_NS
from dry_work.engine.health import AgentHealth, Life
from dry_work.market.market_state import DataHealth, describe_health
from dry_work.orders.books import Fill
from dry_work.orders.risk import RiskState
from dry_work.wire.alpaca_rest import encode_decimal
from dry_work.wire.pubsub import encode_time

if TYPE_CHECKING:
    from rich.table import Table

FILLS_SHOWN = 5
ORDERS_SHOWN = 40  # by the journal alone
_NAME_WIDTH = 17
_STYLES = {Mark.DIFFERS: "bold red", Mark.FOREIGN: "yellow", Mark.EQUAL: "green", Mark.ALONE: ""}


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One agent in a line."""

    health: AgentHealth
    mode: str = ""
    risk: RiskRecord | None = None  # None: there is no journal
    open_orders: int = 0
    unknown_orders: int = 0
    positions: int = 0
    last_fill: Fill | None = None
    problem: str = ""

    @classmethod
    def of(cls, health: AgentHealth, books: JournalBooks | None, problem: str) -> Summary:
        """Return the summary of an agent and its journal; without one `problem` says why."""
        if books is None:
            return cls(health=health, problem=problem)
        orders = build_orders(books)
        return cls(
            health=health,
            mode=books.account.mode if books.account is not None else "",
            risk=books.risk,
            open_orders=sum(order.state is OrderState.OPEN for order in orders),
            unknown_orders=sum(order.state is OrderState.UNKNOWN for order in orders),
            positions=sum(bool(held.qty) for held in sum_positions(books).values()),
            last_fill=books.fills[-1] if books.fills else None,
            problem=problem,
        )

    @property
    def needs_attention(self) -> bool:
        """Tell whether nobody looks after what the agent has by its journal, or that cannot be read."""
        return self.is_alarming(bool(self.open_orders or self.unknown_orders or self.positions))

    def is_alarming(self, has_something: bool) -> bool:
        """Tell whether somebody should look; `has_something`: the agent has open orders or positions."""
        is_over = self.mode == "local" and self.health.life is Life.DIED  # and its exchange with it
        return bool(self.problem) or (self.health.life in (Life.DIED, Life.HANGS) and has_something and not is_over)


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """One agent in full."""

    summary: Summary
    books: JournalBooks | None
    comparison: Comparison
    snapshot: VenueSnapshot | None
    venue_note: str

    @property
    def needs_attention(self) -> bool:
        """Tell whether nobody looks after what the agent has, at the venue if that was asked."""
        if self.snapshot is None:
            return self.summary.needs_attention
        rows = [row.mark for row in self.comparison.orders]
        rows += [row.mark for row in self.comparison.positions if row.venue is not None and row.venue.qty]
        return self.summary.is_alarming(any(mark is not Mark.FOREIGN for mark in rows))


# For people


def build_list(rows: Iterable[Summary], *, now_ns: int) -> Iterator[Any]:
    """Yield the list of agents."""
    rows = list(rows)
    table = _table(("agent", "", "state", "", "heartbeat", ">", "risk", "", "open", ">", "last fill", "", "disk", ">"))
    for row in rows:
        health = row.health
        orders = str(row.open_orders) + (f" +{row.unknown_orders}?" if row.unknown_orders else "")
        fill = row.last_fill
        table.add_row(
            health.name,
            _styled(health.life.value, "" if health.life in (Life.RUNNING, Life.STOPPED) else "bold red"),
            _age(now_ns, health.heartbeat_ns) if health.life is not Life.STOPPED else "",
            "" if row.risk is None else _risk_word(row.risk),
            "" if row.risk is None else orders,
            "" if fill is None else f"{_minute(fill.ts_event_ns)} {fill.side.value} {_text(fill.qty)} {fill.symbol}",
            _size(health.recordings_bytes),
        )
    yield table
    if any(row.unknown_orders for row in rows):
        yield "?: orders whose outcome is not known"
    yield from (row.problem for row in rows if row.problem)
    yield from (row.health.problem for row in rows if row.health.problem)


def build_detail(detail: Detail, *, now_ns: int) -> Iterator[Any]:
    """Yield what is known of one agent."""
    summary, books = detail.summary, detail.books
    yield from _describe_agent(summary, now_ns)
    if books is None:
        yield summary.problem or "no orders journal: it has not traded"
        return
    snapshot = detail.snapshot
    if books.account is not None:
        yield f"account: {books.account.account_id} ({books.account.mode}), {books.account.url}"
    if snapshot is None:
        yield f"venue: {detail.venue_note}"
    else:
        account = snapshot.account
        blocked = ", trading is blocked" if account.trading_blocked else ""
        yield f"venue: {account.status}{blocked}, cash {account.cash:,.2f}, equity {account.equity:,.2f}"
    yield ""
    yield from _build_positions(detail.comparison.positions, snapshot is not None)
    yield from _build_orders(detail.comparison, snapshot is not None)
    if books.fills:
        table = _table(("last fills (UTC)", "", "symbol", "", "side", "", "qty", ">", "price", ">", "order", ""))
        for fill in books.fills[: -FILLS_SHOWN - 1 : -1]:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(fill.ts_event_ns // SECOND_NS))
            table.add_row(
                at, fill.symbol, fill.side.value, _text(fill.qty), _text(fill.price), short_name(fill.client_order_id)
            )
        yield table
    if snapshot is not None:
        yield _styled("all equal", "green") if detail.comparison.is_equal else _styled("the books differ", "bold red")


def _describe_agent(summary: Summary, now_ns: int) -> Iterator[Any]:
    health = summary.health
    words = [f"agent {health.name}: {health.life.value}"]
    if health.life is Life.DIED:
        words = [f"agent {health.name}: not running: process {health.pid} died without giving its state back"]
    elif health.life is Life.STOPPED:
        words = [f"agent {health.name}: not running: stopped in order"]
    elif health.life is Life.HANGS:
        words = [f"agent {health.name}: hangs: process {health.pid} is there, but its strategy does not return"]
    elif health.pid is not None:
        words.append(f"process {health.pid}" + ("" if health.life is Life.RUNNING else f" on {health.host}"))
    if health.since_ns is not None and health.life is not Life.DIED:
        words.append(f"since {_minute(health.since_ns)} UTC")
    if health.pid is not None:
        beat = "last heartbeat" if health.life is Life.DIED else "heartbeat"
        words.append(f"{beat} {_age(now_ns, health.heartbeat_ns)}" if health.heartbeat_ns else "no heartbeat")
    style = "" if health.life in (Life.RUNNING, Life.STOPPED) else "bold red"
    yield _styled(", ".join(words), style)
    yield f"state directory: {health.path}"
    if health.data is not None:
        first, *others = describe_health(health.data)
        when = "" if health.life is Life.RUNNING else " at its last heartbeat"
        yield f"market data{when}: {first}"
        yield from (_styled(f"  {line}", "yellow") for line in others)
    if summary.risk is not None:
        record = summary.risk
        is_active = record.state is RiskState.ACTIVE
        yield _styled(f"risk: {'active' if is_active else describe_record(record)}", "" if is_active else "bold red")
    if health.strategy is not None:
        kept = health.strategy
        yield f"strategy state: of {kept.strategy}, {_size(kept.bytes)}, saved {_age(now_ns, kept.saved_ns)}"
    if health.problem:
        yield health.problem
    if health.recordings_bytes:
        count = health.recordings_sessions
        yield f"recordings: {_size(health.recordings_bytes)} of {count} session{'' if count == 1 else 's'}"


def _build_positions(rows: Iterable[PositionRow], is_compared: bool) -> Iterator[Any]:
    rows = list(rows)
    if not rows:
        yield "no positions"
        return
    columns: tuple[str, ...] = ("position", "", "ours", ">", "entry", ">")
    table = _table((*columns, "venue", ">", "entry", ">", "", "") if is_compared else columns)
    for row in rows:
        cells: list[Any] = [row.symbol, *_held(row.ours.qty, row.ours.price, row.mark is Mark.FOREIGN)]
        if row.venue is not None:
            cells += [*_held(row.venue.qty, row.venue.price, False), _mark(row.mark)]
        table.add_row(*cells)
    yield table
    yield from (_styled(f"  {row.symbol}: {'; '.join(row.reasons)}", _STYLES[row.mark]) for row in rows if row.reasons)


def _build_orders(comparison: Comparison, is_compared: bool) -> Iterator[Any]:
    rows = list(comparison.orders)
    if not rows:
        yield "no open orders"
    else:
        shown = rows if is_compared else rows[-ORDERS_SHOWN:]
        columns: tuple[str, ...] = ("order", "", "symbol", "", "terms", "", "ours", "")
        table = _table((*columns, "venue", "", "", "") if is_compared else columns)
        for row in shown:
            cells: list[Any] = [_short(row.name), row.symbol, row.terms, row.ours]
            if is_compared:
                cells += [row.venue, _mark(row.mark)]
            table.add_row(*cells)
        yield table
        if len(shown) < len(rows):
            yield f"  and {len(rows) - len(shown)} older ones"
        for row in shown:
            if row.reasons:
                yield _styled(f"  {_short(row.name)}: {'; '.join(row.reasons)}", _STYLES[row.mark])
        if not is_compared:
            yield "  open by the journal; what has ended while the agent was away only the venue knows"
    if comparison.ended:
        words = ", ".join(f"{count} {status}" for status, count in sorted(comparison.ended.items()))
        yield f"  ended at the venue: {words}"


def _table(columns: tuple[str, ...]) -> Table:
    """Return a table with these names and alignments (> is right), one after the other."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name, alignment in zip(columns[::2], columns[1::2], strict=True):
        table.add_column(name, justify="right" if alignment else "left", overflow="fold")
    return table


def _styled(text: str, style: str) -> Any:
    from rich.text import Text

    return Text(text, style=style)


def _mark(mark: Mark) -> Any:
    return _styled(mark.value, _STYLES[mark])


def _held(qty: Decimal, price: Decimal, is_absent: bool) -> tuple[str, str]:
    if is_absent:
        return "", ""
    return _text(qty), f"{price:,.2f}" if qty else ""


def _short(name: str) -> str:
    name = short_name(name)
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"


def _risk_word(record: RiskRecord) -> Any:
    word = record.state.value
    return word if record.state is RiskState.ACTIVE else _styled(word.upper(), "bold red")


def _text(value: Decimal) -> str:
    return encode_decimal(value)


def _minute(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_ns // SECOND_NS))


def _age(now_ns: int, then_ns: int | None) -> str:
    if then_ns is None:
        return ""
    seconds = max(now_ns - then_ns, 0) // SECOND_NS
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def _size(count: int) -> str:
    for length, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B" if count else ""


# For programs


def list_to_json(rows: Iterable[Summary]) -> dict[str, Any]:
    """Return the list of agents as JSON values."""
    return {"agents": [_summary_to_json(row) for row in rows]}


def detail_to_json(detail: Detail) -> dict[str, Any]:
    """Return what is known of one agent as JSON values."""
    books, snapshot, comparison = detail.books, detail.snapshot, detail.comparison
    agent = _summary_to_json(detail.summary) | {"needs_attention": detail.needs_attention}
    content: dict[str, Any] = {"agent": agent, "account": None, "venue": None}
    if books is not None and books.account is not None:
        content["account"] = {
            "id": books.account.account_id, "mode": books.account.mode, "url": books.account.url,
        }  # fmt: skip
    if snapshot is not None:
        content["venue"] = {
            "status": snapshot.account.status,
            "trading_blocked": snapshot.account.trading_blocked,
            "cash": encode_decimal(snapshot.account.cash),
            "equity": encode_decimal(snapshot.account.equity),
        }
    content |= {
        "venue_note": detail.venue_note or None,
        "equal": None if snapshot is None else comparison.is_equal,
        "positions": [_position_to_json(row) for row in comparison.positions],
        "orders": [_order_to_json(row) for row in comparison.orders],
        "ended_at_venue": dict(comparison.ended),
        "last_fills": [_fill_to_json(fill) for fill in (books.fills if books else ())[: -FILLS_SHOWN - 1 : -1]],
    }
    return content


def _summary_to_json(row: Summary) -> dict[str, Any]:
    health, risk = row.health, row.risk
    return {
        "id": health.name,
        "state_dir": str(health.path),
        "state": health.life.value,
        "process": health.pid,
        "host": health.host or None,
        "since": _time(health.since_ns),
        "heartbeat": _time(health.heartbeat_ns),
        "data": None if health.data is None else _data_to_json(health.data),
        "mode": row.mode or None,
        "risk": None
        if risk is None
        else {"state": risk.state.value, "reason": risk.reason, "who": risk.who, "since": _time(risk.at_ns or None)},
        "open_orders": row.open_orders,
        "unknown_orders": row.unknown_orders,
        "positions_held": row.positions,
        "last_fill": None if row.last_fill is None else _fill_to_json(row.last_fill),
        "strategy_state": None
        if health.strategy is None
        else {
            "strategy": health.strategy.strategy,
            "bytes": health.strategy.bytes,
            "saved": _time(health.strategy.saved_ns),
        },
        "recordings_bytes": health.recordings_bytes,
        "problem": row.problem or health.problem or None,
        "needs_attention": row.needs_attention,
    }


def _data_to_json(data: DataHealth) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(data)
    found["market_time"] = _time(found.pop("market_ns") or None)
    found["symbols"] = {each.symbol: msgspec.to_builtins(each.bars) for each in data.symbols}
    return found


def _position_to_json(row: PositionRow) -> dict[str, Any]:
    return {
        "symbol": row.symbol,
        "qty": encode_decimal(row.ours.qty),
        "avg_entry_price": encode_decimal(row.ours.price),
        "venue_qty": None if row.venue is None else encode_decimal(row.venue.qty),
        "venue_avg_entry_price": None if row.venue is None else encode_decimal(row.venue.price),
        "mark": row.mark.value.lower() or None,
        "reasons": list(row.reasons),
    }


def _order_to_json(row: OrderRow) -> dict[str, Any]:
    return {
        "client_order_id": row.name,
        "symbol": row.symbol,
        "terms": row.terms,
        "ours": row.ours or None,
        "venue": row.venue or None,
        "mark": row.mark.value.lower() or None,
        "reasons": list(row.reasons),
    }


def _fill_to_json(fill: Fill) -> dict[str, Any]:
    return {
        "time": encode_time(fill.ts_event_ns),
        "symbol": fill.symbol,
        "side": fill.side.value,
        "qty": encode_decimal(fill.qty),
        "price": encode_decimal(fill.price),
        "client_order_id": fill.client_order_id,
    }


def _time(time_ns: int | None) -> str | None:
    return None if time_ns is None else encode_time(time_ns)
