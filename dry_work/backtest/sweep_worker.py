"""A worker process of a sweep: `main`, with two inherited descriptors as arguments, of a socket and of the data.

It is told what all sets have in common, then one set after the other, and answers each with a row. It ends when its
parent does. What a strategy prints goes nowhere; what the interpreter says of a crash goes to stderr.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from dry_work.errors import DryWorkError


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The first message to a worker."""

    job: Any  # a SweepJob
    path: list[str]  # where the parent imports from


class Ready(msgspec.Struct, frozen=True):
    """The worker takes sets from now on."""


class Refused(msgspec.Struct, frozen=True):
    """The worker cannot work at all."""

    reason: str


def serve(connection: Connection[Any, Any], data: int) -> None:
    """Answer sets until the parent closes its end.

    Args:
        connection: to the parent.
        data: descriptor of the shared columns.
    """
    start = connection.recv()
    sys.path[:] = start.path
    tasks: queue.SimpleQueue[tuple[str, dict[str, str]]] = queue.SimpleQueue()

    def read() -> None:
        # The parent may end in the middle of a set that takes minutes; nobody would want its row.
        with contextlib.suppress(EOFError, OSError):
            while True:
                tasks.put(connection.recv())
        os._exit(0)

    threading.Thread(target=read, daemon=True, name="parent").start()
    try:
        from dry_work.backtest.sweep_data import map_recording
        from dry_work.backtest.sweep_task import Evaluator

        evaluator = Evaluator(start.job, map_recording(data))
    except DryWorkError as error:
        connection.send(Refused(str(error)))
        return
    gc.collect()
    gc.freeze()  # modules are not looked through after each set
    connection.send(Ready())
    while True:
        key, texts = tasks.get()
        connection.send(evaluator.evaluate(key, texts))


def main() -> None:
    """Read the descriptors from the command line and serve."""
    faulthandler.enable()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
