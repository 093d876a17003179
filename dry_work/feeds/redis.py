"""Redis Streams as a way to the hub's bars: one reader of the streams of all wanted symbols.

A registration tells the hub what is wanted, again and again. Where the reader stands is, for each stream, the id of its
last entry; what follows comes with the next read, also over another connection. The entries of all streams that one
`XREAD` finds are one moment of the server: in the order of their offsets they are the hub's order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dry_work.errors import ConfigError, FeedDisconnectedError
from dry_work.feeds.hub_link import (
    BARS,
    CRYPTO,
    PRICE_BANDS,
    STATUSES,
    STOCKS,
    WATERMARKS,
    Arrival,
    Opening,
    Position,
)
from dry_work.feeds.hub_ways import WayOverServer
from dry_work.market.symbols import is_crypto, is_option
from dry_work.wire.redis import LOGS, REGISTRATION, stream_key

RENEW_S = 10.0  # between registrations; the hub's lease is a minute by default
BLOCK_S = 0.5  # that a read waits for entries
ENTRIES = 1_000  # of one stream in one read

Entries = list[tuple[bytes, dict[bytes, bytes]]]

START = b"0-0"
_STOCK_CHANNELS = (STATUSES, PRICE_BANDS)


@dataclass(eq=False, repr=False)
class RedisTransport(WayOverServer):
    """The way over Redis, to one server (`address`, host:port)."""

    name = "Redis"
    ids: dict[bytes, bytes] = field(
        init=False, default_factory=dict
    )  # last entry by key; empty before the first session
    run_id: str = field(init=False, default="")  # of the server

    @cached_property
    def stocks(self) -> list[str]:
        """The symbols whose statuses are wanted."""
        stocks = [symbol for symbol in self.symbols if feed_of(symbol) == STOCKS and not is_option(symbol)]
        return stocks if self.statuses else []

    @cached_property
    def streams(self) -> dict[bytes, str]:
        """Feeds by key."""
        keys = [(stream_key(feed_of(symbol), BARS, symbol), feed_of(symbol)) for symbol in self.symbols]
        feeds = dict.fromkeys(feed for _, feed in keys)
        keys += [(stream_key(feed, WATERMARKS, "*"), feed) for feed in feeds]
        keys += [(stream_key(STOCKS, name, symbol), STOCKS) for symbol in self.stocks for name in _STOCK_CHANNELS]
        return {key.encode(): feed for key, feed in keys}

    def describe(self) -> str:
        return f"{self.settings.address} (REDIS_HOST, REDIS_PORT)"

    def build_session(self, feeds: tuple[str, ...], positions: Mapping[str, Position]) -> RedisSession:
        return RedisSession(self)

    def connect(self, timeout_s: float) -> redis.Redis[bytes]:
        """Return a client, not connected yet."""
        host, _, port = self.settings.address.rpartition(":")
        return redis.Redis(
            host=host.strip("[]"),
            port=int(port),
            db=self.settings.database,
            username=self.settings.user or None,
            password=self.settings.password or None,
            ssl=self.settings.tls,
            socket_connect_timeout=timeout_s,
            socket_timeout=self.silence_s,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            client_name=f"dry-work-{self.client}",
        )


class RedisSession:
    """One connection."""

    def __init__(self, transport: RedisTransport) -> None:
        self._transport = transport
        self._client: redis.Redis[bytes] | None = None
        self._renew_at_s = 0.0
        self._is_interrupted = False

    def begin(self, timeout_s: float) -> Opening:
        client = self._client = self._transport.connect(timeout_s)
        recovered = self._call(lambda: self._find_places(client))
        self._call(lambda: self._register(client, timeout_s))
        return Opening(recovered=recovered)

    def receive(self) -> Sequence[Arrival]:
        self._renew()
        client, transport = self._get_client(), self._transport
        block_ms = round(BLOCK_S * 1e3)
        found = self._call(lambda: client.xread(dict(transport.ids), count=ENTRIES, block=block_ms))
        return self._take(_as_streams(found))

    def tend(self) -> None:
        self._renew()

    def interrupt(self) -> None:
        self._is_interrupted = True

    def close(self, *, for_good: bool) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if for_good:
                client.publish(REGISTRATION, self._build_registration("unregister"))
        except (redis.RedisError, OSError):
            pass  # the hub's lease ends by itself
        finally:
            client.close()

    def _get_client(self) -> redis.Redis[bytes]:
        if self._client is None or self._is_interrupted:
            raise FeedDisconnectedError("the session is closed")
        return self._client

    def _call(self, call: Any) -> Any:
        try:
            return call()
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise ConfigError(
                f"Redis refuses the credentials: set REDIS_USERNAME and REDIS_PASSWORD ({error})"
            ) from error
        except (redis.RedisError, OSError) as error:
            raise FeedDisconnectedError(f"{type(error).__name__}: {error}") from error

    # --- what is wanted

    def _build_registration(
        self, action: str, symbols: Sequence[str] = (), channels: Sequence[str] = (BARS, WATERMARKS)
    ) -> bytes:
        wish: dict[str, Any] = {"action": action, "client_id": self._transport.client}
        if action == "register":
            wish |= {"symbols": symbols or self._transport.symbols, "channels": channels}
        return orjson.dumps(wish)

    def _register(self, client: redis.Redis[bytes], timeout_s: float) -> None:
        """Register, and wait for the hub's word.

        Raises:
            ConfigError: it refuses.
            FeedDisconnectedError: there is no hub.
        """
        end_s = time.monotonic() + timeout_s
        with client.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe(LOGS)
            listener.get_message(timeout=timeout_s)
            self._publish(client)
            while time.monotonic() < end_s:
                if self._is_interrupted:
                    raise FeedDisconnectedError("the session is closed")
                message = listener.get_message(timeout=BLOCK_S)
                told = _read_object(message["data"]) if message is not None else {}
                if told.get("client_id") != self._transport.client:
                    continue
                if told.get("event") == "refused":
                    raise ConfigError(f"the hub refuses: {told.get('message')}")
                if told.get("event") == "registered":
                    # A hub that keeps streams has written this line to one before it published it.
                    if not client.exists(f"stream:{LOGS}"):
                        raise ConfigError("the hub keeps no streams: set its REDIS_STREAM_LENGTH to more than 0")
                    return
        raise FeedDisconnectedError(f"the hub did not answer within {timeout_s:g} s")

    def _publish(self, client: redis.Redis[bytes]) -> None:
        self._renew_at_s = time.monotonic() + min(RENEW_S, self._transport.silence_s / 2)
        if client.publish(REGISTRATION, self._build_registration("register")) == 0:
            raise FeedDisconnectedError("no hub listens: is one running with --sinks redis?")
        if self._transport.stocks:  # channels that there are of stocks only
            client.publish(REGISTRATION, self._build_registration("register", self._transport.stocks, _STOCK_CHANNELS))

    def _renew(self) -> None:
        client = self._get_client()
        if time.monotonic() >= self._renew_at_s:
            self._call(lambda: self._publish(client))

    # --- where the reader stands

    def _find_places(self, client: redis.Redis[bytes]) -> bool:
        """Find where to read from; tell whether nothing is missing since the session before."""
        transport = self._transport
        run_id = str(_text(dict(client.info("server"))["run_id"]))
        is_other = transport.run_id not in ("", run_id)
        transport.run_id = run_id
        has_proof, recovered = False, True
        with client.pipeline(transaction=False) as pipeline:
            for key in transport.streams:
                pipeline.xinfo_stream(key)
            answers = pipeline.execute(raise_on_error=False)
        for key, answer in zip(transport.streams, answers, strict=True):
            is_missing = isinstance(answer, redis.ResponseError) and "no such key" in str(answer)
            if isinstance(answer, Exception) and not is_missing:
                raise answer
            facts: Mapping[str, Any] = {} if is_missing else answer
            newest, before = facts.get("last-generated-id", START), transport.ids.get(key)
            if before is None:
                transport.ids[key] = newest
            elif before == START:
                recovered = recovered and facts.get("entries-added", 0) == facts.get("length", 0)
            else:
                has_proof = True
                if _order(newest) < _order(before):  # another stream of this name
                    transport.ids[key] = START
                    recovered = False
                elif newest != before:
                    # What followed is there if something before it is; streams are cut at their beginning.
                    first = facts.get("first-entry")
                    recovered = recovered and first is not None and _order(first[0]) <= _order(before)
        return recovered and (has_proof or not is_other)

    def _take(self, found: Mapping[bytes, Entries]) -> list[Arrival]:
        transport = self._transport
        arrivals: list[Arrival] = []
        for feed in dict.fromkeys(transport.streams.values()):
            entries = {key: rows for key, rows in found.items() if transport.streams.get(key) == feed}
            for key, entry_id, fields in merge_entries(entries, limit=ENTRIES):
                transport.ids[key] = entry_id
                arrivals.append(_build_arrival(feed, fields))
        return arrivals


def merge_entries(found: Mapping[bytes, Entries], *, limit: int) -> list[tuple[bytes, bytes, dict[bytes, bytes]]]:
    """Return key, id and fields of the entries of one feed that one read has found, in the hub's order. Pure.

    Epochs follow each other as their entries do, and within one the offsets count. A stream of which `limit` entries
    were read may have more: what follows its last one in the other streams is left for the next read.
    """
    begins: dict[bytes, tuple[int, int]] = {}  # the first entry of each epoch
    for rows in found.values():
        for entry_id, fields in rows:
            epoch, at = fields.get(b"epoch", b""), _order(entry_id)
            begins[epoch] = min(begins.get(epoch, at), at)
    ranks = {epoch: rank for rank, epoch in enumerate(sorted(begins, key=begins.__getitem__))}

    def place(fields: dict[bytes, bytes]) -> tuple[int, int]:
        return ranks[fields.get(b"epoch", b"")], _read_offset(fields)

    ends = [place(rows[-1][1]) for rows in found.values() if len(rows) >= limit]
    end = min(ends, default=None)
    merged = [
        (place(fields), number, key, entry_id, fields)
        for number, (key, rows) in enumerate(found.items())
        for entry_id, fields in rows
    ]
    merged.sort(key=lambda row: row[:2])
    return [(key, entry_id, fields) for at, _, key, entry_id, fields in merged if end is None or at <= end]


def feed_of(symbol: str) -> str:
    """Return the hub's feed that has a symbol's bars."""
    return CRYPTO if is_crypto(symbol) else STOCKS


def _build_arrival(feed: str, fields: dict[bytes, bytes]) -> Arrival:
    offset = _read_offset(fields)
    data = fields.get(b"item", b"")
    epoch = fields.get(b"epoch", b"").decode("utf-8", "replace")
    item = _read_object(data)
    if not item:
        return Arrival(feed=feed, epoch=epoch, offset=offset, reason="not JSON", data=data)
    return Arrival(feed=feed, epoch=epoch, offset=offset, item=item)


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_offset(fields: dict[bytes, bytes]) -> int:
    text = fields.get(b"offset", b"")
    return int(text) if text.isdigit() and len(text) <= 18 else 0


def _order(entry_id: bytes) -> tuple[int, int]:
    first, _, second = entry_id.partition(b"-")
    return int(first), int(second or b"0")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _as_streams(found: Any) -> dict[bytes, Entries]:
    if isinstance(found, dict):  # the newer protocol's form
        return {key: [entry for chunk in chunks for entry in chunk] for key, chunks in found.items()}
    return {key: list(entries) for key, entries in found or ()}
