"""A stand-in for Alpaca's market data, as a process: so many items a second to whoever is connected.

`python -m benchmarks.hub_upstream KIND RATE` prints its port; KIND is `t` for trades or `b` for bars. Every item's time
is the moment at which its frame left, in nanoseconds, so that whoever gets it knows how old it is.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import picows
from picows import WSMsgType

SYMBOLS = tuple(f"S{first}{second}" for first in "ABCDEFGHIJ" for second in "ABCDEFGHIJ")
ITEMS_A_FRAME = 10
_SYMBOL, _TIME = b"SSYMBOLS", b"TTIMET"
_ITEMS: dict[str, dict[str, object]] = {
    "t": {"T": "t", "S": "SSYMBOLS", "i": 52983525029461, "x": "V", "p": 150.25, "s": 100, "c": ["@"], "z": "C"},
    "b": {"T": "b", "S": "SSYMBOLS", "o": 150.25, "h": 150.5, "l": 150, "c": 150.25, "v": 100, "n": 3, "vw": 150.3},
}


def format_ns(time_ns: int) -> str:
    """Return a time as Alpaca writes it, with nine digits of a second."""
    second, rest = divmod(time_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)) + f".{rest:09d}Z"


class _Client(picows.WSListener):
    """A hub, or a broadcaster, that is connected."""

    def __init__(self, clients: set[_Client]) -> None:
        self._clients = clients
        self.transport: Any = None

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport
        self._say({"T": "success", "msg": "connected"})

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()
        if frame.msg_type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return
        asked = json.loads(frame.get_payload_as_bytes())
        if asked["action"] == "auth":
            self._say({"T": "success", "msg": "authenticated"})
        else:
            self._say({"T": "subscription", **{name: value for name, value in asked.items() if name != "action"}})
            self._clients.add(self)

    def on_ws_disconnected(self, transport: Any) -> None:
        self._clients.discard(self)

    def _say(self, item: dict[str, Any]) -> None:
        self.transport.send(WSMsgType.TEXT, json.dumps([item]).encode())


async def serve(kind: str, rate: int) -> None:
    """Serve until the process is ended."""
    clients: set[_Client] = set()

    def admit(request: picows.WSUpgradeRequest) -> _Client | None:
        return _Client(clients) if request.path.startswith(b"/v2/") else None

    server = await picows.ws_create_server(admit, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    item = json.dumps({**_ITEMS[kind], "t": "TTIMET"}, separators=(",", ":")).encode()
    parts = [item.replace(_SYMBOL, symbol.encode()) for symbol in SYMBOLS]
    frames = [
        b"[" + b",".join(parts[start : start + ITEMS_A_FRAME]) + b"]" for start in range(0, len(parts), ITEMS_A_FRAME)
    ]
    interval_s = ITEMS_A_FRAME / rate
    due_s = time.monotonic()
    number = 0
    while True:
        due_s += interval_s
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        else:
            await asyncio.sleep(0)
            due_s = max(due_s, time.monotonic() - 0.1)  # what a stall of this process delayed is not made up for
        frame = frames[number % len(frames)].replace(_TIME, format_ns(time.time_ns()).encode())
        number += 1
        for client in clients:
            client.transport.send(WSMsgType.TEXT, frame)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
