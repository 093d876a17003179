"""Ports for servers that have to know theirs before they start, or come back on the one they had.

A server that may choose binds port 0. What that gives may be another program's as soon as it is closed, a connection's
too: ports that are named beforehand are below those that systems hand out, other ones in each process of the tests.
"""

from __future__ import annotations

import itertools
import os
import socket

FIRST, COUNT = 10_000, 20_000  # systems hand out ports from 32768 or 49152 on
_EACH = 1_000  # of one process that runs tests

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
# Runs beside each other begin at different places, and the workers of one run have different ones.
_begin = (os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()) * 37 + _worker * _EACH
_numbers = itertools.count(_begin)


def find_free_port() -> int:
    """Return a port that nobody has, and that nobody is given who does not ask for this one."""
    for _ in range(COUNT):
        port = FIRST + next(_numbers) % COUNT
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port of {FIRST} to {FIRST + COUNT - 1} is free")
