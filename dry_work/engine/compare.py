"""What is different between two sessions, or between a session and a backtest of its recording, and why. Pure but for
the backtest.

Orders are matched symbol by symbol, by the time of their decision. Each difference gets a cause: a late or revised bar,
one that is missing, latency, a part that was not filled, a rejection, another price, fees; or that it follows from one
before it.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

import msgspec
import numpy as np

from dry_work.backtest.run import BacktestSettings, run_backtest
from dry_work.clock import MINUTE_NS
from dry_work.engine.agents import Agent
from dry_work.engine.replay import restore_settings
from dry_work.engine.result import RunResult
from dry_work.errors import ConfigError
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Bar
from dry_work.market.symbols import contract_size
from dry_work.recording.session_trace import BarKey, FillTrace, OrderTrace, SessionTrace
from dry_work.settings import parse_moment

Cause = Literal[
    "late bar", "revised bar", "missing bar", "latency", "partial", "rejection", "price", "fee", "size", "follows",
    "decision",
]  # fmt: skip
_NEAR_BARS = 30  # an order that is decided so many bars later may be the same one
_EQUAL = 1e-9


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between A and B."""

    time_ns: int
    symbol: str
    cause: Cause
    a: str
    b: str
    why: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What two sessions have in common, and what not."""

    a: str
    b: str
    orders: tuple[int, int]
    same_orders: int
    values: tuple[float | None, float | None]  # of the account, at the end
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    def count_causes(self) -> dict[str, int]:
        """Return how many differences each cause has made."""
        counts: dict[str, int] = {}
        for each in self.differences:
            counts[each.cause] = counts.get(each.cause, 0) + 1
        return counts


def compare_sessions(a: SessionTrace, b: SessionTrace) -> Comparison:
    """Return what is different in orders, fills and money."""
    found: list[Difference] = []
    same = 0
    causes = _BarCauses(a, b)
    symbols = sorted({order.symbol for order in (*a.orders, *b.orders)})
    for symbol in symbols:
        follows = ""  # the first difference, from which later ones may follow
        for mine, theirs in _pair_up(_orders_of(a, symbol), _orders_of(b, symbol)):
            differences = list(_compare_orders(symbol, mine, theirs, causes, follows))
            if not differences:
                same += 1
            elif not follows:
                follows = f"{differences[0].cause} at {_minute(differences[0].time_ns)}"
            found += differences
    found += _compare_fees(a, b)
    found.sort(key=lambda each: (each.time_ns, each.symbol))
    return Comparison(
        a=a.name,
        b=b.name,
        orders=(len(a.orders), len(b.orders)),
        same_orders=same,
        values=(a.end_value, b.end_value),
        differences=tuple(found),
        notes=tuple(f"{trace.name}: {trace.problem}" for trace in (a, b) if trace.problem),
    )


def _orders_of(trace: SessionTrace, symbol: str) -> list[OrderTrace]:
    return [order for order in trace.orders if order.symbol == symbol]


def _pair_up(ours: list[OrderTrace], theirs: list[OrderTrace]) -> Iterator[tuple[OrderTrace | None, OrderTrace | None]]:
    """Yield pairs of orders that are the same decision, and those without a counterpart, in the order of time."""

    def key(order: OrderTrace) -> tuple[int, str]:
        return order.decided_ns, order.side

    matcher = difflib.SequenceMatcher(None, list(map(key, ours)), list(map(key, theirs)), autojunk=False)
    for _, low, high, start, end in matcher.get_opcodes():
        if high - low == end - start and list(map(key, ours[low:high])) == list(map(key, theirs[start:end])):
            yield from zip(ours[low:high], theirs[start:end], strict=True)
            continue
        left = list(theirs[start:end])
        for order in ours[low:high]:
            near = next(
                (
                    other
                    for other in left
                    if other.side == order.side and abs(other.decided_ns - order.decided_ns) <= _NEAR_BARS * MINUTE_NS
                ),
                None,
            )
            if near is not None:
                left.remove(near)
            yield order, near
        for other in left:
            yield None, other


def _compare_orders(
    symbol: str, mine: OrderTrace | None, theirs: OrderTrace | None, causes: _BarCauses, follows: str
) -> Iterator[Difference]:
    if mine is None or theirs is None:
        order = mine or theirs
        assert order is not None
        yield from _explain_decision(symbol, mine, theirs, order.decided_ns, causes, follows)
        return
    at_ns = min(mine.decided_ns, theirs.decided_ns)
    if mine.decided_ns != theirs.decided_ns:
        yield from _explain_decision(symbol, mine, theirs, at_ns, causes, follows)
    elif not _is_near(mine.qty, theirs.qty):
        cause: Cause = "follows" if follows else "size"
        why = f"follows from the {follows}" if follows else "the strategies asked for another quantity"
        yield _difference(at_ns, symbol, cause, mine, theirs, why)
    refused = ("rejected", "margin")
    if (mine.status in refused) != (theirs.status in refused):
        bad = mine if mine.status in refused else theirs
        yield _difference(at_ns, symbol, "rejection", mine, theirs, bad.reason or f"the order was {bad.status}")
        return
    if not _is_near(mine.filled, theirs.filled):
        if _is_near(mine.qty, theirs.qty):
            less = mine if mine.filled < theirs.filled else theirs
            why = f"{less.filled:g} of {less.qty or 0:g} were filled, then the order was {less.status}"
            yield _difference(at_ns, symbol, "partial", mine, theirs, why)
        return
    if mine.fills and not _is_near(mine.price, theirs.price):
        delay_ns = mine.filled_ns - theirs.filled_ns
        if abs(delay_ns) >= MINUTE_NS:
            later = "A" if delay_ns > 0 else "B"
            why = f"filled {abs(delay_ns) / 1e9:,.0f} s later in {later}"
            yield _difference(at_ns, symbol, "latency", mine, theirs, why)
        else:
            bar = causes.find(symbol, at_ns, filled=True)
            why = f"another price for the same order{f'; {bar[1]}' if bar is not None else ''}"
            yield _difference(at_ns, symbol, bar[0] if bar is not None else "price", mine, theirs, why)
    if abs(mine.fees - theirs.fees) > _EQUAL:
        yield _difference(at_ns, symbol, "fee", mine, theirs, f"fees {mine.fees:g} and {theirs.fees:g}")


def _explain_decision(
    symbol: str,
    mine: OrderTrace | None,
    theirs: OrderTrace | None,
    at_ns: int,
    causes: _BarCauses,
    follows: str,
) -> Iterator[Difference]:
    bar = causes.find(symbol, at_ns)
    if bar is not None:
        yield _difference(at_ns, symbol, bar[0], mine, theirs, bar[1])
    elif follows:
        yield _difference(at_ns, symbol, "follows", mine, theirs, f"follows from the {follows}")
    else:
        why = "the bars were the same: the strategy or its parameters decided otherwise"
        yield _difference(at_ns, symbol, "decision", mine, theirs, why)


class _BarCauses:
    """Bars that the two had differently, by symbol."""

    def __init__(self, a: SessionTrace, b: SessionTrace) -> None:
        self._found: dict[str, list[tuple[int, Cause, str]]] = {}
        self._used: set[tuple[str, int]] = set()
        first = max((min((key[1] for key in trace.bars), default=0) for trace in (a, b)), default=0)
        for word, one, other in (("A", a, b), ("B", b, a)):
            late, revised = one.late, one.revised
            for key, at_ns in late.items():
                other_late = other.late.get(key)
                if other_late != at_ns:
                    behind = (at_ns - one.bars[key].end_ns) / 1e9
                    self._add(key, at_ns, "late bar", f"bar {_minute(key[1])} came {behind:,.0f} s late in {word}")
            for key, (had, final) in revised.items():
                if key in other.bars and _differs(other.bars[key], had):
                    change = f"close {had.close:g} → {final.close:g}"
                    text = f"bar {_minute(key[1])} was corrected after {word} had it: {change}"
                    self._add(key, one.bars[key].end_ns, "revised bar", text)
            for key, bar in one.bars.items():
                if key not in other.bars and key not in other.warmup and key[1] >= first:
                    missing = "B" if word == "A" else "A"
                    self._add(key, bar.end_ns, "missing bar", f"bar {_minute(key[1])} did not reach {missing}")
                    continue
                theirs = other.bars.get(key)
                if word == "B" or theirs is None or key in revised or key in other.revised:
                    continue
                if _differs(bar, theirs):
                    text = f"bar {_minute(key[1])} has close {bar.close:g} in A and {theirs.close:g} in B"
                    self._add(key, bar.end_ns, "revised bar", text)
        for entries in self._found.values():
            entries.sort()

    def _add(self, key: BarKey, at_ns: int, cause: Cause, text: str) -> None:
        self._found.setdefault(key[0], []).append((at_ns, cause, text))

    def find(self, symbol: str, at_ns: int, *, filled: bool = False) -> tuple[Cause, str] | None:
        """Return the newest such bar up to a time, of the symbol itself before others.

        Args:
            filled: up to the bar that filled an order of that time.
        """
        up_to_ns = at_ns + MINUTE_NS if filled else at_ns
        for symbols in ((symbol,), tuple(self._found)):
            entries = [entry for each in symbols for entry in self._found.get(each, ()) if entry[0] <= up_to_ns]
            if entries:
                _, cause, text = max(entries)
                return cause, text
            if filled:
                break
        return None


def _differs(one: Bar, other: Bar) -> bool:
    return any(getattr(one, name) != getattr(other, name) for name in ("open", "high", "low", "close", "volume"))


def _compare_fees(a: SessionTrace, b: SessionTrace) -> Iterator[Difference]:
    """Yield what the venue took in coins or money beside the fills."""
    fees = [_measure_fees(trace) for trace in (a, b)]
    at_ns = max([order.filled_ns for order in (*a.orders, *b.orders)], default=0)
    for symbol in sorted(fees[0].keys() | fees[1].keys()):
        one, other = fees[0].get(symbol, 0.0), fees[1].get(symbol, 0.0)
        if abs(one - other) > 1e-6:
            yield Difference(
                time_ns=at_ns,
                symbol=symbol,
                cause="fee",
                a=f"{one:g} taken",
                b=f"{other:g} taken",
                why="the venue took it beside the fills" + (" (in coins)" if symbol != "cash" else ""),
            )


def _measure_fees(trace: SessionTrace) -> dict[str, float]:
    if trace.books is None or trace.start_positions:
        return {}
    bought: dict[str, float] = {}
    cash = float(trace.start_cash)
    for order in trace.orders:
        sign = 1.0 if order.side == "buy" else -1.0
        for fill in order.fills:
            key = order.symbol.replace("/", "")
            bought[key] = bought.get(key, 0.0) + sign * fill.qty
            cash -= sign * fill.qty * fill.price * contract_size(order.symbol)
    held = {position.symbol: float(position.qty) for position in trace.books.positions}
    found = {key: qty - held.get(key, 0.0) for key, qty in bought.items()}
    found["cash"] = cash - float(trace.books.cash)
    return {key: value for key, value in found.items() if abs(value) > 1e-6}


def _difference(
    at_ns: int, symbol: str, cause: Cause, mine: OrderTrace | None, theirs: OrderTrace | None, why: str
) -> Difference:
    return Difference(
        time_ns=at_ns, symbol=symbol, cause=cause, a=describe_order(mine), b=describe_order(theirs), why=why
    )


def describe_order(order: OrderTrace | None) -> str:
    """Return an order and what became of it in a line."""
    if order is None:
        return "no order"
    size = f"{order.qty:g}" if order.qty is not None else "by value"
    prices = "".join(
        f" {word} {price:g}"
        for word, price in (("limit", order.limit_price), ("stop", order.stop_price))
        if price is not None
    )
    price = order.price
    what = f"{order.status}" + (f", {order.filled:g} at {price:g}" if price is not None else "")
    return f"{_minute(order.decided_ns)} {order.side} {size} {order.kind}{prices}: {what}".replace("  ", " ")


def _is_near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= _EQUAL * max(1.0, abs(one))


def _minute(time_ns: int) -> str:
    return str(np.datetime64(time_ns, "ns"))[:16].replace("T", " ")


# A backtest of a session's recording


def backtest_session(trace: SessionTrace, agent: Agent) -> SessionTrace:
    """Return what a backtest with the bars of a session does: as the venue said them last, none of them late.

    Raises:
        ConfigError: the session has no bars, or they are not a minute long.
        StrategyError: the strategy raised.
    """
    facts = trace.facts
    assert facts is not None
    settings = restore_settings(facts)
    bars = {**trace.warmup, **trace.bars}
    bars.update({key: bar for key, bar in trace.final.items() if key in trace.bars})
    if not trace.bars:
        raise ConfigError(f"session {trace.name} has no bars: there is nothing to test on")
    missing = [symbol for symbol in settings.symbols if not any(key[0] == symbol for key in trace.bars)]
    symbols = tuple(symbol for symbol in settings.symbols if symbol not in missing)
    recording = build_recording(symbols, bars.values())
    start_ns = min(key[1] for key in trace.bars)
    warmup = max((sum(key[0] == symbol for key in trace.warmup) for symbol in symbols), default=0)
    backtest = BacktestSettings(
        symbols=symbols,
        agent=agent.spec,
        params={},
        cash=trace.start_cash,
        tz=settings.tz,
        timeframe=settings.timeframe if settings.timeframe.text != "1m" else None,
        resample=settings.resample,
        extra_fields=settings.extra_fields,
        warmup=warmup,
        forward_prenext=settings.forward_prenext,
        start_ns=start_ns if warmup else None,
    )
    result = run_backtest(backtest, recording, agent)
    found = trace_result(result, name=f"backtest of {trace.name}")
    _date_by_bars(found.orders, bars.values())
    found.bars = {key: bars[key] for key in trace.bars}
    found.slice_of = {key: bar.end_ns for key, bar in found.bars.items()}
    found.final = dict(found.bars)
    found.start_cash = trace.start_cash
    if missing:
        found.problem = f"left out, since they had no bars: {', '.join(missing)}"
    if trace.start_positions:
        found.problem = "; ".join(filter(None, [found.problem, "it begins without the positions of the session"]))
    return found


def _date_by_bars(orders: Iterable[OrderTrace], bars: Iterable[Bar]) -> None:
    """Date orders as a session's are: by the newest bar that their symbol had when they were placed."""
    ends: dict[str, list[int]] = {}
    for bar in bars:
        ends.setdefault(bar.symbol, []).append(bar.end_ns)
    for held in ends.values():
        held.sort()
    for order in orders:
        known = ends.get(order.symbol)
        if known:
            order.decided_ns = known[max(0, bisect.bisect_right(known, order.decided_ns) - 1)]


