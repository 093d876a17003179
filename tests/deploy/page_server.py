"""The page and the functions on a port, in this process: what a local service and Cloud Functions serve."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from deploy.http import Api, Request, Response
from deploy.identity import LocalTokenVerifier, write_token_file
from deploy.page import PageSettings, page_response
from tests.deploy.service_stack import Stack

TOKEN = "a-token-of-a-test-0123456789"


class PageServer:
    """Serves one stack to the user `ann`.

    Attributes:
        page: what the page is told.
        is_down: every call of a function breaks off without an answer, as when the service is gone.
        calls: names of the functions that were called.
    """

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        token_file = folder / "token"
        write_token_file(token_file, TOKEN)
        self.api = Api(stack.service, LocalTokenVerifier(token_file, user_id="ann"))
        self.page = PageSettings(token_file="~/.dry-work/deploy/token")
        self.is_down = False
        self.calls: list[str] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self  # type: ignore[attr-defined]
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join(30)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave a connection that the browser has broken off; tell everything else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        owner: PageServer = self.server.owner  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length") or 0))
        response = page_response(url.path, method=self.command, headers=headers, settings=owner.page)
        if response is None:
            name = url.path.rpartition("/")[2]
            owner.calls.append(name)
            if owner.is_down:
                self.close_connection = True
                return
            query = dict(parse_qsl(url.query))
            response = owner.api.handle(name, Request(method=self.command, body=body, headers=headers, query=query))
        self._send(response)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if response.status != 304:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""
