"""A line of Backtrader that holds its newest values only and never gives a wrong one. Engine thread only.

A `LineBuffer` holds every value it ever had. A `KeptLine` lets go of the oldest in blocks and still has the length, the
index and every answer of the whole line: what is asked for and no longer held is fetched from the archive, and the line
then keeps that far back. What cannot be fetched raises. Whoever takes the `array` itself gets the whole one, and the
line lets go of nothing any more, since the array may be looked at later.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import FunctionType
from typing import Any

from backtrader.linebuffer import LineActions, LineBuffer
from backtrader.utils.date import num2date

from dry_work.engine.line_archive import LineArchive, Values
from dry_work.errors import LookBackError
from dry_work.settings import WHOLE_LINES

WHOLE = WHOLE_LINES  # of a line that lets go of nothing
_NAN = float("nan")


class KeptLine(LineBuffer):
    """A `LineBuffer` in which older values may be missing from memory; made by `keep`, never by hand.

    `_idx` counts within what is held; `idx` is that of the whole line, as is every position that comes from outside.
    Index and length are not written down, they follow from how many values there are: to move a line is to append to
    `_kept`. That is always the same array, so whoever moves a line with every bar may hold on to its `append`, and
    calls `make_room` now and then.
    """

    _kept: Values  # the newest values
    _base: int  # values before them
    _ahead: int  # values of `_kept` after the current one: 0 but for a line that was rewound, sent home or extended
    _skew: int  # what Backtrader has the length more than the index: 0 but for a line whose index somebody has set
    _blocks: deque[int]  # slots of those that the archive has, the newest last
    _archive: LineArchive
    _keep: int  # values that stay in memory
    _limit: int  # `_idx` at which a block goes; it does when room is made
    _shift: int  # makes lines let go at different moments
    _heard: Callable[[KeptLine, int], None]  # is told when the line has learned to keep more
    _plain: type[LineBuffer]

    # What runs with every bar

    def __getitem__(self, ago: int) -> float:
        kept = self._kept
        at = len(kept) - 1 - self._ahead + ago
        if at >= 0:
            return kept[at]
        return kept[self._reach(at)]

    def __setitem__(self, ago: int, value: float) -> None:
        kept = self._kept
        at = len(kept) - 1 - self._ahead + ago
        if at < 0:
            at = self._reach(at)
        kept[at] = value
        for binding in self.bindings:
            binding[ago] = value

    def set(self, value: float, ago: int = 0) -> None:
        self[ago] = value

    def __len__(self) -> int:
        return self._base + len(self._kept) - self._ahead + self._skew

    def get(self, ago: int = 0, size: int = 1) -> Values:
        stop = self._idx + ago + 1
        start = stop - size
        if start >= 0 and stop >= 0:
            return self._kept[start:stop]
        return self._slice(start + self._base, stop + self._base)

    def forward(self, value: float = _NAN, size: int = 1) -> None:
        for _ in range(size):
            self._kept.append(value)
        if len(self._kept) > self._limit + self._ahead:
            self._let_go()

    def backwards(self, size: int = 1, force: bool = False) -> None:
        if size > len(self._kept) and self._base:
            self._recall(max(0, self._base + len(self._kept) - size))
        for _ in range(size):
            self._kept.pop()

    def rewind(self, size: int = 1) -> None:
        self._ahead += size

    def advance(self, size: int = 1) -> None:
        self._ahead -= size

    # What is asked of the whole line

    @property
    def _idx(self) -> int:
        return len(self._kept) - 1 - self._ahead

    def get_idx(self) -> int:
        return self._base + len(self._kept) - 1 - self._ahead

    def set_idx(self, idx: int, force: bool = False) -> None:
        ahead = self._base + len(self._kept) - 1 - idx
        self._skew += ahead - self._ahead  # the length stays
        self._ahead = ahead

    idx = property(get_idx, set_idx)

    @property
    def lencount(self) -> int:
        """The length, which is below 0 for a line that was rewound too far."""
        return self._base + len(self._kept) - self._ahead + self._skew

    @lencount.setter
    def lencount(self, length: int) -> None:
        self._skew += length - self.lencount

    @property
    def array(self) -> Values:
        """All values; from now on the line holds every one."""
        if self._limit != WHOLE:
            if self._base:
                self._recall(0)
            self._keep = self._limit = WHOLE
            self._heard(self, WHOLE)
        return self._kept

    @array.setter
    def array(self, values: Any) -> None:
        index, length = self.get_idx(), self.lencount
        self._drop_blocks()
        self._kept[:] = array("d", values)
        self._base = 0
        self.set_idx(index)
        self.lencount = length

    def buflen(self) -> int:
        return self._base + len(self._kept) - int(self.extension)

    def getzeroval(self, idx: int = 0) -> float:
        return self[idx - self._idx - self._base] if idx >= 0 else self._kept[self._wrap(idx)]

    def getzero(self, idx: int = 0, size: int = 1) -> Values:
        return self._slice(idx, idx + size)

    def plotrange(self, start: int, end: int) -> Values:
        return self._slice(start, end)

    def home(self) -> None:
        if self._base:
            self._recall(0)
        self._ahead = len(self._kept)
        self._skew = 0

    def extend(self, value: float = _NAN, size: int = 0) -> None:
        self.extension += size
        self._ahead += size
        for _ in range(size):
            self._kept.append(value)

    def oncebinding(self) -> None:
        count = self.buflen()
        for binding in self.bindings:
            binding.array[0:count] = self.array[0:count]

    def datetime(self, ago: int = 0, tz: Any = None, naive: bool = True) -> Any:
        return num2date(self[ago], tz=tz or self._tz, naive=naive)

    def date(self, ago: int = 0, tz: Any = None, naive: bool = True) -> Any:
        return num2date(self[ago], tz=tz or self._tz, naive=naive).date()

    def time(self, ago: int = 0, tz: Any = None, naive: bool = True) -> Any:
        return num2date(self[ago], tz=tz or self._tz, naive=naive).time()

    # Memory

    def keep_more(self, values: int) -> None:
        """Hold at least the newest `values` in memory."""
        if values > self._keep:
            self._keep = values
            self._limit = values + self._archive.block_values + self._shift

    def is_whole(self) -> bool:
        """Tell whether the line lets go of nothing."""
        return self._limit == WHOLE

    def forget(self, slot: int) -> None:
        """Hear from the archive that the oldest block is gone."""
        if self._blocks and self._blocks[0] == slot:
            self._blocks.popleft()

    def _let_go(self) -> None:
        size = self._archive.block_values
        limit = self._keep + size + self._shift
        while self._idx >= limit and self._ahead >= 0:  # not while the index is set behind the newest value
            if self._archive.keeps:
                slot = self._archive.put(self._kept[:size], self)
                if slot is None:
                    self._limit = self._idx + size  # tried again later
                    return
                self._blocks.append(slot)
            del self._kept[:size]
            self._base += size
        self._limit = limit

    def _reach(self, at: int) -> int:
        """Return where in memory the value is that lies at `at`, counted from the first one in memory and before it."""
        if not self._base:
            return at
        whole = at + self._base
        if whole < 0:
            return self._wrap(whole)
        self._recall(whole)
        return whole - self._base

    def _wrap(self, index: int) -> int:
        """Return where in memory `array[index]` of the whole line is; `index` is negative and counts from the end."""
        at = len(self._kept) + index
        if at >= 0:
            return at
        whole = at + self._base
        if whole < 0:
            return -len(self._kept) - 1  # out of range here as there
        self._recall(whole)
        return whole - self._base

    def _slice(self, start: int, stop: int) -> Values:
        first, last, _ = slice(start, stop).indices(self._base + len(self._kept))
        if first >= last:
            return array("d")
        if first < self._base:
            self._recall(first)
        return self._kept[first - self._base : last - self._base]

    def _recall(self, position: int) -> None:
        """Have everything from `position` of the whole line on in memory, and keep twice as much from now on."""
        newest = self._base + self._idx
        size = self._archive.block_values
        blocks = -(-(self._base - position) // size)
        if blocks <= 0:
            return
        if blocks > len(self._blocks):
            held = newest - self._base + 1 + size * len(self._blocks)
            raise LookBackError(
                f"line {self.describe()}: the value of {newest - position} bars ago is asked for, {held} are kept; "
                f"give --lookback {newest - position + 1} or more, or kept_bars in the strategy ('all' keeps all)"
            )
        wanted = [self._blocks[place] for place in range(len(self._blocks) - blocks, len(self._blocks))]
        try:
            parts = [self._archive.read(slot) for slot in wanted]
        except OSError as error:
            raise LookBackError(
                f"line {self.describe()}: the value of {newest - position} bars ago is on disk and cannot be read: "
                f"{error}"
            ) from error
        whole = array("d")
        for part in parts:
            whole.extend(part)
        self._kept[0:0] = whole
        self._base -= blocks * size
        for slot in wanted:
            self._blocks.pop()
            self._archive.release(slot)
        if self._limit != WHOLE:
            self.keep_more(2 * (newest - position + 1))
            self._heard(self, newest - position + 1)

    def _drop_blocks(self) -> None:
        for slot in self._blocks:
            self._archive.release(slot)
        self._blocks.clear()

    def describe(self) -> str:
        """Return the name of the line and whose it is, for people."""
        owner = getattr(self, "_owner", None)
        kind = self._plain.__name__
        if owner is None or isinstance(self, LineActions):
            return f"of an operation ({kind})"
        lines = getattr(owner, "lines", None)
        names = [] if lines is None else [*lines.getlinealiases(), *getattr(owner, "extra_names", ())]
        own = [name for name in names if getattr(lines, name, None) is self]
        whose = getattr(owner, "_name", "") or type(owner).__name__
        return f"{own[0]!r} of {whose}" if own else f"of {whose}"


class _Moment:
    """One value, for the methods that look at the time of a bar: they see a line with this value only."""

    idx = 0

    def __init__(self, value: float) -> None:
        self.array = (value,)


def _look_at_time(name: str) -> Callable[..., Any]:
    of_whole = getattr(LineBuffer, name)

    def of_kept(self: KeptLine, *args: Any, ago: int = 0) -> Any:
        expected = 0 if name in _ALONE else 1
        if len(args) > expected:
            *args, ago = args  # type: ignore[assignment]
        return of_whole(_Moment(self[ago]), *args)

    of_kept.__name__ = name
    return of_kept


_ALONE = ("dt", "tm_raw", "tm")  # of a bar; the others compare it with something
for _name in (*_ALONE, "tm_lt", "tm_le", "tm_eq", "tm_gt", "tm_ge", "tm2dtime", "tm2datetime"):
    setattr(KeptLine, _name, _look_at_time(_name))

# Methods of `LineBuffer` that look at its array or index. A line whose class has its own of one stays as it is.
REPLACED = tuple(name for name in vars(KeptLine) if isinstance(vars(LineBuffer).get(name), FunctionType | property))


def can_keep(line: Any) -> bool:
    """Tell whether `keep` can be used on a line."""
    kind = type(line)
    if isinstance(line, KeptLine) or not isinstance(line, LineBuffer) or line.mode != LineBuffer.UnBounded:
        return False
    own = any(getattr(kind, name) is not getattr(LineBuffer, name) or name in line.__dict__ for name in REPLACED)
    return not own and isinstance(line.__dict__.get("array"), array)


def keep(
    line: Any, values: int, archive: LineArchive, heard: Callable[[KeptLine, int], None], *, number: int = 0
) -> KeptLine:
    """Make a `KeptLine` of a line, in place.

    Args:
        line: one that `can_keep` has said yes to.
        values: how many of the newest stay in memory; `WHOLE`: all.
        archive: where the others go; one that keeps nothing: they are lost, and asking for one raises.
        heard: is told the line and how far back it was looked at, each time that was further than it was kept;
            `WHOLE` when its array was taken.
        number: lines with different ones let go at different moments.
    """
    held, index, length = (line.__dict__.pop(name) for name in ("array", "_idx", "lencount"))
    kind: Any = type(line)
    line.__class__ = _kept_class(kind)
    others = dict(line.__dict__)
    # What runs with every bar comes first: with thousands of lines it matters that what is looked up together lies
    # together in memory.
    line.__dict__.clear()
    line._kept = held
    line._base = 0
    line._ahead = len(held) - 1 - index
    line._skew = length - (index + 1)
    line._blocks = deque()
    line._archive = archive
    line._keep = values
    line._shift = number * 37 % archive.block_values
    line._limit = WHOLE if values == WHOLE else values + archive.block_values + line._shift
    line._heard = heard
    line.__dict__.update(others)
    kept: KeptLine = line
    return kept


@cache
def _kept_class(kind: Any) -> type[Any]:
    if kind is LineBuffer:
        return KeptLine
    # Not by calling the metaclass of Backtrader, which would make new classes of params and lines.
    make = partial(type.__new__, type(kind))
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__, "_plain": kind}
    made: type[Any] = make(kind.__name__, (KeptLine, kind), names)
    return made


def make_room(lines: Iterable[KeptLine]) -> int:
    """Let go of what lines hold beyond their bounds; return how many more values fit until one of them is full."""
    room = WHOLE
    for line in lines:
        if line._idx >= line._limit:
            line._let_go()
        room = min(room, line._limit - line._idx)
    return room


def plain_class(line: Any) -> type[Any]:
    """Return the class that a line had before `keep`."""
    return line._plain if isinstance(line, KeptLine) else type(line)


KeptLine._plain = LineBuffer
