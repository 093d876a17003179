"""Answers that come a byte at a time end in time, wherever the server dawdles."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from dry_work.alpaca.trading import TradingApi
from dry_work.errors import OutcomeUnknownError

TIMEOUT_S = 0.5
GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n"
DRIPS = {
    "the status line": (b"", b"HTTP/1.1 200 OK" + b"K" * 10_000),
    "the headers": (b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 10_000),
    "the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b" " * 10_000),
    "a body in chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 10_000),
    "a body without a length": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" " * 10_000),
}


class DrippingServer:
    """Answers every request with `first` at once and then `rest`, a byte at a time."""

    def __init__(self, first: bytes, rest: bytes = b"") -> None:
        self._first, self._rest = first, rest
        self.connections = 0
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60.0)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            self._threads.append(threading.Thread(target=self._answer, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(0.05)
            while not self._stopped.is_set():
                try:
                    if not connection.recv(65536):
                        return
                    connection.sendall(self._first)
                    for place in range(len(self._rest)):
                        connection.sendall(self._rest[place : place + 1])
                        if self._stopped.wait(0.01):
                            return
                except TimeoutError:
                    continue
                except OSError:
                    return


@pytest.fixture
def servers() -> Iterator[list[DrippingServer]]:
    servers: list[DrippingServer] = []
    yield servers
    for server in servers:
        server.stop()


@pytest.mark.parametrize("where", DRIPS)
def test_a_server_that_drips_bytes_is_given_up_in_time(servers: list[DrippingServer], where: str) -> None:
    servers.append(DrippingServer(*DRIPS[where]))
    api = TradingApi("KEY", "SECRET", url=servers[0].url, timeout_s=TIMEOUT_S)
    begun_s = time.monotonic()
    with pytest.raises(OutcomeUnknownError, match="GET /positions"):
        api.positions()
    # Dripping to the end would take 100 s; a machine under load may be late by much.
    assert TIMEOUT_S * 0.9 < time.monotonic() - begun_s < 30.0
    api.close()


@pytest.mark.parametrize("answer", [GOOD, CHUNKED])
def test_a_connection_is_used_again_for_longer_than_the_time_limit(
    servers: list[DrippingServer], answer: bytes
) -> None:
    servers.append(DrippingServer(answer))
    api = TradingApi("KEY", "SECRET", url=servers[0].url, timeout_s=2.5)
    end_s = time.monotonic() + 3.0
    while time.monotonic() < end_s:
        assert api.positions() == []
        time.sleep(0.05)
    assert servers[0].connections == 1
    api.close()
