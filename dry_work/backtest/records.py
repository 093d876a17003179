"""What a strategy saw and what a backtest left behind, written down.

A run is watched through a leaf subclass of its strategy class whose hooks write down what they are called with and then
call the original; nothing else of the run is touched. Afterwards orders, trades, broker, analyzers, writers, and the
lines of strategies, indicators, observers and data are read. Records are hashed in blocks, so that a run of a million
bars needs no more memory than one block.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import math
import re
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import backtrader as bt
import numpy as np

BLOCK_RECORDS = 4096
BLOCK_VALUES = 65_536

BAR_CALLS = ("start", "prenext", "nextstart", "next", "prenext_open", "nextstart_open", "next_open", "stop")
_BARS = frozenset({"prenext", "nextstart", "next"})
_ORDER = (
    "ordtype", "status", "size", "price", "pricelimit", "plimit", "exectype", "valid", "tradeid", "trailamount",
    "trailpercent", "transmit", "simulated", "triggered", "dteos", "position", "plen", "pannotated", "_active",
    "_limitoffset",
)  # fmt: skip
_ORDER_DATA = (
    "dt", "size", "price", "pricelimit", "plimit", "remsize", "pclose", "trailamount", "trailpercent", "value", "comm",
    "margin", "pnl", "psize", "pprice", "p1", "p2",
)  # fmt: skip
_ATOMS = frozenset({type(None), bool, int, float, str})
_NUMBERED = re.compile(r"\b(LinesCoupler)_\d+")  # Backtrader numbers these classes through all runs of the process
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")

Build = Callable[[type[Any]], Any]


class Section:
    """Records of one kind, in order, as one digest for each block."""

    __slots__ = ("_open", "block_size", "count", "digests", "kept", "wanted")

    def __init__(self, wanted: Callable[[int], bool], block_size: int = BLOCK_RECORDS) -> None:
        self.block_size = block_size
        self.digests: list[bytes] = []
        self.kept: dict[int, list[Any]] = {}
        self.count = 0
        self.wanted = wanted
        self._open: list[Any] = []

    def append(self, record: Any) -> None:
        self._open.append(record)
        if len(self._open) == self.block_size:
            self.close()

    def close(self) -> None:
        """Close the open block, however short it is."""
        if self._open:
            self._add(repr(self._open).encode(), self._open)
            self._open = []

    def append_values(self, values: Any) -> None:
        """Add the values of a line: an array of floats, or any iterable of what a saved buffer holds."""
        if not hasattr(values, "itemsize"):
            for value in values:
                self.append(_plain(value))
            self.close()
            return
        for start in range(0, len(values), BLOCK_VALUES):
            piece = np.array(values[start : start + BLOCK_VALUES], dtype=np.float64)
            piece[np.isnan(piece)] = math.nan  # one pattern for all
            self._add(piece.tobytes(), piece)
        self.block_size = BLOCK_VALUES

    def _add(self, content: bytes, records: Any) -> None:
        if self.wanted(len(self.digests)):
            self.kept[len(self.digests)] = list(records) if isinstance(records, list) else records.tolist()
        self.digests.append(hashlib.blake2b(content, digest_size=16).digest())
        self.count += len(records)


@dataclass(slots=True)
class _Layout:
    """Names of what the record of a bar holds, in its order."""

    strategy: str
    datas: list[str] = field(default_factory=list)
    data_lines: list[list[str]] = field(default_factory=list)
    indicators: list[str] = field(default_factory=list)
    indicator_lines: list[list[str]] = field(default_factory=list)

    def name(self, path: tuple[Any, ...]) -> str:
        match path:
            case (0,):
                return "cash"
            case (1,):
                return "value"
            case (2, i, j):
                return f"{['length', *self.data_lines[i]][j]} of {self.datas[i]}"
            case (3, i, j):
                return f"{('size', 'price')[j]} of the position in {self.datas[i]}"
            case (4, i, j):
                return f"{['length', *self.indicator_lines[i]][j]} of {self.indicators[i]}"
            case _:
                return "what is to be seen"


class Records:
    """Everything one run showed to its strategies and left behind.

    Args:
        engine: name of the run, for sentences.
        keep: which blocks stay in memory in full: None for none, 'all', or one as (section, block).
    """

    def __init__(self, engine: str, keep: str | tuple[str, int] | None = None) -> None:
        self.engine = engine
        self.fallback = ""
        self.raised = ""
        self.sections: dict[str, Section] = {}
        self.counts: Counter[str] = Counter()
        self.layouts: list[_Layout] = []
        self._keep = keep
        self._refs: set[int] = set()

    def section(self, name: str, block_size: int = BLOCK_RECORDS) -> Section:
        """Return a section, made when it is new."""
        if name not in self.sections:
            keep = self._keep
            self.sections[name] = Section(lambda block: keep in ("all", (name, block)), block_size)
        return self.sections[name]

    def add_leaves(self, name: str, value: Any) -> None:
        """Write down a nested value, each scalar with its path."""
        section = self.section(name)
        for leaf in _leaves(value, ()):
            section.append(leaf)
        section.close()

    def order_fields(self, order: Any) -> dict[str, Any]:
        """Return everything an order shows."""
        fields = {name: _plain(getattr(order, name, None)) for name in _ORDER}
        fields["ref"] = order.ref
        fields["data"] = _data_name(order.data)
        fields["parent"] = getattr(order.parent, "ref", None)
        fields["oco"] = getattr(order.oco, "ref", None)
        fields["commission_scheme"] = type(order.comminfo).__name__
        fields["info"] = _plain(order.info)
        for name in ("created", "executed"):
            held = getattr(order, name)
            fields[name] = {each: _plain(getattr(held, each)) for each in _ORDER_DATA}
        fields["executed"]["bits"] = [_plain(vars(bit)) for bit in order.executed.exbits]
        return fields

    def count_order(self, order: Any) -> None:
        """Count an order that a strategy is told of, once, and its new fills."""
        self.counts["fills"] += len(order.executed.getpending())
        self._refs.add(order.ref)
        self.counts["orders"] = len(self._refs)

    def trade_fields(self, trade: Any) -> dict[str, Any]:
        """Return everything a trade shows."""
        fields = {name: value for name, value in sorted(vars(trade).items()) if name not in ("data", "ref", "history")}
        fields = {name: _plain(value) for name, value in fields.items()}
        fields["ref"] = trade.ref
        fields["data"] = _data_name(trade.data)
        fields["history"] = [self._history_fields(entry) for entry in trade.history]
        return fields

    def _history_fields(self, entry: Any) -> dict[str, Any]:
        event = {key: value for key, value in entry.event.items() if key != "order"}
        order = getattr(entry.event, "order", None)
        return {
            "status": _plain(dict(entry.status)),
            "event": _plain(event),
            "order": getattr(order, "ref", None),
        }


class _Watch:
    """Reads what one strategy can see. Asks the broker for nothing that it would answer by changing itself."""

    def __init__(self, strategy: Any, records: Records) -> None:
        self._strategy = strategy
        self._records = records
        self._number = len(records.layouts)
        self._length = -1
        self._datas = [(data, list(data.lines)) for data in strategy.datas]
        self._indicators = [(each, list(each.lines)) for each in strategy.getindicators()]
        self._calls = records.section("calls", max(64, BLOCK_RECORDS // len(self._datas)))
        layout = _Layout(type(strategy).__name__)
        layout.datas = [_data_name(data) for data in strategy.datas]
        layout.data_lines = [_aliases(data) for data in strategy.datas]
        layout.indicators = [f"indicator {i} {_class_name(each)}" for i, (each, _) in enumerate(self._indicators)]
        layout.indicator_lines = [_aliases(each) for each, _ in self._indicators]
        records.layouts.append(layout)

    def see_bar(self, call: str) -> None:
        strategy = self._strategy
        broker = strategy.broker
        positions = getattr(broker, "positions", None)
        held = [
            # A plain look-up would enter the data into the broker's positions.
            broker.getposition(data) if positions is None else positions.get(data)
            for data, _ in self._datas
        ]
        values = (
            _plain(broker.getcash()),
            _plain(broker.getvalue()),
            [_read(data, lines) for data, lines in self._datas],
            [(0, 0.0) if each is None else (each.size, each.price) for each in held],
            [_read(each, lines) for each, lines in self._indicators],
        )
        self.see(call, values)
        if call in _BARS and len(strategy) != self._length:
            self._length = len(strategy)
            self._records.counts["bars"] += 1

    def see(self, call: str, values: Any) -> None:
        strategy = self._strategy
        length = len(strategy)
        self._calls.append((call, self._number, length, strategy.lines.datetime[0] if length else None, values))

    def see_order(self, order: Any) -> None:
        self.see("notify_order", self._records.order_fields(order))
        self._records.count_order(order)

    def see_trade(self, trade: Any) -> None:
        self.see("notify_trade", self._records.trade_fields(trade))

    def see_cash(self, cash: Any, value: Any) -> None:
        self.see("notify_cashvalue", {"cash": cash, "value": value})
        self._records.counts["cash_values"] += 1

    def see_fund(self, cash: Any, value: Any, fund_value: Any, shares: Any) -> None:
        self.see("notify_fund", {"cash": cash, "value": value, "fundvalue": fund_value, "shares": shares})

    def see_timer(self, timer: Any, when: Any, *args: Any, **kwargs: Any) -> None:
        values = {"timer": timer.p.tid, "when": when, "args": args, "kwargs": kwargs}
        self.see("notify_timer", _plain(values))

    def see_store(self, message: Any, *args: Any, **kwargs: Any) -> None:
        self.see("notify_store", _plain({"message": message, "args": args, "kwargs": kwargs}))

    def see_data(self, data: Any, status: Any, *args: Any, **kwargs: Any) -> None:
        values = {"data": data, "status": status, "args": args, "kwargs": kwargs}
        self.see("notify_data", _plain(values))


_NOTIFICATIONS: dict[str, Callable[..., None]] = {
    "notify_order": _Watch.see_order, "notify_trade": _Watch.see_trade, "notify_cashvalue": _Watch.see_cash,
    "notify_fund": _Watch.see_fund, "notify_timer": _Watch.see_timer, "notify_store": _Watch.see_store,
    "notify_data": _Watch.see_data,
}  # fmt: skip


def recorded(strategy_class: type[Any]) -> type[Any]:
    """Return a leaf subclass that writes each call down in `cerebro.dry_work_records` and then makes it."""
    known: type[Any] | None = strategy_class.__dict__.get("_dry_work_recorded")
    if known is not None:
        return known
    metaclass: Any = type(strategy_class)
    leaf: Any = metaclass(strategy_class.__name__, (strategy_class,), {"__module__": strategy_class.__module__})
    leaf.__qualname__ = strategy_class.__qualname__
    # Set afterwards: metaclasses rename some hooks of a new class's namespace (`SignalStrategy` its `next`).
    for name in BAR_CALLS:
        setattr(leaf, name, _bar_hook(name, getattr(strategy_class, name)))
    for name, see in _NOTIFICATIONS.items():
        setattr(leaf, name, _notification_hook(see, getattr(strategy_class, name)))
    known = strategy_class._dry_work_recorded = leaf
    return known


def _bar_hook(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def hook(self: Any) -> Any:
        _watch_of(self).see_bar(name)
        return original(self)

    hook.__name__ = name
    return hook


def _notification_hook(see: Callable[..., None], original: Callable[..., Any]) -> Callable[..., Any]:
    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        see(_watch_of(self), *args, **kwargs)
        return original(self, *args, **kwargs)

    hook.__name__ = original.__name__
    return hook


def _watch_of(strategy: Any) -> _Watch:
    watch: _Watch | None = strategy.__dict__.get("_dry_work_watch")
    if watch is None:
        watch = strategy._dry_work_watch = _Watch(strategy, strategy.cerebro.dry_work_records)
    return watch


def run_once(cerebro: Any) -> Any:
    """Run a Cerebro as scripts do."""
    return cerebro.run()


def record(
    build: Build,
    engine: type[Any],
    *,
    run: Callable[[Any], Any] = run_once,
    watched: bool = True,
    keep: str | tuple[str, int] | None = None,
) -> Records:
    """Run a backtest once and return its records. What user code raises is a record too. One at a time in a process.

    Args:
        build: makes a complete Cerebro of the class it is given, from fresh feeds.
        run: runs it and returns what `Cerebro.run` returned.
        watched: False leaves the strategy class alone, so that only what is left behind is written down.
        keep: see `Records`.
    """
    records = Records(engine.__name__ if watched else f"{engine.__name__} (unwatched)", keep)
    cerebro = build(engine)
    if watched:
        cerebro.dry_work_records = records
        _put_leaves(cerebro)
    results: Any = []
    try:
        with _fresh_numbers():
            results = run(cerebro)
    except Exception as error:
        records.raised = f"{type(error).__name__}: {_stable(str(error))}"
    records.fallback = str(getattr(cerebro, "fallback", ""))
    if "calls" in records.sections:
        records.sections["calls"].close()
        records.counts["calls"] = records.sections["calls"].count
    records.add_leaves("the end of the run", {"raised": records.raised})
    _collect_broker(records, cerebro.broker)
    if not records.raised:
        _collect_results(records, cerebro, results)
    return records


@contextmanager
def _fresh_numbers() -> Iterator[None]:
    """Let orders and trades count from 1, as in a new process, since a strategy may look at the numbers."""
    counters = [(each, each.refbasis) for each in (bt.order.OrderBase, bt.Trade)]
    for each, _ in counters:
        each.refbasis = itertools.count(1)
    try:
        yield
    finally:
        for each, before in counters:
            each.refbasis = before


def _put_leaves(cerebro: Any) -> None:
    if cerebro.signals:
        signal_class, args, kwargs = cerebro._signal_strat
        if signal_class is not None or not cerebro.strats:
            cerebro._signal_strat = (recorded(signal_class or bt.SignalStrategy), args or (), kwargs or {})
    elif not cerebro.strats:
        cerebro.addstrategy(bt.Strategy)
    if not cerebro._dooptimize:
        cerebro.strats[:] = [[(recorded(each[0]), *each[1:]) for each in group] for group in cerebro.strats]
    elif cerebro.p.maxcpus == 1:  # classes made here could not travel to another process
        cerebro.strats[:] = [((recorded(each[0]), *each[1:]) for each in group) for group in cerebro.strats]


def _collect_broker(records: Records, broker: Any) -> None:
    section = records.section("orders")
    for order in getattr(broker, "orders", ()):
        section.append(records.order_fields(order))
    section.close()
    names = ("fundvalue", "fundshares", "startingcash")
    values = {name: getattr(broker, name, None) for name in names}
    values["cash"], values["value"] = broker.getcash(), broker.getvalue()
    values["leverage"] = broker.get_leverage() if hasattr(broker, "get_leverage") else None
    positions = getattr(broker, "positions", {})
    values["positions"] = {_data_name(data): _plain(vars(position)) for data, position in positions.items()}
    pending = [each for each in getattr(broker, "pending", ()) if each is not None]
    values["pending"] = [order.ref for order in pending]
    records.add_leaves("broker", values)


def _collect_results(records: Records, cerebro: Any, results: Any) -> None:
    shapes: dict[str, Any] = {}
    for number, each in enumerate(_flat(results)):
        _collect_analyzers(records, f"strategy {number}", each)
        if hasattr(each, "stats"):
            _collect_strategy(records, number, each, shapes)
        else:  # what an optimisation sends back
            records.add_leaves(f"strategy {number} parameters", dict(each.p._getkwargs()))
    for data in cerebro.datas:
        _collect_lines(records, f"data {_data_name(data)}", data, "data_values", shapes)
    records.add_leaves("lengths of lines", shapes)
    for number, writer in enumerate(getattr(cerebro, "runwriters", ())):
        if hasattr(writer.out, "getvalue"):
            section = records.section(f"writer {number}")
            for line in _stable(writer.out.getvalue()).splitlines():
                section.append(line)
            section.close()


def _collect_analyzers(records: Records, owner: str, result: Any) -> None:
    named = [(f"{owner} analyzer {name}", each) for name, each in result.analyzers.getitems()]
    slaves = getattr(result, "_slave_analyzers", ())
    named += [(f"{owner} analyzer {i} of an observer, {type(each).__name__}", each) for i, each in enumerate(slaves)]
    for name, analyzer in named:
        try:
            analysis = analyzer.get_analysis()
        except Exception as error:
            analysis = {"raised": type(error).__name__, "text": _stable(str(error))}
        records.add_leaves(name, analysis)
        records.counts["analyzers"] += 1
        records.counts["analyzer_values"] += records.section(name).count


def _collect_strategy(records: Records, number: int, strategy: Any, shapes: dict[str, Any]) -> None:
    owner = f"strategy {number}"
    section = records.section(f"{owner} trades")
    for by_id in strategy._trades.values():
        for trades in by_id.values():
            for trade in trades:
                section.append(records.trade_fields(trade))
    section.close()
    records.counts["trades"] += section.count
    _collect_lines(records, owner, strategy, "data_values", shapes)
    for i, observer in enumerate(strategy.getobservers()):
        _collect_lines(records, f"{owner} observer {i} {_class_name(observer)}", observer, "observer_values", shapes)
    _collect_indicators(records, owner, strategy, shapes)


def _collect_indicators(records: Records, owner: str, parent: Any, shapes: dict[str, Any]) -> None:
    for i, each in enumerate(parent.getindicators()):
        name = f"{owner} indicator {i} {_class_name(each)}"
        _collect_lines(records, name, each, "indicator_values", shapes)
        if hasattr(each, "_lineiterators"):
            _collect_indicators(records, name, each, shapes)


def _collect_lines(records: Records, owner: str, holder: Any, count: str, shapes: dict[str, Any]) -> None:
    shape = shapes[owner] = {"minimum period": holder._minperiod}
    for alias, line in zip(_aliases(holder), holder.lines, strict=False):
        shape[alias] = {"length": len(line), "buffer": line.buflen(), "index": line.idx}
        section = records.section(f"{owner} line {alias}")
        section.append_values(line.array)
        records.counts[count] += section.count


def _read(holder: Any, lines: list[Any]) -> list[Any]:
    length = len(holder)
    if not length:
        return [0]
    try:
        return [length, *[_plain_number(line[0]) for line in lines]]
    except IndexError:
        return [length, "not to be read"]


def _plain_number(value: Any) -> Any:
    return value if type(value) is float else _plain(value)


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value as one that `repr` writes in full and without addresses."""
    if type(value) in _ATOMS or isinstance(value, (int, float, str, bytes, np.generic, dt.date, dt.time, dt.timedelta)):
        return value
    if isinstance(value, bt.feed.AbstractDataBase):
        return _data_name(value)
    if depth > 16:
        return type(value).__name__
    if isinstance(value, Mapping):
        return {_key(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_plain(each, depth + 1)) for each in value)
    if isinstance(value, (type, np.dtype)) or callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    if isinstance(value, np.ndarray):
        return ["ndarray", str(value.dtype), value.tolist()]
    if isinstance(value, (bt.lineroot.LineRoot, bt.order.OrderBase, bt.Trade)):
        return type(value).__name__
    if isinstance(value, (list, tuple, deque, array)):
        return [_plain(each, depth + 1) for each in value]
    return [type(value).__name__, _plain(getattr(value, "__dict__", {}), depth + 1)]


