"""A time limit for whole HTTP answers.

The time-outs of `requests` are for each wait on the socket: a server that sends a byte now and then keeps a caller for
ever. Here what is left of the read time-out is what the next read may take, from the status line to the last byte.
"""

from __future__ import annotations

import io
import socket
import time
from functools import partial
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class _LimitedReader(io.RawIOBase):
    """Reads a socket until a time is up."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, end_s: float) -> None:
        self._raw = raw
        self._sock = sock
        self._end_s = end_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer was not complete in time")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _build_response(end_s: float, sock: socket.socket, *args: Any, **options: Any) -> HTTPResponse:
    response: Any = HTTPResponse(sock, *args, **options)
    response.fp = io.BufferedReader(_LimitedReader(response.fp.detach(), sock, end_s))
    return response  # type: ignore[no-any-return]


class _LimitedAnswers:
    """What both kinds of connections have in common."""

    timeout: Any
    response_class: Any

    def getresponse(self) -> Any:
        if isinstance(self.timeout, int | float):
            self.response_class = partial(_build_response, time.monotonic() + self.timeout)
        return super().getresponse()  # type: ignore[misc]


class _Connection(_LimitedAnswers, HTTPConnection):
    pass


class _SecureConnection(_LimitedAnswers, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


_POOLS = {"http": _Pool, "https": _SecurePool}


class DeadlineAdapter(HTTPAdapter):
    """Bounds every answer of a `requests` session, from the end of the request on, by the request's read time-out."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Take connections that bound their answers."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        """Take such connections through a proxy too."""
        manager: Any = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager
