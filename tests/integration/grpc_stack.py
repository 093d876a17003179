"""A hub with a gRPC port, a scripted upstream, and stubs of stock protoc, for the tests of that port."""

from __future__ import annotations

import importlib
import random
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgpack
import pytest

from dry_work.alpaca.venues import open_venue
from dry_work.hub.access import Access
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.service import HubService
from dry_work.hub.sinks.grpc import GrpcSink
from dry_work.hub.sinks.grpc_settings import GrpcSettings
from dry_work.hub.upstreams.connection import UpstreamTiming
from dry_work.proto.cream.write_modules import PROTOS, ROOT

from .alpaca_upstream import KEY, SECRET, Upstream, wait_until

QUICK = UpstreamTiming(ping_interval_s=0.2, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05)
DEADLINE_S = 60.0
OPTION, OTHER_OPTION = "AAPL240315C00172500", "A240315C00172500"
TIME = "2024-01-02T14:30:00.123456789Z"
STOCKS, OPTIONS = "/v2/iex", "/v1beta1/indicative"
NOWHERE = "http://127.0.0.1:9"  # an account whose venue does not answer


def make_stubs(folder: Path) -> SimpleNamespace:
    """Return what a stranger has: the modules that stock protoc makes of the .proto files."""
    protoc = importlib.import_module("grpc_tools.protoc")
    include = Path(str(protoc.__file__)).parent / "_proto"
    command = ["protoc", f"-I{ROOT}", f"-I{include}", f"--python_out={folder}", f"--grpc_python_out={folder}", *PROTOS]
    assert protoc.main(command) == 0
    sys.path.insert(0, str(folder))
    try:
        return SimpleNamespace(
            messages=importlib.import_module("cream.v1.stream_proxy_pb2"),
            common=importlib.import_module("cream.v1.common_pb2"),
            services=importlib.import_module("cream.v1.stream_proxy_pb2_grpc"),
            folder=folder,
        )
    finally:
        sys.path.remove(str(folder))


class Stack:
    """A scripted upstream, a hub with a gRPC sink, and channels to it."""

    def __init__(self, stubs: SimpleNamespace) -> None:
        self.stubs = stubs
        self.upstream = Upstream()
        self.failures: list[BaseException] = []
        self.hub: HubService | None = None
        self.sink: GrpcSink
        self._open: list[Any] = []
        self._is_closed = False

    def start(
        self, *, access: Access | None = None, settings: GrpcSettings | None = None, url: str = NOWHERE, **more: Any
    ) -> Stack:
        def build(hub: HubService) -> GrpcSink:
            self.sink = GrpcSink(
                hub,
                access=access or Access("127.0.0.1"),
                statuses=lambda: hub.status().feeds,
                settings=settings or GrpcSettings(port=0),
                **more,
            )
            return self.sink

        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            accounts=[AccountSettings(environment="paper", access=open_venue(KEY, SECRET, url=url))] if url else [],
            sinks=[build],
            rng=random.Random(1),
            epoch="e1",
            timing=QUICK,
            on_failure=self.failures.append,
        )
        self.hub.start()
        return self

    def channel(self) -> grpc.Channel:
        channel = grpc.insecure_channel(f"127.0.0.1:{self.sink.port}")
        self._open.append(channel)
        return channel

    def client(self) -> Any:
        return self.stubs.services.StreamProxyServiceStub(self.channel())

    def call(self, method: str, *, metadata: tuple[tuple[str, str], ...] = (), **request: Any) -> Any:
        """Return a call whose client has been let in: what it wants is held."""
        message = getattr(self.stubs.messages, f"{method}Request")(**request)
        call = getattr(self.client(), method)(message, metadata=metadata, timeout=DEADLINE_S)
        call.initial_metadata()
        return call

    def held(self, channel: str, path: str = STOCKS) -> set[str]:
        names: set[str] = set()
        for session in self.upstream.open:
            for message in session.messages if session.path == path else ():
                given = message.get(channel, ())
                names = names.union(given) if message["action"] == "subscribe" else names.difference(given)
        return names

    def wait_held(self, channel: str, symbols: set[str], path: str = STOCKS) -> None:
        wait_until(lambda: self.held(channel, path) == symbols, f"{symbols} on {channel} upstream")

    def publish_orders(self, orders: list[dict[str, Any]]) -> None:
        """Let updates come from the account."""
        hub = self.hub
        assert hub is not None
        done = threading.Event()

        def publish() -> None:
            for number, data in enumerate(orders):
                symbol, event_id = data["order"]["symbol"], f"id{number}"
                hub.bus.publish("orders.paper", "orders", symbol, data, ts_recv_ns=1, event_id=event_id)
            done.set()

        hub._call_soon(publish)
        assert done.wait(DEADLINE_S)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for channel in self._open:
            channel.close()
        if self.hub is not None:
            self.hub.stop()
        self.upstream.close()
        assert not self.failures
        wait_until(
            lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("hub")],
            "no thread is left",
        )


def stamp() -> Any:
    return msgpack.Timestamp(1_704_205_800, 123_456_789)


def make_trade(symbol: str, number: int, **more: Any) -> dict[str, Any]:
    return {"T": "t", "S": symbol, "i": number, "x": "V", "p": 100.5, "s": 3, "c": ["@"], "z": "C", "t": TIME, **more}


def make_quote(symbol: str, number: float) -> dict[str, Any]:
    item = {"T": "q", "S": symbol, "bx": "V", "bp": number, "bs": 1, "ax": "N", "ap": number + 1.0, "as": 2}
    return item | {"c": ["R"], "z": "C", "t": TIME}


def make_order(order_id: str, symbol: str = "SPY", event: str = "new", **more: Any) -> dict[str, Any]:
    order = {"id": order_id, "symbol": symbol, "status": event, "side": "buy", "type": "stop_limit"}
    return {"event": event, "timestamp": TIME, "order": order | {"time_in_force": "gtc", "qty": "2"}, **more}


def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return caught.value.code(), caught.value.details()


def ask_status(stack: Stack, client: Any) -> Any:
    request = stack.stubs.messages.GetConnectionStatusRequest()
    return client.GetConnectionStatus(request, timeout=DEADLINE_S).status
