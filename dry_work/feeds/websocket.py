"""The hub's WebSocket as a way to its bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from dry_work import pulse
from dry_work.errors import ConfigError, FeedDisconnectedError
from dry_work.feeds.hub_link import CRYPTO, STOCKS, TOKEN_REFUSED, Arrival, Opening, Position
from dry_work.feeds.hub_stream import HubStream
from dry_work.feeds.hub_ways import DirectWay
from dry_work.wire.alpaca_stream import StreamCodec, encode_message

PATHS = {
    STOCKS: ("/v2/iex", "/v2/sip", "/v2/delayed_sip", "/v2/otc", "/v2/test"),  # the hub serves one of them
    CRYPTO: ("/v1beta3/crypto/us",),
}
FRAME_LIMIT_BYTES = 4 * 1024 * 1024
CLOSE_TIMEOUT_S = 1.0

_DENIED = (401, 403)


@dataclass(eq=False, repr=False)
class WebSocketTransport(DirectWay):
    """The way over WebSockets, to a URL with ws:// or wss://."""

    name = "WebSocket"
    _found: dict[str, str] = field(init=False, default_factory=dict)  # path that was answered, by feed

    def describe(self) -> str:
        return f"{self.url} (STREAM_PROXY_WS_URL)"

    def build_session(self, feeds: tuple[str, ...], positions: Mapping[str, Position]) -> WebSocketSession:
        (feed,) = feeds
        stream = HubStream(
            feed,
            token=self.token,
            symbols=self.symbols_of(feed),
            position=positions.get(feed),
            statuses=self.statuses,
        )
        return WebSocketSession(self, feed, stream)

    def connect(self, feed: str, timeout_s: float) -> ClientConnection:
        """Return a connection to the path that the hub serves `feed` at.

        Raises:
            ConfigError: it serves none, or refuses the token.
            FeedDisconnectedError: not reached.
        """
        found = self._found.pop(feed, "")
        for path in dict.fromkeys((found or PATHS[feed][0], *PATHS[feed])):
            try:
                socket = self._connect(path, timeout_s)
            except InvalidStatus as error:
                status = error.response.status_code
                if status == 404:
                    continue
                if status in _DENIED:
                    raise ConfigError(TOKEN_REFUSED) from error
                raise FeedDisconnectedError(f"HTTP {status}") from error
            except InvalidURI as error:
                raise ConfigError(f"STREAM_PROXY_WS_URL={self.url!r}: {error}") from error
            except (WebSocketException, OSError, EOFError) as error:
                raise FeedDisconnectedError(str(error) or type(error).__name__) from error
            self._found[feed] = path
            return socket
        raise ConfigError(f"there is no stream of {feed} at {self.describe()}: is that the hub's WebSocket port?")

    def _connect(self, path: str, timeout_s: float) -> ClientConnection:
        connection = connect(
            f"{self.url}{path}?hub=1",
            open_timeout=timeout_s,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=self.silence_s / 2,
            ping_timeout=self.silence_s / 2,
            max_size=FRAME_LIMIT_BYTES,
            compression=None,
            proxy=None,
        )
        return connection.__enter__()  # the library wants it; the session closes it


class WebSocketSession:
    """One connection for one feed."""

    def __init__(self, transport: WebSocketTransport, feed: str, stream: HubStream) -> None:
        self._transport = transport
        self._feed = feed
        self._stream = stream
        self._socket: ClientConnection | None = None
        self._early: list[Arrival] = []  # what came together with the answer to the subscription
        self._is_closed = False

    def begin(self, timeout_s: float) -> Opening:
        self._socket = self._transport.connect(self._feed, timeout_s)
        try:
            while self._stream.opening is None:
                self._early += self._read(timeout_s)
        except TimeoutError as error:
            raise FeedDisconnectedError(f"no answer within {timeout_s} s") from error
        return self._stream.opening

    def receive(self) -> Sequence[Arrival]:
        early, self._early = self._early, []
        if early:
            return early
        try:
            return self._read(pulse.EVERY_S)
        except TimeoutError:  # the connection's pings tell whether it is alive
            return ()

    def tend(self) -> None:
        """Pings are sent and answered by the connection's own threads."""

    def interrupt(self) -> None:
        self._is_closed = True
        if self._socket is not None:
            self._socket.close()

    def close(self, *, for_good: bool) -> None:
        self.interrupt()

    def _read(self, timeout_s: float) -> list[Arrival]:
        socket = self._socket
        if socket is None or self._is_closed:
            raise FeedDisconnectedError("the session is closed")
        try:
            answers, arrivals = self._stream.take(socket.recv(timeout=timeout_s, decode=False))
            for answer in answers:
                socket.send(encode_message(answer, StreamCodec.JSON))
        except TimeoutError:  # an OSError, too
            raise
        except (WebSocketException, OSError, EOFError) as error:
            raise FeedDisconnectedError(str(error) or type(error).__name__) from error
        return arrivals
