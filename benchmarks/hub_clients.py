"""Clients of a hub, as a process: they count what they get, and how old it is.

`python -m benchmarks.hub_clients TRANSPORT PORT COUNT SHARE` says `ready` once each of COUNT clients has subscribed its
SHARE of the symbols; then it takes a word a line: `begin` counts anew, `end` answers with the figures as JSON. They do
as little as they can for each message, since they share the machine with the hub.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks.hub_upstream import SYMBOLS

AT_A_TIME = 50  # clients that connect
_JSON_TIME = re.compile(rb'"(?:t|at)": ?"\d{4}-\d\d-\d\dT\d\d:(\d\d):(\d\d)\.(\d{9})')


class Tally(msgspec.Struct):
    """What all clients of this process got since `begin`."""

    delivered: int = 0
    ages_ns: list[tuple[int, int]] = []  # of the oldest item of a frame, and the items of it
    began_s: float = 0.0
    began_cpu_s: float = 0.0

    def begin(self) -> None:
        """Count anew."""
        self.delivered, self.ages_ns = 0, []
        self.began_s, self.began_cpu_s = time.monotonic(), time.process_time()

    def add(self, items: int, age_ns: int) -> None:
        """Take a frame."""
        self.delivered += items
        self.ages_ns.append((age_ns, items))

    def measure(self) -> dict[str, float]:
        """Return the figures: ages in milliseconds, by deliveries."""
        self.ages_ns.sort()
        return {
            "seconds": time.monotonic() - self.began_s,
            "cpu_s": time.process_time() - self.began_cpu_s,
            "delivered": self.delivered,
            "p50_ms": self._at(0.5),
            "p99_ms": self._at(0.99),
        }

    def _at(self, share: float) -> float:
        left = share * sum(items for _, items in self.ages_ns)
        for age_ns, items in self.ages_ns:
            left -= items
            if left <= 0:
                return age_ns / 1e6
        return 0.0


def choose_symbols(client: int, share: int) -> list[str]:
    """Return the symbols of a client: `share` neighbours, another tenth for each client."""
    start = client * share % len(SYMBOLS)
    return [SYMBOLS[(start + number) % len(SYMBOLS)] for number in range(share)]


def read_json_age(payload: bytes) -> int:
    """Return how many nanoseconds ago the first time in `payload` was."""
    found = _JSON_TIME.search(payload)
    if found is None:
        raise ValueError(f"there is no time in {payload[:200]!r}")
    minutes, seconds, ns = map(int, found.groups())
    return (time.time_ns() - (minutes * 60 + seconds) * 10**9 - ns) % (3600 * 10**9)


def read_msgpack_age(payload: bytes) -> int:
    """Return how many nanoseconds ago the first time in `payload` was."""
    at = payload.index(b"\xa1t\xd7\xff") + 4
    value = int.from_bytes(payload[at : at + 8], "big")
    return time.time_ns() - (value & ((1 << 34) - 1)) * 10**9 - (value >> 34)


def read_nats_age(data: bytes) -> int:
    """Return how many nanoseconds ago the bar in the first message of `data` was."""
    from dry_work.proto.stream.v0 import stream_pb2

    head, _, rest = data.partition(b"\r\n")
    payload = rest[: int(head.rsplit(b" ", 1)[1])]
    return time.time_ns() - stream_pb2.Bar.FromString(payload).timestamp.ToNanoseconds()


async def open_websockets(port: int, count: int, share: int, tally: Tally, *, binary: bool) -> list[Any]:
    """Open clients of the hub's WebSocket."""
    import picows
    from picows import WSMsgType

    mark, read = (b"\xa1T\xa1t", read_msgpack_age) if binary else (b'"T":"t"', read_json_age)
    encode: Callable[[Any], bytes] = msgspec.msgpack.encode if binary else msgspec.json.encode
    waiting = count
    all_ready = asyncio.Event()

    class Client(picows.WSListener):
        def __init__(self, symbols: list[str]) -> None:
            self.symbols = symbols
            self.said = 0

        def on_ws_connected(self, transport: Any) -> None:
            self.kind = WSMsgType.BINARY if binary else WSMsgType.TEXT
            transport.send(self.kind, encode({"action": "auth", "key": "k", "secret": "s"}))
            transport.send(self.kind, encode({"action": "subscribe", "trades": self.symbols}))

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            nonlocal waiting
            payload = frame.get_payload_as_bytes()
            # A naive broadcaster writes a space after a colon.
            items = payload.count(mark) or (0 if binary else payload.count(b'"T": "t"'))
            if items:
                tally.add(items, read(payload))
            elif self.said < 3:
                self.said += 1
                if self.said == 3:  # connected, authenticated, subscription
                    waiting -= 1
                    if not waiting:
                        all_ready.set()

    headers = {"Content-Type": "application/msgpack"} if binary else {}

    async def open_client(number: int) -> Any:
        client = Client(choose_symbols(number, share))
        transport, _ = await picows.ws_connect(lambda: client, f"ws://127.0.0.1:{port}/v2/iex", extra_headers=headers)
        return transport

    found: list[Any] = []
    while len(found) < count:  # some at a time, for those that are there have traffic already
        numbers = range(len(found), min(len(found) + AT_A_TIME, count))
        found += await asyncio.gather(*map(open_client, numbers))
    await asyncio.wait_for(all_ready.wait(), 60)
    return found


