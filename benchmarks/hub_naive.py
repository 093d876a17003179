"""What one writes in an evening: Alpaca's stream to many clients with asyncio and websockets.

`python -m benchmarks.hub_naive UPSTREAM_URL COUNT` prints its port. Each item is encoded and sent for each client. It
is spared what it would lose its connections by when it is too slow: the upstream is opened once COUNT clients have
subscribed, and nobody is pinged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

_CLIENTS: dict[ServerConnection, set[str]] = {}
_CHANGED = asyncio.Event()


async def talk(client: ServerConnection) -> None:
    """Answer one client."""
    await client.send(json.dumps([{"T": "success", "msg": "connected"}]))
    try:
        async for message in client:
            asked = json.loads(message)
            if asked["action"] == "auth":
                await client.send(json.dumps([{"T": "success", "msg": "authenticated"}]))
            else:
                await client.send(json.dumps([{"T": "subscription", "trades": asked["trades"]}]))
                _CLIENTS[client] = set(asked["trades"])
                _CHANGED.set()
    except ConnectionClosed:
        pass
    finally:
        _CLIENTS.pop(client, None)


async def run(url: str, count: int) -> None:
    """Serve until the process is ended."""
    async with serve(talk, "127.0.0.1", 0, max_queue=None, ping_interval=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        while len(_CLIENTS) < count:
            _CHANGED.clear()
            await _CHANGED.wait()
        async with connect(f"{url}/v2/iex", ping_interval=None) as upstream:
            await upstream.send(json.dumps({"action": "auth", "key": "k", "secret": "s"}))
            await upstream.send(json.dumps({"action": "subscribe", "trades": ["*"]}))
            async for frame in upstream:
                for item in json.loads(frame):
                    if item["T"] != "t":
                        continue
                    for client, symbols in list(_CLIENTS.items()):
                        if item["S"] in symbols:
                            with contextlib.suppress(ConnectionClosed):
                                await client.send(json.dumps([item]))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