def _key(key: Any) -> Any:
    plain = _plain(key)
    return tuple(plain) if isinstance(plain, list) else plain


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    value = _plain(value) if not path else value
    entries: Iterable[tuple[Any, Any]]
    if isinstance(value, dict) and value:
        entries = value.items()
    elif isinstance(value, (list, tuple)) and value:
        entries = enumerate(value)
    else:
        yield path, value
        return
    for key, each in entries:
        yield from _leaves(each, (*path, key))


def _flat(results: Any) -> Iterator[Any]:
    for each in results or ():
        if isinstance(each, list):
            yield from _flat(each)
        else:
            yield each


def _aliases(holder: Any) -> list[str]:
    count = len(list(holder.lines))
    if not hasattr(holder.lines, "getlinealiases"):
        return [f"line {i}" for i in range(count)]
    aliases = list(holder.lines.getlinealiases())
    return [*aliases, *(f"line {i}" for i in range(len(aliases), count))]


def _class_name(holder: Any) -> str:
    return _stable(type(holder).__name__)


def _data_name(data: Any) -> str:
    env = getattr(data, "_env", None)
    number = next((i for i, each in enumerate(getattr(env, "datas", ())) if each is data), None)
    return f"{data._name or 'data'}#{number}" if number is not None else str(data._name or type(data).__name__)


def _stable(text: str) -> str:
    return _ADDRESS.sub("0x", _NUMBERED.sub(r"\1", text))
