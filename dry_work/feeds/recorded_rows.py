"""Recorded rows judged: what cannot be used is dropped and counted, what is left is joined by symbol. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import msgspec
import numpy as np

from dry_work.clock import DAY_NS, HOUR_NS
from dry_work.errors import DataFileError
from dry_work.feeds.recorded_files import OPTIONAL, PRICES, TIME, Column, FileRows, Mask, RepairLog
from dry_work.feeds.recorded_places import Period, describe_length

_ROUNDING = 1e-9  # prices that were adjusted may leave their range by float rounding
_ENOUGH = 20  # bars that tell how far apart they are


class Piece(msgspec.Struct):
    """The usable rows of one symbol in one file."""

    symbol: str
    path: str
    values: dict[str, Column]
    numbers: Column

    def is_sorted(self) -> bool:
        times = self.values[TIME]
        return bool(np.all(times[1:] > times[:-1]))


class BarLength(msgspec.Struct, frozen=True):
    """The length that bars should have."""

    length_ns: int
    is_known: bool = True  # False: nothing says so, it is what is assumed

    @property
    def grid_ns(self) -> int:
        """What the starts of bars are multiples of; bars of hours may be counted from a session's opening."""
        return math.gcd(self.length_ns, HOUR_NS // 2) if self.length_ns < DAY_NS else 1

    @property
    def least_ns(self) -> int:
        """The least distance of two bars; a day has 23 hours when the clock goes forward."""
        return self.length_ns if self.length_ns < DAY_NS else self.length_ns - HOUR_NS


class RowChecker:
    """Judges a file part by part: drops and counts the rows that cannot be used, gives what is left by symbol."""

    def __init__(self, wanted: frozenset[str] | None, log: RepairLog, length: BarLength, period: Period) -> None:
        self._wanted = wanted
        self._log = log
        self._length = length
        self._period = period
        self._last: dict[str, int] = {}  # newest time of each symbol
        self._steps = 0  # between bars of one symbol
        self._common_ns = 0  # what all of them are multiples of

    def check(self, rows: FileRows) -> list[Piece]:
        """Return the usable rows of a part.

        Raises:
            DataFileError: the bars are of another length.
        """
        keep = _find_usable(rows, self._wanted, self._log, self._period)
        pieces = []
        for code, symbol in enumerate(rows.symbols):
            chosen = _choose(rows.codes, keep, code)
            if len(chosen):
                piece = self._check_times(_cut(rows, symbol, chosen))
                if len(piece.numbers):
                    pieces.append(piece)
        return pieces

    def finish(self, pieces: list[Piece]) -> None:
        """Refuse a file whose bars are all farther apart than they are assumed to be long.

        Raises:
            DataFileError: they are.
        """
        if not self._length.is_known and self._steps >= _ENOUGH and self._common_ns > self._length.length_ns:
            raise _tell_length(pieces[0], self._length, 0, self._common_ns)

    def _check_times(self, piece: Piece) -> Piece:
        """Count rows out of order, drop bars that begin where none of that length does, refuse other lengths."""
        length, times = self._length, piece.values[TIME]
        newest = np.maximum.accumulate(times)
        last = self._last.get(piece.symbol, 0)
        late = times < np.maximum(newest, last)
        self._log.add("out of order", piece.path, piece.numbers[late])
        self._last[piece.symbol] = max(int(newest[-1]), last)
        off = times % length.grid_ns != 0
        if off.any():
            if np.count_nonzero(off) * 2 > len(off):
                raise _tell_length(piece, length, int(np.argmax(off)), _least_step(times))
            reason = f"no bar of {describe_length(length.length_ns)} begins at its time"
            self._log.add(reason, piece.path, piece.numbers[off])
            piece.values = {name: column[~off] for name, column in piece.values.items()}
            piece.numbers = piece.numbers[~off]
            times = piece.values[TIME]
        order = None if piece.is_sorted() else np.argsort(times, kind="stable")
        steps = np.diff(times if order is None else times[order])
        if length.grid_ns < length.least_ns:
            close = (steps > 0) & (steps < length.least_ns)
            if close.any():
                row = int(np.argmax(close)) + 1
                raise _tell_length(piece, length, row if order is None else int(order[row]), _least_step(times))
        if not length.is_known and self._common_ns != length.length_ns and len(steps):
            self._steps += int(np.count_nonzero(steps))
            self._common_ns = math.gcd(self._common_ns, int(np.gcd.reduce(steps)))
        return piece


def _find_usable(rows: FileRows, wanted: frozenset[str] | None, log: RepairLog, period: Period) -> Mask:
    """Return which rows are of the symbols and the period and can be used; count the others of them."""
    codes, values = rows.codes, rows.values
    is_wanted = np.array([True, *(wanted is None or symbol in wanted for symbol in rows.symbols)])
    keep: Mask = is_wanted[codes + 1]
    if period:
        times = values[TIME]
        if period.start_ns is not None:
            keep &= (times >= period.start_ns) | ~rows.readable_time
        if period.end_ns is not None:
            keep &= (times < period.end_ns) | ~rows.readable_time

    def drop(reason: str, bad: Mask) -> None:
        bad &= keep
        if bad.any():
            log.add(reason, rows.path, rows.numbers[bad])
            np.logical_and(keep, ~bad, out=keep)

    prices = [values[name] for name in PRICES]
    highest, lowest, volume = values["high"], values["low"], values["volume"]
    with np.errstate(invalid="ignore"):
        drop("symbol missing or malformed", codes < 0)
        drop("time missing, unreadable or out of range", ~rows.readable_time)
        drop("non-finite price", _any_of(~np.isfinite(price) for price in prices))
        drop("negative price", _any_of(price < 0 for price in prices))
        drop("zero price", _any_of(price == 0 for price in prices))
        drop("non-finite volume", ~np.isfinite(volume))
        drop("negative volume", volume < 0)
        margin = _ROUNDING * np.abs(highest)
        top, bottom = highest + margin, lowest - margin
        drop("high below low", highest < bottom)
        drop("open or close outside of low and high", _any_of(~((p <= top) & (p >= bottom)) for p in prices))
        for name, column in values.items():
            if name != TIME and name not in PRICES and name != "volume":
                bad = keep & (np.isinf(column) | ((column < 0) if name in OPTIONAL else False))
                if bad.any():
                    log.add(f"unusable {name}", rows.path, rows.numbers[bad])
                    values[name] = np.where(bad, np.nan, column)
    return keep


def _any_of(masks: Iterator[Mask]) -> Mask:
    found = next(masks)
    for mask in masks:
        found |= mask
    return found


def _choose(codes: Column, keep: Mask, code: int) -> Column:
    """Return the kept rows of a symbol."""
    return np.flatnonzero(keep & (codes == code))


def _cut(rows: FileRows, symbol: str, chosen: Column) -> Piece:
    """Return rows as a piece of their own; what is most of a part is not copied."""
    stretch = len(chosen) == chosen[-1] - chosen[0] + 1 and 2 * len(chosen) > len(rows.numbers)
    place = slice(int(chosen[0]), int(chosen[-1]) + 1) if stretch else chosen
    values = {name: column[place] for name, column in rows.values.items()}
    return Piece(symbol=symbol, path=rows.path, values=values, numbers=rows.numbers[place])


def _least_step(times: Column) -> int:
    steps = np.diff(np.sort(times))
    return int(steps[steps > 0].min(initial=2**62))


def _tell_length(piece: Piece, length: BarLength, row: int, apart_ns: int) -> DataFileError:
    is_told = apart_ns < 2**62
    apart = f"bars of {piece.symbol} are {describe_length(apart_ns)} apart" if is_told else "a bar begins at its time"
    assumed = "" if length.is_known else ", which is assumed since nothing says otherwise"
    reason = (
        f"{apart}, which does not fit bars of {describe_length(length.length_ns)}{assumed}; say how long they are, or "
        "keep them in a catalog folder such as bars/5m/SPY"
    )
    return DataFileError(piece.path, reason, row=int(piece.numbers[row]))


def merge_pieces(pieces: list[Piece], log: RepairLog) -> dict[str, Column]:
    """Join one symbol's pieces, which are used up, by rising time; of rows of the same time the first read stays."""
    names = list(dict.fromkeys(name for piece in pieces for name in piece.values))
    if all(piece.is_sorted() for piece in pieces):
        by_time = sorted(pieces, key=lambda piece: int(piece.values[TIME][0]))
        if all(one.values[TIME][-1] < other.values[TIME][0] for one, other in itertools.pairwise(by_time)):
            return _drop_empty({name: _join(by_time, name) for name in names})
    owners = np.repeat(np.arange(len(pieces)), [len(piece.numbers) for piece in pieces])
    numbers = np.concatenate([piece.numbers for piece in pieces])
    columns = {name: _join(pieces, name) for name in names}
    order = np.argsort(columns[TIME], kind="stable")
    times = columns[TIME][order]
    is_first = np.ones(len(times), dtype=np.bool_)
    is_first[1:] = times[1:] != times[:-1]
    repeats = np.flatnonzero(~is_first)
    if len(repeats):
        firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(times)), 0))[repeats]
        equal = np.ones(len(repeats), dtype=np.bool_)
        for column in columns.values():
            one, other = column[order[firsts]], column[order[repeats]]
            equal &= (one == other) | (np.isnan(one) & np.isnan(other))
        for reason, rows in (("duplicate", order[repeats[equal]]), ("conflict", order[repeats[~equal]])):
            for owner in np.unique(owners[rows]):
                log.add(reason, pieces[owner].path, np.sort(numbers[rows[owners[rows] == owner]]))
    kept = order[is_first]
    for name in names:
        columns[name] = columns[name][kept]  # one after the other: the whole is in memory once
    return _drop_empty(columns)


def _join(pieces: list[Piece], name: str) -> Column:
    """Take a column out of the pieces and join it."""
    parts = [piece.values.pop(name, None) for piece in pieces]
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    filled = [
        np.full(len(piece.numbers), np.nan) if part is None else part for piece, part in zip(pieces, parts, strict=True)
    ]
    return np.concatenate(filled)


def _drop_empty(columns: dict[str, Column]) -> dict[str, Column]:
    """Leave out columns without one value: the fingerprint then does not depend on how files were cut."""
    return {name: column for name, column in columns.items() if name in (TIME, *PRICES) or not np.isnan(column).all()}
