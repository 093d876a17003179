"""The hub's gRPC service as a way to its bars: `cream.v1.StreamProxyService/StreamBars`, one call for each feed.

Own metadata asks for the position and Alpaca's own item with every response, and for watermarks and statuses. Such a
call loses nothing in silence: when its reader is too slow, it ends, and the next one goes on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import grpc

from dry_work import pulse
from dry_work.errors import CodecError, ConfigError, FeedDisconnectedError
from dry_work.feeds.hub_link import STOCKS, TOKEN_REFUSED, Arrival, Opening, Position
from dry_work.feeds.hub_ways import DirectWay
from dry_work.feeds.timed_reader import TimedReader
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.wire.cream_items import parse_own_fields

METHOD = "/cream.v1.StreamProxyService/StreamBars"
MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024
BATCH = 256

_REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED)
_DENIALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class GrpcTransport(DirectWay):
    """The way over gRPC, to a URL with http:// or https://."""

    name = "gRPC"

    def describe(self) -> str:
        return f"{self.url} (STREAM_PROXY_ENDPOINT)"

    def build_session(self, feeds: tuple[str, ...], positions: Mapping[str, Position]) -> GrpcSession:
        (feed,) = feeds
        metadata = [("x-dry-work-items", "true"), ("x-dry-work-offsets", "true")]
        if self.statuses and feed == STOCKS:
            metadata.append(("x-dry-work-statuses", "true"))
        if self.token:
            metadata.append(("authorization", f"Bearer {self.token}"))
        position = positions.get(feed)
        if position is not None:
            metadata += [("x-dry-work-epoch", position.epoch), ("x-dry-work-offset", str(position.offset))]
        request = cream.StreamBarsRequest(symbols=self.symbols_of(feed))
        return GrpcSession(self, feed, request.SerializeToString(), metadata)

    def connect(self) -> grpc.Channel:
        """Return a channel, not connected yet."""
        parts = urlsplit(self.url)
        options = (
            ("grpc.keepalive_time_ms", round(self.silence_s * 500)),
            ("grpc.keepalive_timeout_ms", round(self.silence_s * 500)),
            ("grpc.http2.ping_timeout_ms", round(self.silence_s * 500)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
        )
        if parts.scheme == "https":
            return grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(), options)
        return grpc.insecure_channel(parts.netloc, options)


class GrpcSession:
    """One call for one feed."""

    def __init__(
        self, transport: GrpcTransport, feed: str, request: bytes, metadata: Sequence[tuple[str, str]]
    ) -> None:
        self._transport = transport
        self._feed = feed
        self._request = request
        self._metadata = metadata
        self._epoch = ""
        self._channel: grpc.Channel | None = None
        self._call: Any = None
        self._reader: TimedReader[bytes] | None = None
        self._is_closed = False

    def begin(self, timeout_s: float) -> Opening:
        channel = self._channel = self._transport.connect()
        try:
            # Bytes in, bytes out: what is read of a response are its own fields.
            self._call = channel.unary_stream(METHOD)(self._request, metadata=self._metadata)
            if self._is_closed:
                self.interrupt()
            told = self._wait_for_begin(timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error) from error
        except ValueError as error:  # the channel was closed
            raise FeedDisconnectedError("the session is closed") from error
        self._epoch = str(told["x-dry-work-epoch"])
        self._reader = TimedReader(self._call, name=f"hub call for {self._feed}", ahead=BATCH)
        position = Position(self._epoch, int(told.get("x-dry-work-offset", "0")))
        return Opening(positions={self._feed: position}, recovered=told.get("x-dry-work-recovered", "true") == "true")

    def _wait_for_begin(self, timeout_s: float) -> dict[str, Any]:
        """Return what the hub tells as the call begins, which gRPC waits for without a time-out."""
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            self._call.cancel()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            told = dict(self._call.initial_metadata())
            if not told and is_late.is_set():
                raise FeedDisconnectedError(f"no answer within {timeout_s:g} s")
            if "x-dry-work-epoch" not in told:
                raise self._explain_end(is_late)
        finally:
            timer.cancel()
        return told

    def receive(self) -> Sequence[Arrival]:
        assert self._reader is not None
        try:
            responses = self._reader.take(pulse.EVERY_S)
        except StopIteration:
            raise FeedDisconnectedError("the hub has ended the call") from None
        except grpc.RpcError as error:
            raise self._explain(error) from error
        return [self._read(response) for response in responses]

    def _read(self, response: bytes) -> Arrival:
        try:
            own = parse_own_fields(response)
        except CodecError as error:
            raise FeedDisconnectedError(f"a response cannot be read: {error.reason}") from error
        return Arrival(feed=self._feed, epoch=self._epoch, offset=own.offset, item=own.item)

    def tend(self) -> None:
        """Pings are sent and answered by gRPC's own threads."""

    def interrupt(self) -> None:
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()
        elif self._channel is not None:
            self._channel.close()

    def close(self, *, for_good: bool) -> None:
        self.interrupt()
        if self._reader is not None:
            self._reader.close(self._call.cancel)
        if self._channel is not None:
            self._channel.close()

    def _explain_end(self, is_late: threading.Event) -> Exception:
        """Return why a call has ended before it began; `is_late` says that it was ended here, by the time."""
        try:
            next(self._call)
        except grpc.RpcError as error:
            if not is_late.is_set():
                return self._explain(error)
        except StopIteration:
            pass
        return ConfigError(f"no hub answers at {self._transport.describe()}: is that its gRPC port?")

    def _explain(self, error: Any) -> Exception:
        code, details = error.code(), error.details()
        if code in _DENIALS:
            return ConfigError(TOKEN_REFUSED)
        if code in _REFUSALS:
            return ConfigError(f"the hub at {self._transport.describe()} refuses: {details}")
        return FeedDisconnectedError(f"{code.name}: {details}")
