"""Clients that mean no good, on every interface at once: slow, dead, malformed, flooding. Others must not notice."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import socket
import struct
import time
import urllib.request
from collections import Counter
from typing import Any

import grpc
import nats
import redis

from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from tests.faults.hub_clients import BARS, ORDERS, TRADES
from tests.faults.hub_world import World, until

FLOOD_SYMBOL = "QQQ"  # only the slow ones want it
FRAMES, ITEMS = 150, 400
MEMORY_MB = 150.0  # what all of them together may cost the hub
NOISE = 200  # frames, connections or messages of each kind


class RawSocket:
    """A WebSocket by hand: it sends what no library would, and reads when it likes."""

    def __init__(self, port: int, path: str, *, buffer_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        key = base64.b64encode(b"0123456789abcdef").decode()
        lines = (
            f"GET {path} HTTP/1.1", "Host: hub", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "",
        )  # fmt: skip
        self.socket.sendall("\r\n".join(lines).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(1)
        assert answer.startswith(b"HTTP/1.1 101"), answer

    def send(self, payload: bytes, *, opcode: int = 1, is_last: bool = True, length: int | None = None) -> None:
        """Send a frame; `length` is what it says of itself, when that is not true."""
        size = len(payload) if length is None else length
        head = bytes([(0x80 if is_last else 0) | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65_536:
            head += bytes([0x80 | 126]) + struct.pack(">H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", size)
        self.socket.sendall(head + bytes(4) + payload)

    def say(self, message: dict[str, Any]) -> None:
        self.send(json.dumps(message).encode())

    def vanish(self) -> None:
        """Close without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Attack:
    """All of them, against one world.

    Args:
        size: share of the usual noise.
    """

    def __init__(self, world: World, *, size: float = 1.0) -> None:
        self._world = world
        self._noise = max(5, round(NOISE * size))
        self._frames = max(60, round(FRAMES * size))
        self._rng = random.Random(1)
        self._open: list[Any] = []
        self._calls: list[Any] = []  # they end with the last reference to them

    def run(self) -> list[str]:
        """Attack; return what is wrong afterwards."""
        world = self._world
        begun_mb = world.memory_mb()
        before = {x.name: (x.sessions, x.copies.total()) for x in world.listeners}
        first = world.market.number + 1
        wrong: list[str] = []
        try:
            self._open_slow()
            self._attack_websocket()
            self._attack_grpc()
            self._attack_nats()
            self._attack_redis()
            self._attack_health()
            self._flood()
            wrong += self._check_dropped()
            wrong += self._check_unknown()
            mark = {"trade": world.market.number, "bar": world.market.bar, "order": world.orders.number}
            world.wait_live(world.listeners, **mark)
            grown_mb = world.memory_mb() - begun_mb
            if grown_mb > MEMORY_MB:
                wrong.append(f"the hub's memory grew by {grown_mb:.0f} MB, more than {MEMORY_MB:.0f}")
        finally:
            for thing in self._open:
                with contextlib.suppress(OSError):
                    thing.close()
        wrong += world.settle_orders(world.of(ORDERS))
        wrong += self._check_others(before, first)
        world.go_on()
        return wrong

    # --- slow

    def _open_slow(self) -> None:
        """Subscribe to what is to be flooded, and never read."""
        world = self._world
        for _ in range(3):
            slow = RawSocket(world.at.websocket, "/v2/iex", buffer_bytes=4_096)
            slow.say({"action": "auth", "key": "k", "secret": "s"})
            slow.say({"action": "subscribe", "quotes": [FLOOD_SYMBOL], "trades": [FLOOD_SYMBOL]})
            self._open.append(slow.socket)
            orders = RawSocket(world.at.websocket, "/paper", buffer_bytes=4_096)
            orders.say({"action": "auth", "key": "k", "secret": "s"})
            self._open.append(orders.socket)
            channel = grpc.insecure_channel(
                f"127.0.0.1:{world.at.grpc}", options=[("grpc.use_local_subchannel_pool", 1)]
            )
            call = channel.unary_stream(
                "/cream.v1.StreamProxyService/StreamTrades",
                request_serializer=cream.StreamTradesRequest.SerializeToString,
                response_deserializer=cream.StreamTradesResponse.FromString,
            )(cream.StreamTradesRequest(symbols=[FLOOD_SYMBOL]))
            call.initial_metadata()  # the flood is held; its responses are not read
            self._calls.append(call)
            self._open.append(channel)
        stalled = socket.create_connection(("127.0.0.1", world.redis.port))
        stalled.sendall(b"PSUBSCRIBE *\r\n")
        self._open.append(stalled)

    def _flood(self) -> None:
        """Let the upstream send more of a symbol than anybody who does not read may keep."""
        upstream = self._world.upstream
        number = 0
        for _ in range(self._frames):
            items = []
            for _ in range(ITEMS):
                number += 1
                item = {"T": "t", "S": FLOOD_SYMBOL, "i": number, "x": "V", "p": 1.5, "s": 1, "c": ["@"], "z": "C"}
                items.append({**item, "t": "2024-06-11T14:30:00.123456789Z", "pad": "x" * 200})
            upstream.send(items)

    def _check_dropped(self) -> list[str]:
        """Return whether the hub counts what the slow ones have lost."""
        with contextlib.suppress(AssertionError):
            until(lambda: self._read_metric("alpaca_proxy_messages_dropped_total") > 0, "drops are counted", 15.0)
            return []
        return ["nothing was counted as dropped"]

    def _read_metric(self, name: str) -> float:
        url = f"http://127.0.0.1:{self._world.ports['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    # --- malformed, dead, flooding

    def _attack_websocket(self) -> None:
        port, rng = self._world.at.websocket, self._rng
        for number in range(self._noise):
            with contextlib.suppress(OSError, AssertionError):
                path = rng.choice(("/v2/iex", "/stream", "/paper", "/v2/iex?hub=1", "/v1beta1/news"))
                client = RawSocket(port, path)
                if number % 2:
                    client.say({"action": "auth", "key": "k", "secret": "s"})
                kind = number % 7
                if kind == 0:
                    client.send(os.urandom(rng.randrange(1, 300)), opcode=rng.choice((1, 2)))
                elif kind == 1:
                    client.send(b"{", is_last=False)
                    client.send(b"}" * 100, opcode=rng.choice((0, 2, 11)))
                elif kind == 2:
                    client.send(b"x", length=2**40)
                elif kind == 3:
                    for _ in range(50):
                        client.say({"action": "subscribe", "trades": [f"Q{rng.randrange(100)}"]})
                elif kind == 4:
                    for _ in range(100):
                        client.send(b"ping", opcode=9)
                elif kind == 5:
                    client.say({"action": "subscribe", "quotes": [f"Z{index}" for index in range(500)], "since": "no"})
                else:
                    client.socket.sendall(os.urandom(64))
                client.vanish()
        self._send_garbage(port)

    def _attack_grpc(self) -> None:
        port = self._world.at.grpc
        self._send_garbage(port)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for number in range(self._noise):
                method = self._rng.choice(("StreamTrades", "StreamBars", "StreamOrderUpdates", "GetConnectionStatus"))
                send = channel.unary_stream(f"/cream.v1.StreamProxyService/{method}")
                metadata = [("x-dry-work-offset", "x" * number), ("x-dry-work-epoch", "e")] if number % 3 else []
                call = send(os.urandom(number % 50), metadata=metadata, timeout=20)
                if number % 2:
                    call.cancel()
                else:
                    with contextlib.suppress(grpc.RpcError):
                        if method != "GetConnectionStatus":
                            call.cancel()
                        list(call)

    def _attack_nats(self) -> None:
        world, rng, noise = self._world, self._rng, self._noise

        async def attack() -> Counter[str]:
            outcomes: Counter[str] = Counter()
            client = await nats.connect(world.nats.url, allow_reconnect=False)
            results = await client.subscribe("nalpaca.data.v0.results.*")
            js = client.jetstream()
            for number in range(noise):
                size = rng.choice((0, 1, 30, 2_000))
                token = f"hostile-{number}"
                await js.publish(f"nalpaca.action.v0.orders.{token}", os.urandom(size))
            await js.publish("nalpaca.action.v0.cancel.hostile-none", b"")
            await js.publish("nalpaca.action.v0.nonsense", b"x" * 1_000)
            while outcomes.total() < noise:
                result = json.loads((await results.next_msg(timeout=30)).data)
                outcomes[result["outcome"]] += str(result.get("client_order_id")).startswith("hostile-")
            await client.close()
            return outcomes

        outcomes = world.loop.run(attack(), 120)
        assert +outcomes == {"refused": noise}, outcomes

    def _attack_redis(self) -> None:
        rng = self._rng
        with redis.Redis(port=self._world.redis.port) as client:
            for number in range(self._noise * 5):
                body: Any = rng.choice((
                    os.urandom(50),
                    b"[" * 5_000,
                    json.dumps({"action": "register", "symbols": ["X" * 500]}),
                    json.dumps({"action": "register", "symbols": [f"H{index}" for index in range(200)]}),
                    json.dumps({"action": "unregister", "symbols": ["SPY"], "client_id": f"nobody-{number}"}),
                    json.dumps({"action": "register", "account_id": "not-mine", "symbols": []}),
                    json.dumps({"action": "sell", "symbols": ["SPY"]}),
                ))  # fmt: skip
                client.publish(rng.choice(("broker:registration", "BROKER_REGISTRATION")), body)
        self._send_garbage(self._world.redis.port)

    def _attack_health(self) -> None:
        for name in ("health", "metrics"):
            self._send_garbage(self._world.ports[name])

    def _send_garbage(self, port: int) -> None:
        """Send what is no request of any kind; some connections stay, and say nothing more."""
        for number in range(20):
            with contextlib.suppress(OSError):
                client = socket.create_connection(("127.0.0.1", port), timeout=20)
                client.sendall((b"", b"GET / HTTP/1.1\r\nX: ", os.urandom(500), b"\x16\x03\x01")[number % 4])
                if number % 2:
                    client.close()
                else:
                    self._open.append(client)

    # --- the others

    def _check_unknown(self) -> list[str]:
        """Return whether what is not known yet gets through."""
        world = self._world
        unknown = RawSocket(world.at.websocket, "/v2/iex")
        unknown.say({"action": "auth", "key": "k", "secret": "s"})
        unknown.say({"action": "subscribe", "statuses": ["SPY"]})
        received = b""
        end_s = time.monotonic() + 20
        while b'"statuses":["SPY"]' not in received and time.monotonic() < end_s:
            received += unknown.socket.recv(65_536)
        world.upstream.send([{"T": "zz", "S": "SPY", "future": {"a": [1]}}])
        while b'"future":{"a":[1]}' not in received and time.monotonic() < end_s:
            received += unknown.socket.recv(65_536)
        unknown.socket.close()
        return [] if b'"future":{"a":[1]}' in received else ["an item of an unknown type did not get through"]

    def _check_others(self, before: dict[str, tuple[int, int]], first: int) -> list[str]:
        world, wrong = self._world, []
        last = world.market.number
        for kind, begin, end in ((TRADES, first, last), (BARS, first // 5 + 1, world.market.bar)):
            listeners = world.of(kind)
            with contextlib.suppress(AssertionError):
                until(lambda listeners=listeners, end=end: all(end in x.numbers for x in listeners), "all", 10.0)  # type: ignore[misc]
            for listener in listeners:
                missing = [number for number in range(begin, end + 1) if number not in listener.numbers]
                if missing:
                    wrong.append(f"{listener.name}: {len(missing)} {kind} lost, such as {missing[0]}")
        for listener in world.listeners:
            sessions, copies = before[listener.name]
            if listener.sessions != sessions:
                wrong.append(f"{listener.name}: its connection was lost: {listener.losses[-1:]}")
            if listener.copies.total() != copies:
                wrong.append(f"{listener.name}: {listener.copies.total() - copies} came twice")
        return wrong