def build_recording(symbols: Iterable[str], bars: Iterable[Bar]) -> Recording:
    """Return bars as a recording.

    Raises:
        ConfigError: their lengths differ.
    """
    by_symbol: dict[str, list[Bar]] = {symbol: [] for symbol in symbols}
    lengths = set()
    for bar in bars:
        if bar.symbol in by_symbol:
            by_symbol[bar.symbol].append(bar)
            lengths.add(bar.length_ns)
    if len(lengths) > 1:
        raise ConfigError(f"the session's bars are of {len(lengths)} lengths; a backtest takes one")
    columns: dict[str, Mapping[str, Any]] = {}
    for symbol, found in by_symbol.items():
        found.sort(key=lambda bar: bar.ts_event_ns)
        extras = sorted({name for bar in found for name in bar.extra})
        columns[symbol] = {
            "ts_event_ns": np.array([bar.ts_event_ns for bar in found], dtype=np.int64),
            **{
                name: np.array([getattr(bar, name) for bar in found], dtype=np.float64)
                for name in ("open", "high", "low", "close", "volume")
            },
            **{name: np.array([bar.extra.get(name, np.nan) for bar in found], dtype=np.float64) for name in extras},
        }
    return Recording(columns, length_ns=lengths.pop() if lengths else MINUTE_NS)


def trace_result(result: RunResult, *, name: str) -> SessionTrace:
    """Return orders and fills of a backtest in the form of a session's."""
    trace = SessionTrace(name=name, start_cash=Decimal(repr(result.equity.start)))
    by_name: dict[str, OrderTrace] = {}
    for row in result.orders:
        order = OrderTrace(
            name=str(row["client_order_id"]),
            symbol=str(row["symbol"]),
            side=str(row["side"]),
            kind=str(row["type"]),
            qty=row["qty"],
            limit_price=row["limit_price"],
            stop_price=row["stop_price"],
            decided_ns=parse_moment(str(row["submitted_at"]), name="submitted_at"),
            status=str(row["status"]),
        )
        by_name[order.name] = order
        trace.orders.append(order)
    for row in result.fills:
        found = by_name.get(str(row["client_order_id"]))
        if found is not None:
            at_ns = parse_moment(str(row["time"]), name="time")
            found.fills.append(FillTrace(at_ns, float(row["qty"]), float(row["price"])))
            found.fees += float(row.get("commission") or 0.0)
    trace.start_value, trace.end_value = result.equity.start, result.equity.end
    return trace
