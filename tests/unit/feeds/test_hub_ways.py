"""What the ways to the hub have in common."""

from __future__ import annotations

from dry_work.feeds.grpc import GrpcTransport
from dry_work.feeds.hub_link import CRYPTO, STOCKS
from dry_work.feeds.nats import NatsTransport
from dry_work.feeds.redis import RedisTransport
from dry_work.feeds.websocket import WebSocketTransport
from dry_work.settings import FeedSettings

SYMBOLS = ("SPY", "BTC/USD")


def test_no_way_shows_its_secret() -> None:
    server = FeedSettings(address="127.0.0.1:1", user="me", password="hush")
    ways = [
        WebSocketTransport("ws://127.0.0.1:1", token="hush", symbols=SYMBOLS),
        GrpcTransport("http://127.0.0.1:1", token="hush", symbols=SYMBOLS),
        NatsTransport(server, symbols=SYMBOLS, client="a"),
        RedisTransport(server, symbols=SYMBOLS, client="a"),
    ]
    for way in ways:
        assert "hush" not in f"{way!r} {way}"


def test_a_connection_is_of_one_feed_to_the_hub_itself_and_of_all_over_a_server() -> None:
    direct = WebSocketTransport("ws://127.0.0.1:1", symbols=SYMBOLS)
    assert direct.lanes((STOCKS, CRYPTO)) == [(STOCKS,), (CRYPTO,)]
    assert (direct.symbols_of(STOCKS), direct.symbols_of(CRYPTO)) == (["SPY"], ["BTC/USD"])
    over = RedisTransport(FeedSettings(), symbols=SYMBOLS, client="a")
    assert over.lanes((STOCKS, CRYPTO)) == [(STOCKS, CRYPTO)]
