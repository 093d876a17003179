"""Several observers of a run as one. On the engine's thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dry_work.engine.observer import RunObserver, RunPlace
from dry_work.market.messages import Slice


class Observers:
    """Several observers as one. One that raises in `open` ends the run; the others are told all the same.

    Args:
        observers: in the order in which they are told.
    """

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = tuple(observers)

    def open(self, place: RunPlace) -> None:
        """Begin; may raise ConfigError."""
        for observer in self._observers:
            observer.open(place)

    def tell(self, line: str) -> None:
        """Take a line for people, also before `open`."""
        for observer in self._observers:
            observer.tell(line)

    def attach(self, cerebro: Any, broker: Any, feeds: Sequence[Any]) -> None:
        """Take note of a Cerebro that is not running yet."""
        for observer in self._observers:
            observer.attach(cerebro, broker, feeds)

    def note_ready(self, strategies: Iterable[Any]) -> None:
        """Take note of the strategies."""
        told = list(strategies)
        for observer in self._observers:
            observer.note_ready(told)

    def note_slice(self, piece: Slice, value: float) -> None:
        """Take note of a slice that was delivered."""
        for observer in self._observers:
            observer.note_slice(piece, value)

    def look(self) -> None:
        """Called at every turn of the loop."""
        for observer in self._observers:
            observer.look()

    def finish(self) -> None:
        """Take note of the end."""
        for observer in self._observers:
            observer.finish()


def join_observers(observer: RunObserver | None, telemetry: RunObserver | None) -> RunObserver | None:
    """Return what stands for both, None when there is none."""
    if observer is None or telemetry is None:
        return observer or telemetry
    return Observers((observer, telemetry))
