"""Clients of the hub's Redis interface: publish registrations, and handle what comes. Thread-safe.

`RedisPublisher` and `RedisSubscriber` find Redis as the hub does, by `REDIS_HOST` and the other variables, unless they
are told.
"""

from __future__ import annotations

import inspect
import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import orjson
import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from dry_work.backoff import Backoff
from dry_work.clock import Clock, SystemClock
from dry_work.errors import CodecError
from dry_work.hub.sinks.redis_settings import RedisSettings, read_redis_settings
from dry_work.wire.redis import (
    LEGACY_PERFORMANCE,
    LEGACY_REGISTRATION,
    LEGACY_UPDATES,
    LOGS,
    PROFIT_REPORT,
    REGISTRATION,
    bar_channel,
    encode_envelope,
    legacy_channel,
    order_channel,
    price_channel,
    validate_registration,
)

__all__ = ["CHANNELS", "Channels", "MessageValidationError", "RedisPublisher", "RedisSubscriber"]

TIMEOUT_S = 5.0
POLL_S = 0.2  # the thread looks so often whether it is to stop
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 5.0

Handler = Callable[..., object]

_log = structlog.get_logger(__name__)


class MessageValidationError(CodecError):
    """A message is not what its channel takes. Nothing was published."""


class Channels(msgspec.Struct, frozen=True):
    """Names of the channels."""

    BROKER_REGISTRATION: str = REGISTRATION
    BROKER_LOGS: str = LOGS
    PROFIT_REPORT: str = PROFIT_REPORT
    LEGACY_BROKER_REGISTRATION: str = LEGACY_REGISTRATION

    @staticmethod
    def price(symbol: str) -> str:
        """Return the channel of a symbol's prices."""
        return price_channel(symbol.upper())

    @staticmethod
    def bar(symbol: str) -> str:
        """Return the channel of a symbol's minute bars."""
        return bar_channel(symbol.upper())

    @staticmethod
    def order(account_id: str) -> str:
        """Return the channel of an account's order updates."""
        return order_channel(account_id)

    @staticmethod
    def ticker_updates(ticker: str) -> str:
        """Return the legacy channel of a ticker's prices and order updates."""
        return legacy_channel(ticker.upper())


CHANNELS = Channels()


