"""The hub's WebSocket as a way to its bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from dry_work import pulse
from dry_work.errors import ConfigError, FeedDisconnectedError
from dry_work.feeds.hub_link import CRYPTO, SILENCE_S, STOCKS, TOKEN_REFUSED, Arrival, Opening, Position
from dry_work.feeds.hub_stream import HubStream
from dry_work.market.symbols import is_crypto
from dry_work.wire.alpaca_stream import StreamCodec, encode_message

PATHS = {
    STOCKS: ("/v2/iex", "/v2/sip", "/v2/delayed_sip", "/v2/otc", "/v2/test"),  # the hub serves one of them
    CRYPTO: ("/v1beta3/crypto/us",),
}
FRAME_LIMIT_BYTES = 4 * 1024 * 1024
CLOSE_TIMEOUT_S = 1.0

_DENIED = (401, 403)


class WebSocketTransport:
    """The way over WebSockets, one for each feed.

    Args:
        url: ws:// or wss:// with host and port.
        token: the hub's; empty for one that asks for none.
        symbols: wanted symbols.
        statuses: bring trading statuses and price bands too.
    """

    name = "WebSocket"

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        symbols: Sequence[str],
        silence_s: float = SILENCE_S,
        statuses: bool = False,
    ) -> None:
        self._url = url
        self._statuses = statuses
        self._token = token
        self._silence_s = silence_s
        self._symbols = {
            STOCKS: [symbol for symbol in symbols if not is_crypto(symbol)],
            CRYPTO: [symbol for symbol in symbols if is_crypto(symbol)],
        }
        self._found: dict[str, str] = {}  # path by feed

    def lanes(self, feeds: Sequence[str]) -> Sequence[tuple[str, ...]]:
        return [(feed,) for feed in feeds]

    def describe(self) -> str:
        return f"{self._url} (STREAM_PROXY_WS_URL)"

    def build_session(self, feeds: tuple[str, ...], positions: Mapping[str, Position]) -> WebSocketSession:
        (feed,) = feeds
        stream = HubStream(
            feed,
            token=self._token,
            symbols=self._symbols[feed],
            position=positions.get(feed),
            statuses=self._statuses,
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
                raise ConfigError(f"STREAM_PROXY_WS_URL={self._url!r}: {error}") from error
            except (WebSocketException, OSError, EOFError) as error:
                raise FeedDisconnectedError(str(error) or type(error).__name__) from error
            self._found[feed] = path
            return socket
        raise ConfigError(f"there is no stream of {feed} at {self.describe()}: is that the hub's WebSocket port?")

    def _connect(self, path: str, timeout_s: float) -> ClientConnection:
        connection = connect(
            f"{self._url}{path}?hub=1",
            open_timeout=timeout_s,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=self._silence_s / 2,
            ping_timeout=self._silence_s / 2,
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
