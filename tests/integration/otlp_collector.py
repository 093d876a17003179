"""A collector of traces that keeps what it gets, over HTTP or gRPC."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

GRPC_PORT = 4317


class Spans:
    """The spans of all requests."""

    def __init__(self) -> None:
        self._requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []

    def take(self, body: bytes) -> None:
        self._requests.append(ExportTraceServiceRequest.FromString(body))

    @property
    def services(self) -> set[str]:
        """Names of the services that sent them."""
        return {
            attribute.value.string_value
            for request in list(self._requests)
            for group in request.resource_spans
            for attribute in group.resource.attributes
            if attribute.key == "service.name"
        }

    @property
    def all(self) -> list[Any]:
        """The spans in the order of their arrival."""
        return [
            span
            for request in list(self._requests)
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> list[Any]:
        """Those with a name."""
        return [span for span in self.all if span.name == name]


def attributes_of(span: Any) -> dict[str, Any]:
    """Return a span's attributes as plain values."""
    found = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        found[attribute.key] = getattr(attribute.value, kind)
    return found


class HttpCollector(Spans):
    """Takes spans over HTTP on a free port."""

    def __init__(self) -> None:
        super().__init__()
        self.status = 200
        spans = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                spans.paths.append(self.path)
                if spans.status == 200:
                    spans.take(body)
                self.send_response(spans.status)
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="collector")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcCollector(Spans):
    """Takes spans over gRPC on the port that belongs to it, at a loopback address of its own."""

    def __init__(self) -> None:
        super().__init__()
        host = _find_host()
        self.url = f"http://{host}:{GRPC_PORT}"
        self._server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        assert self._server.add_insecure_port(f"{host}:{GRPC_PORT}")
        self._server.start()

    def _export(self, body: bytes, _: object) -> bytes:
        self.take(body)
        return ExportTraceServiceResponse().SerializeToString()

    def close(self) -> None:
        self._server.stop(None).wait()


def _find_host() -> str:
    for number in range(2, 250):
        host = f"127.0.0.{number}"
        with socket.socket() as probe:
            try:
                probe.bind((host, GRPC_PORT))
            except OSError:
                continue
            return host
    raise AssertionError(f"no loopback address has port {GRPC_PORT} free")
