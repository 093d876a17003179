"""Servers between a download and its data: one that breaks answers on their way, and one of the options' shape."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

Query = dict[str, str]
Answer = tuple[int, bytes, Mapping[str, str]]


class DataServer:
    """Answers GET requests with what `answer` returns for their path, query and headers.

    `faults` are used up by the requests, one each (None: no fault):

    - `(status, body, headers)` is answered instead;
    - `"cut"` closes the connection in the middle of the answer, `"drop"` before it, `"short"` sends half of the JSON;
    - an event holds the answer back until it is set.
    """

    def __init__(self, answer: Callable[[str, Query, Mapping[str, str]], Answer]) -> None:
        self.requests: list[tuple[str, Query]] = []
        self.faults: deque[Any] = deque()
        self.page_rows: int | None = None  # instead of the limit that is asked for
        self._answer = answer
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                owner._handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)

    @property
    def tokens(self) -> list[str | None]:
        """The page token of every request, None for first pages."""
        return [query.get("page_token") for _, query in self.requests]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.requests.append((parts.path, query))
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, threading.Event):
            fault.wait(60)
        if fault == "drop":
            handler.close_connection = True
            return
        if isinstance(fault, tuple):
            status, body, headers = fault
        else:
            if self.page_rows is not None:
                query = {**query, "limit": str(self.page_rows)}
            status, body, headers = self._answer(parts.path, query, handler.headers)
        sent = body[: len(body) // 2] if fault in ("cut", "short") else body
        length = len(sent) if fault == "short" else len(body)
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(length))
            handler.end_headers()
            handler.wfile.write(sent)
        except OSError:  # the client was killed
            handler.close_connection = True
        if fault == "cut":
            handler.close_connection = True


def pass_on(url: str) -> Callable[[str, Query, Mapping[str, str]], Answer]:
    """Return an answer that another server gives."""

    def answer(path: str, query: Query, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            kept = {name: value for name, value in headers.items() if name.lower().startswith("apca-")}
            connection.request("GET", f"{path}?{urlencode(query)}", headers=kept)
            found = connection.getresponse()
            limits = {name: value for name, value in found.getheaders() if name.lower().startswith("x-")}
            return found.status, found.read(), limits
        finally:
            connection.close()

    return answer


def serve_rows(rows: Mapping[str, list[dict[str, Any]]]) -> Callable[[str, Query, Mapping[str, str]], Answer]:
    """Return an answer of the documented shape from rows by path, all of one symbol and by rising time."""

    def answer(path: str, query: Query, _headers: Mapping[str, str]) -> Answer:
        kind = path.rpartition("/")[2]
        found = [row for row in rows[path] if query["start"] <= row["t"] <= query["end"]]
        first, limit = int(query.get("page_token", "0")), int(query["limit"])
        token = str(first + limit) if first + limit < len(found) else None
        page = found[first : first + limit]
        body = {kind: {query["symbols"]: page} if page else {}, "next_page_token": token}
        return 200, json.dumps(body).encode(), {}

    return answer