class RedisPublisher:
    """Publishes messages.

    Args:
        sender: named in the envelope of messages on legacy channels.
        environment: variables by name; None: the process's.
        settings: what wins over them: `host`, `port`, `db`, `username`, `password`, `use_tls`.

    Raises:
        ConfigError: a variable is wrong.
    """

    def __init__(
        self,
        *,
        sender: str = "unknown",
        environment: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self._sender = sender
        self._clock = SystemClock() if clock is None else clock
        self._client = _connect(_choose(environment, settings), retries=1)

    def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Publish a message and return how many have received it; on legacy channels it goes in the envelope.

        Raises:
            MessageValidationError: it is no JSON object, or a registration that the hub would refuse.
            redis.RedisError: Redis is not there, or refuses.
        """
        if not isinstance(message, Mapping):
            raise MessageValidationError(f"a message of the type {type(message).__name__}: expected a dict")
        body = dict(message)
        try:
            if channel in (REGISTRATION, LEGACY_REGISTRATION):
                validate_registration(_unwrap(body))
            if _is_legacy(channel) and not isinstance(body.get("data"), dict):
                data = encode_envelope(body, time_ns=self._clock.time_ns(), sender=self._sender)
            else:
                data = orjson.dumps(body)
        except CodecError as error:
            raise MessageValidationError(error.reason) from error
        except TypeError as error:
            raise MessageValidationError(f"a message that is no JSON: {error}") from error
        return int(self._client.publish(channel, data))

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._client.close()

    def __enter__(self) -> RedisPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RedisSubscriber:
    """Calls handlers for what comes on channels, from a thread of its own, which survives the loss of Redis.

    Args:
        environment: variables by name; None: the process's.
        settings: what wins over them: `host`, `port`, `db`, `username`, `password`, `use_tls`.

    Raises:
        ConfigError: a variable is wrong.
    """

    def __init__(self, *, environment: Mapping[str, str] | None = None, **settings: Any) -> None:
        self._client = _connect(_choose(environment, settings), retries=0)
        self._pubsub: Any = self._client.pubsub()
        self._handlers: dict[str, list[Callable[[str, Any], object]]] = {}
        self._new: list[str] = []  # the thread has not asked for yet
        self._unconfirmed: set[str] = set()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._backoff = Backoff(random.Random(), initial_s=FIRST_WAIT_S, cap_s=LONGEST_WAIT_S)
        self.malformed = 0  # messages that were no JSON object
        self.failures = 0  # exceptions of handlers

    def subscribe(self, channel: str, handler: Handler) -> None:
        """Call `handler` with each message (a dict) of a channel, or of all that match a pattern such as `price:*`.

        A handler that takes two arguments gets the channel's name too. Several may be given for one channel.
        """
        call = _adapt(handler)
        with self._changed:
            handlers = self._handlers.setdefault(channel, [])
            handlers.append(call)
            if len(handlers) == 1:
                self._new.append(channel)
                self._unconfirmed.add(channel)

    def start_listening(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Start to listen in the background; return whether Redis has confirmed every subscription in time.

        If it has not, it is tried on. The thread keeps the process alive until `stop_listening`.
        """
        with self._changed:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._listen, name="redis-subscriber")
                self._thread.start()
            return self._changed.wait_for(lambda: not self._unconfirmed, timeout_s)

    def stop_listening(self) -> None:
        """Stop and close the connection; returns when no handler runs any more. May be called twice."""
        self._stopping.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if thread is None:
            self._close()

    def __enter__(self) -> RedisSubscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_listening()

    def _listen(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._listen_once()
                except (redis.RedisError, OSError) as error:
                    wait_s = self._backoff.next_wait_s(0.0)
                    _log.warning("Redis is away; trying on", reason=str(error), retry_in_s=round(wait_s, 2))
                    self._stopping.wait(wait_s)
        finally:
            self._close()

    def _listen_once(self) -> None:
        with self._changed:
            new, self._new = self._new, []
        try:
            for channel in new:
                (self._pubsub.psubscribe if _is_pattern(channel) else self._pubsub.subscribe)(channel)
        except BaseException:
            # The library keeps the name, and asks for it again; asking twice does no harm.
            with self._changed:
                self._new = [*new, *self._new]
            raise
        if not self._pubsub.subscribed:
            self._stopping.wait(POLL_S)
            return
        message = self._pubsub.get_message(timeout=POLL_S)
        self._backoff.reset()
        if message is not None:
            self._take(message)

    def _take(self, message: Mapping[str, Any]) -> None:
        if message["type"] in ("subscribe", "psubscribe"):
            with self._changed:
                self._unconfirmed.discard(message["channel"].decode())
                self._changed.notify_all()
            return
        if message["type"] not in ("message", "pmessage"):
            return
        channel = message["channel"].decode("utf-8", "replace")
        name = channel if message["type"] == "message" else message["pattern"].decode("utf-8", "replace")
        try:
            body = orjson.loads(message["data"])
            if not isinstance(body, dict):
                raise ValueError(f"{type(body).__name__}, expected an object")
        except ValueError as error:
            self.malformed += 1
            _log.warning("a message that is no JSON object was left out", channel=channel, reason=str(error)[:80])
            return
        with self._changed:
            handlers = list(self._handlers.get(name, ()))
        for handler in handlers:
            try:
                handler(channel, body)
            except Exception:  # a handler's error is its own: the others, and the next message, come
                self.failures += 1
                _log.exception("a handler failed", channel=channel)

    def _close(self) -> None:
        self._pubsub.close()
        self._client.close()


def _choose(environment: Mapping[str, str] | None, settings: Mapping[str, Any]) -> RedisSettings:
    found = read_redis_settings(os.environ if environment is None else environment)
    return msgspec.structs.replace(found, **settings)


def _connect(settings: RedisSettings, *, retries: int) -> Any:
    return redis.Redis(
        host=settings.host,
        port=settings.port,
        db=settings.db,
        username=settings.username or None,
        password=settings.password or None,
        ssl=settings.use_tls,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(NoBackoff(), retries),  # the library's own waits long, and cannot be stopped
    )


def _adapt(handler: Handler) -> Callable[[str, Any], object]:
    """Return a handler of channel and message."""
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        return lambda _, message: handler(message)
    except ValueError:  # built in, and tells nothing of itself
        return lambda _, message: handler(message)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in inspect.signature(handler).parameters.values()):
        return lambda _, message: handler(message)  # such as print
    return lambda channel, message: handler(message, channel)


def _unwrap(body: Mapping[str, Any]) -> Mapping[str, Any]:
    data = body.get("data")
    return data if "action" not in body and isinstance(data, Mapping) else body


def _is_legacy(channel: str) -> bool:
    return channel in (LEGACY_REGISTRATION, PROFIT_REPORT) or channel.startswith((LEGACY_UPDATES, LEGACY_PERFORMANCE))


def _is_pattern(channel: str) -> bool:
    return any(mark in channel for mark in "*?[")
