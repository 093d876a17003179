"""Bars from whatever was recorded: bars as they are, longer bars made of shorter ones, or bars of trades or quotes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.feeds.recorded import Recording, parse_wanted, read_bar_files
from dry_work.feeds.recorded_places import Period, SourceFile, describe_length, find_files, name_paths
from dry_work.feeds.recorded_ticks import TickKind, TickTable, read_tick_files, sort_by_kind
from dry_work.market.aggregation import Columns, aggregate_quotes, aggregate_trades, carry_sides

MarketSource = Literal["auto", "bars", "trades", "quotes"]


def read_market(
    paths: Sequence[str | Path],
    symbols: Sequence[str] | None = None,
    *,
    length_ns: int | None = None,
    source: MarketSource = "auto",
    recorded_ns: int | None = None,
    start_ns: int | None = None,
    end_ns: int | None = None,
    zone: tzinfo = UTC,
) -> Recording:
    """Read bars of `symbols` (None: of all found, sorted) from bars, trades or quotes.

    Bars of trades are plain (`aggregate_trades`), bars of quotes are of the middle between bid and ask
    (`aggregate_quotes`). Quotes of a symbol none of which has both sides are taken as news of one side each: the other
    side keeps its last price.

    Args:
        paths: files, folders, globs and `gs://` addresses.
        length_ns: length of the bars that are wanted. None: that of the recorded bars, a minute for trades and quotes.
        source: what the bars are made of; `auto`: of bars if there are any, else of trades, else of quotes.
        recorded_ns: length of the recorded bars. None: as `read_bars` finds it; of several in a catalog the longest of
            which bars of `length_ns` can be made.
        start_ns: nothing that begins before it is read.
        end_ns: nothing that begins at or after it is read.
        zone: whose midnight begins a daily bar.

    Raises:
        DataFileError: a file cannot be used; names it and what is expected.
        ConfigError: nothing there to read, nothing of a wanted symbol, or bars of that length cannot be made.
        StorageError: a bucket cannot be read.
    """
    if source not in get_args(MarketSource):
        raise ConfigError(f"source {source!r}: expected {', '.join(get_args(MarketSource))}")
    if length_ns is not None and (length_ns <= 0 or (source in ("trades", "quotes") and DAY_NS % length_ns)):
        raise ConfigError(f"bars of {length_ns} ns: expected a length that divides a day, such as a minute or an hour")
    asked, period = name_paths(paths), Period(start_ns, end_ns)
    by_kind = sort_by_kind(find_files(paths))
    kind = next((kind for kind, files in by_kind.items() if files), "bars") if source == "auto" else source
    if not by_kind[kind]:
        there = ", ".join(kind for kind, files in by_kind.items() if files)
        raise ConfigError(f"{asked}: no {kind} in it, only {there}")
    if kind == "bars":
        base_ns = recorded_ns or _choose_base(by_kind["bars"], length_ns)
        recording = read_bar_files(by_kind["bars"], asked, symbols, base_ns, period)
        return recording if length_ns is None else recording.resample(length_ns, zone=zone)
    tick_kind: TickKind = "trades" if kind == "trades" else "quotes"
    return _aggregate_ticks(tick_kind, by_kind[kind], asked, symbols, length_ns or MINUTE_NS, period, zone)


def _choose_base(sources: Sequence[SourceFile], length_ns: int | None) -> int | None:
    """Return which of a catalog's bars the wanted ones are made of, None when `read_bars` decides."""
    entries = [source.entry for source in sources]
    if length_ns is None or None in entries:
        return None
    lengths = {entry.length_ns for entry in entries if entry is not None}
    fitting = [length for length in lengths if length is not None and length_ns % length == 0]
    return max(fitting, default=None)


def _aggregate_ticks(
    kind: TickKind,
    sources: Sequence[SourceFile],
    asked: str,
    symbols: Sequence[str] | None,
    length_ns: int,
    period: Period,
    zone: tzinfo,
) -> Recording:
    wanted = parse_wanted(symbols)
    ticks = read_tick_files(sources, None if wanted is None else frozenset(wanted), period)
    where = f" {period}" if period else ""
    dropped = "".join(f"; {sentence}" for sentence in ticks.describe_repairs())
    if wanted is None:
        wanted = sorted(symbol for of_kind, symbol in ticks.tables if of_kind == kind)
    columns: dict[str, Columns] = {}
    count = 0
    for symbol in wanted or ["any symbol"]:
        table = ticks.table(kind, symbol)
        if table is None:
            raise ConfigError(f"no {kind} of {symbol}{where} in {asked}{dropped}")
        made = _aggregate(kind, table, length_ns, zone)
        if not len(made["open"]):
            raise ConfigError(
                f"no bars of {symbol} can be made{where}: none of its {len(table):,} quotes has two sides"
            )
        columns[symbol] = made
        count += len(table)
    told = f"bars of {describe_length(length_ns)} were made of {count:,} {kind}"
    return Recording(columns, length_ns=length_ns, left_out=(told, *ticks.describe_repairs()), copy=False)


def _aggregate(kind: TickKind, table: TickTable, length_ns: int, zone: tzinfo) -> Columns:
    numbers = table.numbers
    if kind == "trades":
        return aggregate_trades(table.times, numbers["price"], numbers["size"], length_ns, zone)
    bids, asks = numbers["bid_price"], numbers["ask_price"]
    if not np.any((bids > 0) & (asks > 0)):
        bids, asks = carry_sides(bids, asks)
    return aggregate_quotes(table.times, bids, asks, length_ns, zone)
