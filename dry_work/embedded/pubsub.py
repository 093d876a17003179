"""A Pub/Sub server in this process: real gRPC, to which the unmodified Google clients talk.

It speaks google.pubsub.v1 Publisher and Subscriber for pull subscriptions: topics, subscriptions and snapshots,
publish, streaming and unary pull, leases, filters, ordering, dead letters, retries, retention, seek and expiration.
What it does not offer it answers with UNIMPLEMENTED, naming the method or the field. Everything is in memory and ends
with the process. docs/reference/pubsub.md says what is offered, and within which limits.

`EmbeddedPubSub` may be used from any thread. It runs in one thread of its own with an event loop; nothing else touches
the topics and subscriptions.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

import grpc
import msgspec
import structlog

from dry_work.clock import Clock, SystemClock
from dry_work.embedded import pubsub_wire as wire
from dry_work.embedded.pubsub_core import PubSubCore
from dry_work.embedded.pubsub_rules import RequestError
from dry_work.embedded.pubsub_service import Handlers, Service
from dry_work.errors import ConfigError

_log = structlog.get_logger(__name__)

DEFAULT_MAX_BACKLOG_BYTES = 256_000_000
START_TIMEOUT_S = 10.0
STOP_GRACE_S = 0.5

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent share
    ("grpc.max_receive_message_length", 32_000_000),  # above the limit of a publish request, so that we refuse it
    ("grpc.max_send_message_length", -1),
    # Google's clients ping every 30 s, idle or not; gRPC's default would end their connections for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class EmbeddedPubSub:
    """A Pub/Sub server on a local port.

    Args:
        host: address to listen on. There is no authentication: think twice before you leave the loopback.
        port: 0 takes any free port; `port` holds the real one after `start`.
        topics: full names (`projects/p/topics/t`) that exist from the start.
        max_backlog_bytes: bound of the messages that wait for delivery, per subscription, and of those kept for a seek,
            per subscription, topic and snapshot. Beyond it the oldest are dropped, counted and reported in the log.
            What is delivered and not yet acknowledged is bounded by the subscriber's flow control.
        on_failure: called once, from the server's thread, if that thread dies.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        topics: Sequence[str] = (),
        max_backlog_bytes: int = DEFAULT_MAX_BACKLOG_BYTES,
        on_failure: Callable[[BaseException], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise ConfigError(f"port {port} is not a TCP port; it must be 0 to 65535")
        if max_backlog_bytes < wire.MAX_PUBLISH_BYTES:
            raise ConfigError(
                f"a backlog of {max_backlog_bytes} bytes does not hold one large message; "
                f"it must be at least {wire.MAX_PUBLISH_BYTES}"
            )
        self.host = host
        self.port = port
        self._core = PubSubCore(max_backlog_bytes=max_backlog_bytes, nonce=secrets.randbits(63))
        self._clock = clock if clock is not None else SystemClock()
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._listening = threading.Event()
        self._start_error: BaseException | None = None
        for name in topics:
            try:
                self._core.create_topic(name)
            except RequestError as error:
                raise ConfigError(f"the topic {name} cannot be created: {error.message}") from error

    @property
    def target(self) -> str:
        """What `PUBSUB_EMULATOR_HOST` is to be set to on this machine."""
        return _join_address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)  # noqa: S104

    def start(self) -> None:
        """Listen; return when clients can connect.

        Raises:
            ConfigError: the port is in use, or the host is not one of this machine.
        """
        if self._thread is not None:
            raise RuntimeError("the Pub/Sub server was started already")
        self._thread = threading.Thread(target=self._run, name="embedded-pubsub", daemon=True)
        self._thread.start()
        if not self._listening.wait(START_TIMEOUT_S):
            self.stop()
            raise ConfigError(f"the Pub/Sub server did not listen on {self.target} within {START_TIMEOUT_S:g} s")
        if self._start_error is not None:
            self._thread.join()
            raise self._start_error

    def stop(self, timeout_s: float = 5.0) -> None:
        """End all streams with UNAVAILABLE, which clients answer by trying again, and free the port. Idempotent."""
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if thread is None or thread is threading.current_thread():
            return
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the thread is done
                loop.call_soon_threadsafe(stopping.set)
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("pubsub server did not stop in time", timeout_s=timeout_s)

    def counters(self) -> Mapping[str, int]:
        """Messages published, filtered, delivered, acknowledged, dropped and so on since the start, by name."""
        return msgspec.structs.asdict(self._core.counters)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._listening.is_set():
                self._start_error = error
                return
            _log.exception("pubsub server failed")
            if self._on_failure is not None:
                self._on_failure(error)
        finally:
            self._listening.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        address = _join_address(self.host, self.port)
        service = Service(self._core, self._clock)
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((Handlers(service),))
        try:
            _check_address(self.host, self.port)  # says why; gRPC only says that it failed, and on stderr
            port = server.add_insecure_port(address)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "the port is in use"
            raise ConfigError(
                f"the Pub/Sub server cannot listen on {address}: {reason}; choose another --port or --host"
            ) from error
        await server.start()
        service.start()
        self.port = port
        self._listening.set()
        try:
            await self._stopping.wait()
        finally:
            service.end()
            await server.stop(STOP_GRACE_S)


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_address(host: str, port: int) -> None:
    """Raise OSError when nobody can listen there now."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
