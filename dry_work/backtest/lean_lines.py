"""Lines that share one index: moving all lines of a feed, and of the indicators on it, is one assignment.

Lines take this form for the time of a run only, and are Backtrader's own again after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backtrader.linebuffer import LineBuffer


class Cursor:
    """The index that some lines share, -1 before the first value."""

    __slots__ = ("before_write", "index", "loose")

    def __init__(self) -> None:
        self.index = -1
        self.before_write: Callable[[], None] | None = None  # somebody has yet to read what is about to be changed
        # What lines that somebody moved by hand do to go on from where they were put, and what comes after them.
        self.loose: list[Callable[[], None]] = []

    def advance(self) -> None:
        """Move all lines to their next value."""
        self.index += 1
        for follow in self.loose:
            follow()


class SharedLine(LineBuffer):
    """A `LineBuffer` whose index and length are those of a cursor."""

    cursor: Cursor

    @property
    def _idx(self) -> int:
        return self.cursor.index

    @_idx.setter
    def _idx(self, value: int) -> None:
        self._leave()
        self._idx = value

    @property
    def lencount(self) -> int:
        return self.cursor.index + 1

    @lencount.setter
    def lencount(self, value: int) -> None:
        self._leave()
        self.lencount = value

    def __len__(self) -> int:
        return self.cursor.index + 1

    def __getitem__(self, ago: int) -> float:
        value: float = self.array[self.cursor.index + ago]
        return value

    def __setitem__(self, ago: int, value: Any) -> None:
        if self.cursor.before_write is not None:
            self.cursor.before_write()
        super().__setitem__(ago, value)

    def set(self, value: Any, ago: int = 0) -> None:
        self[ago] = value

    def _leave(self) -> None:
        cursor = self.cursor
        if cursor.before_write is not None:
            cursor.before_write()
        unshare(self)
        cursor.loose.insert(0, self.advance)


# Who asks for the name of the class gets Backtrader's.
SharedLine.__name__, SharedLine.__qualname__, SharedLine.__module__ = (
    LineBuffer.__name__,
    LineBuffer.__qualname__,
    LineBuffer.__module__,
)


def can_share(line: Any) -> bool:
    """Say whether a line is Backtrader's plain line, unbounded and before its first value."""
    return type(line) is LineBuffer and line.mode == LineBuffer.UnBounded and line._idx == -1 and line.lencount == 0


def share(line: LineBuffer, cursor: Cursor) -> None:
    """Let a line take its index from a cursor."""
    line.__class__ = SharedLine
    line.__dict__["cursor"] = cursor


def unshare(line: LineBuffer) -> None:
    """Give a line its own index again, where the cursor stands."""
    if line.__class__ is not SharedLine:
        return
    index = line.__dict__.pop("cursor").index
    line.__class__ = LineBuffer
    line._idx = index
    line.lencount = index + 1


class Ticks:
    """The `tick_*` attributes of a feed, made when they are read.

    Backtrader sets them at every bar. Here the feed's `lines` take a class with properties of these names, which is
    where a feed looks for attributes it has not.
    """

    def __init__(self, feed: Any) -> None:
        self._feed = feed
        self._kind = type(feed.lines)
        names = {"tick_" + name: name for name in feed.getlinealiases() if name != "datetime"}
        names["tick_last"] = feed._getlinealias(0)
        self._names = names
        self._before = {name: feed.__dict__.pop(name) for name in names if name in feed.__dict__}
        self._size = feed.buflen()
        self._first = feed.lines.lines[0]
        body = {name: property(self._reader(name, line)) for name, line in names.items()}
        feed.lines.__class__ = type(self._kind.__name__, (self._kind,), {"__module__": self._kind.__module__, **body})

    def _reader(self, name: str, alias: str) -> Any:
        line = getattr(self._feed.lines, alias)

        def read(_: Any) -> Any:
            length = len(self._first)
            if not length:
                if name in self._before:
                    return self._before[name]
                raise AttributeError(f"{type(self._feed).__name__!r} object has no attribute {name!r}")
            # Backtrader leaves them empty at a feed's last bar.
            return line[0] if length < self._size else None

        return read

    def restore(self) -> None:
        """Leave the feed with plain attributes of the values that Backtrader would have left."""
        feed = self._feed
        if type(feed.lines) is self._kind:
            return
        for name in self._names:
            if name not in feed.__dict__ and (len(self._first) or name in self._before):
                feed.__dict__[name] = getattr(feed.lines, name)
        feed.lines.__class__ = self._kind

    def renew(self) -> None:
        """Set the attributes for a bar as Backtrader does when it moves a feed; for after `restore`."""
        self._feed._tick_nullify()
        if len(self._first) < self._size:
            self._feed._tick_fill()


class Shortcuts:
    """Names of lines as attributes of their object, where Backtrader finds them after two failed look-ups."""

    def __init__(self) -> None:
        self._made: list[tuple[dict[str, Any], str, Any]] = []

    def add(self, owner: Any) -> None:
        """Make the lines of a feed, indicator or strategy its attributes, unless it has others of these names."""
        for name in owner.getlinealiases():
            if isinstance(name, str) and name not in owner.__dict__ and not hasattr(type(owner), name):
                line = getattr(owner.lines, name)
                owner.__dict__[name] = line
                self._made.append((owner.__dict__, name, line))

    def remove(self) -> None:
        """Take away what was added."""
        for attributes, name, line in self._made:
            if attributes.get(name) is line:
                del attributes[name]
        self._made.clear()
