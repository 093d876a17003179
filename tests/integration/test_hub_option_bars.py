"""The hub's bars of synthetic options, while connections are lost, are those of the exchange's history."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.choice import build_transport
from dry_work.feeds.hub_source import HubMarketSource
from dry_work.feeds.source import ReaderSettings
from dry_work.hub.access import Access
from dry_work.hub.service import FeedSettings as UpstreamFeed
from dry_work.hub.service import HubService
from dry_work.settings import FeedSettings
from tests.ports import find_free_port

from .feed_stack import QUICK, Reader
from .tcp_relay import Relay

CALL, PUT = "SPY240621C00550000", "SPY240621P00525000"
KEYS = {"APCA-API-KEY-ID": "me", "APCA-API-SECRET-KEY": "any"}
MINUTES = 12
DEADLINE_S = 60.0


class Stack:
    """An exchange with synthetic options, the hub, and a relay before the exchange for the connection of options."""

    def __init__(self) -> None:
        pytest.importorskip("picows", reason="picows is not installed")
        from dry_work.hub.sinks.websocket import WebSocketSink

        self.exchange = ExchangeServer(synthetic_day(["SPY"], minutes=MINUTES), rules="alpaca", consumers=1)
        self.exchange.start()
        self.relay = Relay(self.exchange.port)
        self.port = find_free_port()
        self.hub = HubService(
            self.exchange.stream_url,
            key="me",
            secret="any",
            sinks=[lambda hub: WebSocketSink(hub, access=Access("127.0.0.1"), port=self.port)],
            feeds={"options": UpstreamFeed(url=f"ws://127.0.0.1:{self.relay.port}")},
            rng=random.Random(1),
            timing=QUICK,
        )
        self.hub.start()
        self.readers: list[Reader] = []

    def read(self, *symbols: str) -> Reader:
        transport = build_transport(
            FeedSettings(name="ws", address=f"ws://127.0.0.1:{self.port}"), symbols=symbols, client="reader"
        )
        settings = ReaderSettings(watermarks=True, grace_s=DEADLINE_S)
        reader = Reader(HubMarketSource(transport, symbols=symbols, settings=settings, rng=random.Random(1)))
        self.readers.append(reader)
        return reader.start()

    def call(self, method: str, path: str, **body: Any) -> requests.Response:
        return requests.request(method, self.exchange.url + path, json=body, headers=KEYS, timeout=DEADLINE_S)

    def history(self, symbol: str) -> list[list[float]]:
        path = "/v1beta1/options/bars" if symbol != "SPY" else "/v2/stocks/bars"
        query = {"symbols": symbol, "timeframe": "1Min", "start": "2024-06-11T00:00:00Z"}
        answer = requests.get(self.exchange.url + path, params=query, headers=KEYS, timeout=DEADLINE_S)
        return [[row[name] for name in "ohlcv"] for row in answer.json()["bars"][symbol]]

    def close(self) -> None:
        for reader in self.readers:
            reader.source.stop()
        self.hub.stop()
        self.relay.close()
        self.exchange.stop()


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


@pytest.mark.parametrize("symbols", [("SPY", CALL, PUT), (CALL,)], ids=["with-the-stock", "alone"])
def test_lost_connections_change_nothing_in_the_bars_of_a_lock_step_session(
    stack: Stack, symbols: tuple[str, ...]
) -> None:
    reader = stack.read(*symbols)
    refused = stack.call("POST", "/dry-work/v1/consumers", consumer="c", symbols=["SPY240621C00550001"])
    assert (refused.status_code, refused.json()["message"]) == (422, "asset not found for SPY240621C00550001")
    assert stack.call("POST", "/dry-work/v1/consumers", consumer="c", symbols=list(symbols)).status_code == 200
    found: dict[str, list[list[float]]] = {symbol: [] for symbol in symbols}
    for number in range(1, MINUTES + 1):
        piece = reader.next_slice()
        assert (piece.number, [bar.symbol for bar in piece.bars]) == (number, list(symbols))
        for bar in piece.bars:
            assert bar.end_ns == piece.end_ns
            found[bar.symbol].append([bar.open, bar.high, bar.low, bar.close, bar.volume])
        if number % 4 == 2:
            stack.relay.cut()
            stack.relay.restore()
        assert stack.call("POST", f"/dry-work/v1/slices/{number}/done", consumer="c", orders=0).status_code == 200
    assert piece.last
    assert found == {symbol: stack.history(symbol) for symbol in symbols}
    assert reader.count("late_bars") == 0


def test_who_takes_the_trades_of_all_options_keeps_no_agent_from_its_bars(stack: Stack) -> None:
    stack.hub.hold("greedy", [("options", "trades", "*")])
    far = "SPY240621C00700000"  # not among those near the price, for which `*` stands otherwise
    reader = stack.read("SPY", far)
    assert stack.call("POST", "/dry-work/v1/consumers", consumer="c", symbols=["SPY", far]).status_code == 200
    for number in range(1, 4):
        assert [bar.symbol for bar in reader.next_slice().bars] == ["SPY", far]
        stack.call("POST", f"/dry-work/v1/slices/{number}/done", consumer="c", orders=0)
