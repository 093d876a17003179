"""A program that trades over NATS: it sends an order, waits for its result, cancels it, and sends again if in doubt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client

from dry_work.proto.tradesvc.v0 import tradesvc_pb2 as pb

RESULT_WITHIN_S = 3.0  # before it sends again
PAUSE_S = 0.1
RETRY_S, MOST_CANCELS = 0.5, 30
_TAKEN = frozenset(("accepted", "duplicate"))


class NatsTrader:
    """Orders one after another, each with a name of its own.

    Attributes:
        results: the outcomes that came, by action and name.
        sends: how often each was sent.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.number = 0
        self.done = 0  # names whose order is canceled
        self.results: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self.sends: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()  # results of a cancel that was sent again, by name
        self.may_send = threading.Event()
        self.may_send.set()
        self._changed = asyncio.Event()
        self._killed_at: set[int] = set()  # the number at the time
        self._open: tuple[str, str] | None = None  # what waits for its result

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing waits for a result."""
        return self._open is None and not self.may_send.is_set()

    async def run(self, rng: random.Random) -> None:
        """Trade, over one connection after the other, until cancelled."""
        while True:
            with contextlib.suppress(OSError, TimeoutError, nats.errors.Error):
                await self._trade()
            await asyncio.sleep(rng.uniform(0.05, 0.1))

    async def _trade(self) -> None:
        client = Client()

        async def ignore(_: Exception) -> None:
            pass

        try:
            await client.connect(
                f"nats://127.0.0.1:{self._port}", allow_reconnect=False, connect_timeout=5, error_cb=ignore
            )
            await client.subscribe("nalpaca.data.v0.results.*", cb=self._take)
            await client.flush()
            while True:
                if self._open is None:
                    await asyncio.sleep(PAUSE_S)
                    if not self.may_send.is_set():
                        continue
                    self.number += 1
                    self._open = ("order", f"nats-{self.number}")
                await self._send(client, *self._open)
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await client.close()

    async def _send(self, client: Client, action: str, name: str) -> None:
        """Send once; when its result comes in time, go on with what follows."""
        self._changed.clear()
        self.sends[action, name] += 1
        # Without an id from the second time on: the stream would swallow it.
        headers = {"Nats-Msg-Id": name} if action == "order" and self.sends[action, name] == 1 else None
        subject = f"nalpaca.action.v0.{'orders' if action == 'order' else 'cancel'}.{name}"
        await client.jetstream(timeout=2).publish(subject, build_order() if action == "order" else b"", headers=headers)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESULT_WITHIN_S):
                while len(self.results[action, name]) <= self.refused[name] * (action == "cancel"):
                    await self._changed.wait()
                    self._changed.clear()
        outcomes = self.results[action, name]
        if action == "cancel" and outcomes and not _TAKEN.intersection(outcomes) and len(outcomes) < MOST_CANCELS:
            await asyncio.sleep(RETRY_S)  # the venue may have been out of order
            self.refused[name] = len(outcomes)
            return
        if outcomes:
            self._open = ("cancel", name) if action == "order" else None
            self.done += action == "cancel"

    async def _take(self, message: Any) -> None:
        result = json.loads(message.data)
        name = str(result.get("client_order_id") or result.get("id"))
        if name.startswith("nats-"):
            self.results[result["action"], name].append(result["outcome"])
            self._changed.set()

    def check(self, orders: Iterable[Mapping[str, Any]]) -> list[str]:
        """Return what is wrong: every order is at the exchange once, canceled, with one outcome that says so."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for order in orders:
            found[str(order["client_order_id"])].append(str(order["status"]))
        wrong = []
        for number in range(1, self.done + 1):
            name = f"nats-{number}"
            if found[name] != ["canceled"]:
                wrong.append(f"{name}: at the exchange {found[name]} instead of one canceled order")
            for action in ("order", "cancel"):
                outcomes, sends = self.results[action, name], self.sends[action, name]
                if not _TAKEN.intersection(outcomes) and action == "order":
                    wrong.append(f"{action} {name}: {outcomes}, though the exchange has it")
                if outcomes.count("accepted") > 1 and action == "order":
                    wrong.append(f"{action} {name}: accepted {outcomes.count('accepted')} times")
                if len(outcomes) > sends and sends == 1 and not self._is_excused(number):
                    wrong.append(f"{action} {name}: sent once, with {len(outcomes)} results: {outcomes}")
        return wrong

    def excuse(self) -> None:
        """Note that a part was killed: a result that was told before may be told again, as a duplicate."""
        self._killed_at.add(self.number)

    def _is_excused(self, number: int) -> bool:
        return any(abs(number - other) <= 1 for other in self._killed_at)


def build_order() -> bytes:
    """Return a limit order that rests."""
    order = pb.Trade(
        symbol="BTC/USD",
        qty="0.001",
        side=pb.SIDE_BUY,
        order_type=pb.ORDER_TYPE_LIMIT,
        tif=pb.TIME_IN_FORCE_GTC,
        limit_price="20000",
    )
    data: bytes = order.SerializeToString()
    return data
