"""Waits with a time-out for what an iterator brings that has none: a stream of gRPC. Thread-safe."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class TimedReader(Generic[_Item]):
    """Reads an iterator on a thread of its own, up to a number of items ahead.

    Who takes the items can tell that nothing comes from being stuck, and can give a pulse meanwhile.

    Args:
        items: ended from outside, by whoever closes what is behind it.
        name: of the thread.
        ahead: items that are read before somebody takes them.
    """

    def __init__(self, items: Iterable[_Item], *, name: str, ahead: int = 256) -> None:
        self._source = items
        self._ahead = ahead
        self._changed = threading.Condition()  # guards what follows
        self._items: deque[_Item] = deque()
        self._is_closed = False
        self._has_ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> list[_Item]:
        """Wait for items and return all that are there; none when nothing came in time.

        Raises:
            StopIteration: there will be no more.
            BaseException: what ended the iterator, once all items before it are taken.
        """
        with self._changed:
            if not self._items:
                self._changed.wait_for(lambda: self._items or self._is_over, timeout_s)
            if self._items:
                taken = list(self._items)
                self._items.clear()
                self._changed.notify_all()
                return taken
            if not self._is_over:
                return []
            raise self._error or StopIteration

    def close(self, end: Callable[[], object], timeout_s: float = 1.0) -> None:
        """Read no more. May be called twice.

        Args:
            end: ends the iterator.
            timeout_s: that is waited for the thread.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        end()
        self._thread.join(timeout_s)

    @property
    def _is_over(self) -> bool:
        return self._has_ended or self._is_closed or not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for item in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._items) < self._ahead or self._is_closed)
                    if self._is_closed:
                        return
                    self._items.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # whatever it was, it is told to who takes the items
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
