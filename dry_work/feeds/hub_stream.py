"""The client's part of the hub's WebSocket dialect for bars, with the hub's own additions (`?hub=1`). Pure.

Events go by without numbers of their own; each batch of them ends with the position it leads to. So events wait here
for their position, and a session that ends before it came is gone on with from the position before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dry_work.errors import CodecError, ConfigError, FeedDisconnectedError
from dry_work.feeds.hub_link import (
    BARS,
    PRICE_BANDS,
    STATUSES,
    STOCKS,
    TOKEN_REFUSED,
    WATERMARKS,
    Arrival,
    Opening,
    Position,
)
from dry_work.market.symbols import is_option
from dry_work.wire import alpaca_stream

_EVENTS = ("b", "w", "s", "l")
_TOKEN_CODES = (402, 411)
_REFUSALS = (400, 401, 405, 408, 409, 410, 412)


class HubStream:
    """One conversation.

    Args:
        feed: of the connection.
        token: the hub's; empty for one that asks for none.
        symbols: wanted ones.
        position: to go on from; None: from now.
        statuses: ask for trading statuses and price bands too.
    """

    def __init__(
        self, feed: str, *, token: str, symbols: Sequence[str], position: Position | None, statuses: bool = False
    ) -> None:
        self.opening: Opening | None = None  # once everything is subscribed
        self._feed = feed
        self._token = token
        self._symbols = symbols
        self._position = position
        self._statuses = statuses and feed == STOCKS
        self._events: list[Mapping[str, Any]] = []  # whose position has not come yet

    def take(self, frame: bytes | str) -> tuple[list[Mapping[str, Any]], list[Arrival]]:
        """Take a frame; return what to answer, and the events that are complete with it.

        Raises:
            ConfigError: the hub refuses for good.
            FeedDisconnectedError: the session is over.
        """
        try:
            items = alpaca_stream.decode_frame(frame)
        except CodecError as error:
            raise FeedDisconnectedError(f"a frame cannot be read: {error.reason}") from error
        answers: list[Mapping[str, Any]] = []
        arrivals: list[Arrival] = []
        for item in items:
            if not isinstance(item, dict):
                continue
            kind = item.get("T")
            if kind in _EVENTS:
                self._events.append(item)
            elif kind == "hub":
                arrivals += self._take_position(item)
            elif kind == "error":
                self._refuse(item)
            elif kind == "success":
                answers += self._answer(item)
        return answers, arrivals

    def _answer(self, item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if item.get("msg") == "connected":
            return [alpaca_stream.build_auth("dry-work", self._token)]
        if item.get("msg") != "authenticated":
            return []
        channels = {BARS: list(self._symbols), WATERMARKS: ["*"]}
        if self._statuses:
            stocks = [symbol for symbol in self._symbols if not is_option(symbol)]
            channels |= {STATUSES: stocks, PRICE_BANDS: stocks}
        wish = alpaca_stream.build_subscription("subscribe", channels)
        if self._position is not None:
            wish["since"] = {"epoch": self._position.epoch, "offset": self._position.offset}
        return [wish]

    def _take_position(self, item: Mapping[str, Any]) -> list[Arrival]:
        epoch, offset = item.get("epoch"), item.get("offset")
        if not isinstance(epoch, str) or not isinstance(offset, int):
            raise FeedDisconnectedError("a position cannot be read")
        if self.opening is None:  # the first one says where the subscription begins
            position = {self._feed: Position(epoch, offset)}
            self.opening = Opening(positions=position, recovered=item.get("recovered", True) is True)
            return []  # events that were missed follow, with a position of their own
        events, self._events = self._events, []
        arrivals = [Arrival(feed=self._feed, epoch=epoch, item=event) for event in events]
        return [*arrivals, Arrival(feed=self._feed, epoch=epoch, offset=offset)]

    def _refuse(self, item: Mapping[str, Any]) -> None:
        code, message = item.get("code"), item.get("msg")
        if code in _TOKEN_CODES:
            raise ConfigError(TOKEN_REFUSED)
        if code in _REFUSALS and self.opening is None:
            raise ConfigError(f"the hub refuses to subscribe {self._feed}: {message} ({code})")
        # 407: this reader was slow and has lost something, which it gets when it comes again.
        raise FeedDisconnectedError(f"the hub says: {message} ({code})")