async def open_calls(port: int, count: int, share: int, tally: Tally) -> list[Any]:
    """Open calls of the hub's gRPC, ten to a connection."""
    import grpc

    from dry_work.proto.cream.v1 import stream_proxy_pb2

    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.use_local_subchannel_pool", 1),))
        for _ in range(-(-count // 10))
    ]

    async def read(number: int) -> None:
        call = channels[number // 10].unary_stream(
            "/cream.v1.StreamProxyService/StreamTrades",
            request_serializer=stream_proxy_pb2.StreamTradesRequest.SerializeToString,
        )(stream_proxy_pb2.StreamTradesRequest(symbols=choose_symbols(number, share)))
        await call.initial_metadata()
        waiting.discard(number)
        async for message in call:
            at = stream_proxy_pb2.StreamTradesResponse.FromString(message).trade.timestamp
            tally.add(1, time.time_ns() - at.ToNanoseconds())

    waiting = set(range(count))
    tasks = [asyncio.create_task(read(number)) for number in range(count)]
    await _wait_for(lambda: not waiting)
    return [*channels, *tasks]


class _Lines(asyncio.Protocol):
    """A client of a server that speaks in lines: it says its words and counts what comes back."""

    def __init__(self, words: bytes, mark: bytes, read: Callable[[bytes], int], ready: bytes, tally: Tally) -> None:
        self._words, self._mark, self._read, self._ready, self._tally = words, mark, read, ready, tally
        self.is_ready = False
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        transport.write(self._words)

    def data_received(self, data: bytes) -> None:
        if not self.is_ready:
            self._rest += data
            self.is_ready = self._ready in self._rest
            return
        items = data.count(self._mark)
        if items:
            try:
                self._tally.add(items, self._read(data[data.index(self._mark) :]))
            except (ValueError, IndexError):  # the first message is cut off within its time
                self._tally.delivered += items


async def open_lines(transport: str, port: int, count: int, share: int, tally: Tally) -> list[Any]:
    """Open plain clients of NATS or Redis."""
    loop = asyncio.get_running_loop()
    found = []
    for number in range(count):
        symbols = choose_symbols(number, share)
        if transport == "nats":
            subscribes = "".join(f"SUB nalpaca.data.v0.stocks.{name} {n}\r\n" for n, name in enumerate(symbols))
            words = 'CONNECT {"verbose":false}\r\n' + subscribes + "PING\r\n"
            client = _Lines(words.encode(), b"MSG ", read_nats_age, b"PONG", tally)
        else:
            words = "SUBSCRIBE " + " ".join(f"price:{name}" for name in symbols) + "\r\n"
            last = f"price:{symbols[-1]}".encode()
            client = _Lines(words.encode(), b'"price_update"', read_json_age, last, tally)
        connection, _ = await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        found.append((connection, client))
    await _wait_for(lambda: all(client.is_ready for _, client in found))
    return found


async def _wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("the clients were not served in time")
        await asyncio.sleep(0.01)


async def serve(transport: str, port: int, count: int, share: int) -> None:
    """Open the clients and take words."""
    tally = Tally()
    if transport in ("json", "msgpack"):
        held = await open_websockets(port, count, share, tally, binary=transport == "msgpack")
    elif transport == "grpc":
        held = await open_calls(port, count, share, tally)
    else:
        held = await open_lines(transport, port, count, share, tally)
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while word := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if word == "begin":
            tally.begin()
        elif word == "end":
            print(json.dumps(tally.measure()), flush=True)
    del held


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
