"""What a strategy saw at one moment of a replay: positions, indicators, open orders, the inputs. Engine thread only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
from backtrader.lineiterator import LineIterator

from dry_work.broker.flight import BooksView
from dry_work.engine.replay_flight import ReplayFlight, describe_decision
from dry_work.market.messages import Bar, Slice


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One moment."""

    time_ns: int  # end of the last slice
    value: float
    books: BooksView
    indicators: tuple[tuple[str, float | None], ...]  # name and newest value, None where there is none
    bars: tuple[Bar, ...]  # of the last slice
    inputs: tuple[str, ...]  # what else came in the last turn
    decisions: tuple[str, ...]  # of the last turn


def describe_moment(strategy: Any, broker: Any, flight: ReplayFlight) -> Moment:
    """Return what is known now."""
    turn = flight.turn or flight.last_turn  # the last one of all has no end: the run is over within it
    event = turn.event if turn is not None else None
    items = turn.items if turn is not None else ()
    return Moment(
        time_ns=flight.time_ns,
        value=broker.getvalue(),
        books=broker.view_books(),
        indicators=tuple(read_indicators(strategy)),
        bars=event.bars if isinstance(event, Slice) else flight.last_slice.bars if flight.last_slice else (),
        inputs=tuple(describe_item(item.value) for item in items),
        decisions=tuple(describe_decision(each) for each in turn.record.decisions) if turn is not None else (),
    )


def describe_item(item: Any) -> str:
    """Return a word of the venue in a line."""
    order = getattr(item, "order", None)
    if hasattr(item, "event") and order is not None:
        price = f" {item.qty:f} at {item.price:f}" if item.price is not None and item.qty is not None else ""
        return f"trade event {item.event}: {order.side.value} {order.symbol}{price} ({order.client_order_id})"
    name = getattr(item, "client_order_id", "")
    error = getattr(item, "error", None)
    why = f": {error}" if error is not None else ""
    return f"{type(item).__name__}{f' {name}' if name else ''}{why}"


def read_indicators(strategy: Any) -> Iterator[tuple[str, float | None]]:
    """Yield names and newest values of a strategy's own indicators."""
    names = dict(_attribute_names(strategy))
    for number, indicator in enumerate(strategy._lineiterators[LineIterator.IndType]):
        name = names.get(id(indicator)) or f"{type(indicator).__name__}[{number}]"
        data = getattr(indicator, "data", None)
        of = getattr(data, "_name", "") if data is not None else ""
        label = f"{name}({of})" if of and of not in name else name
        aliases = indicator.lines.getlinealiases() if hasattr(indicator.lines, "getlinealiases") else ()
        for place, line in enumerate(indicator.lines):
            value = line[0] if len(line) else math.nan
            alias = aliases[place] if place < len(aliases) else str(place)
            shown = label if len(aliases) == 1 else f"{label}.{alias}"
            yield shown, float(value) if math.isfinite(value) else None


def _attribute_names(strategy: Any) -> Iterator[tuple[int, str]]:
    for name, value in vars(strategy).items():
        if name.startswith("_"):
            continue
        if isinstance(value, dict):
            for key, item in value.items():
                label = getattr(key, "_name", None) or str(key)
                yield id(item), f"{name}[{label}]"
        elif isinstance(value, list | tuple):
            for place, item in enumerate(value):
                yield id(item), f"{name}[{place}]"
        else:
            yield id(value), name
