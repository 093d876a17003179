"""Serves metrics and health over HTTP from threads of its own, beside an engine that must not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from dry_work.errors import ConfigError
from dry_work.observability.metrics import CONTENT_TYPE

REQUEST_TIMEOUT_S = 5.0

_log = structlog.get_logger(__name__)


class MetricsServer:
    """Answers `/metrics`, `/healthz` and `/readyz` until `close`.

    Args:
        host, port: to listen on; port 0 takes any free one.
        render: returns the metrics; called on a thread of a request.
        is_healthy, is_ready: likewise.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        render: Callable[[], bytes],
        is_healthy: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_TIMEOUT_S

            def do_GET(self) -> None:
                path = self.path.split("?", 1)[0]
                if path == "/metrics":
                    self._answer_metrics()
                elif path == "/healthz":
                    self._answer(*((200, b"OK\n") if is_healthy() else (503, b"HANGS\n")))
                elif path == "/readyz":
                    self._answer(*((200, b"READY\n") if is_ready() else (503, b"NOT READY\n")))
                else:
                    self._answer(404, b"expected /metrics, /healthz or /readyz\n")

            def _answer_metrics(self) -> None:
                try:
                    body = render()
                except Exception:
                    _log.exception("metrics cannot be made")
                    self._answer(500, b"metrics cannot be made; the log says why\n")
                else:
                    self._answer(200, body, CONTENT_TYPE)

            def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                _log.debug("a request for metrics broke off")

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"METRICS_PORT={port}: {host} cannot be listened on: {error}") from error
        self._server.daemon_threads = False  # so that `close` waits for them; each has a time-out
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()
        self._is_closed = False

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """End. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._server.shutdown()
        self._thread.join(5.0)
        self._server.server_close()
