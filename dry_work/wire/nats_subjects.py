"""Subjects of NATS, in both directions. Pure.

A symbol is one token of a subject: `.` becomes `_` and `/` becomes `-` (BRK_B, BTC-USD); the true symbol stays in the
payload.
"""

from __future__ import annotations

import re

import msgspec

ORDER, CANCEL = "order", "cancel"
UNMATCHED = "unknown"  # the action of a subject that names none
CANCEL_ALL = "ALL"

_NO_TOKEN = re.compile(r"[^A-Za-z0-9_$-]")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_ACTIONS = {"orders": ORDER, "cancel": CANCEL}


class Action(msgspec.Struct, frozen=True):
    """What a subject of the action stream asks for."""

    kind: str  # order, cancel, or unknown
    token: str  # client order id, order id, ALL, or what stands there instead
    is_matched: bool = True  # a consumer takes it


class Subjects:
    """The subjects below a prefix.

    Args:
        prefix: one token or more.

    Raises:
        ValueError: it can be no beginning of a subject.
    """

    def __init__(self, prefix: str) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(
                f"{prefix!r} is no prefix of a subject: expected letters, digits, - and _, with dots between"
            )
        self.prefix = prefix
        self.actions = f"{prefix}.action.v0.>"
        self.orders = f"{prefix}.action.v0.orders.*"
        self.cancels = f"{prefix}.action.v0.cancel.*"
        self.data = f"{prefix}.data.v0.>"
        self.trade_updates = f"{prefix}.data.v0.tradeupdates.*"
        self.stocks = f"{prefix}.data.v0.stocks.*"
        self.holds = f"{prefix}.feed.v0.holds"
        self._data = f"{prefix}.data.v0."
        self._action = f"{prefix}.action.v0."

    def order(self, client_order_id: str) -> str:
        """Return the subject of an order to send."""
        return f"{self._action}orders.{client_order_id}"

    def cancel(self, token: str) -> str:
        """Return the subject of a cancellation, by order id, client order id or ALL."""
        return f"{self._action}cancel.{token}"

    def trade_update(self, symbol: str) -> str:
        """Return the subject of an order's updates."""
        return f"{self._data}tradeupdates.{encode_token(symbol)}"

    def bar(self, symbol: str) -> str:
        """Return the subject of a symbol's bars."""
        return f"{self._data}stocks.{encode_token(symbol)}"

    def item(self, feed: str, symbol: str) -> str:
        """Return the subject of Alpaca's own items for readers who hold them; without a symbol, of watermarks."""
        return f"{self._data}items.{feed}.{encode_token(symbol)}"

    def items(self, feed: str) -> str:
        """Return the subjects of all items of a feed."""
        return f"{self._data}items.{feed}.*"

    def news(self, news_id: object) -> str:
        """Return the subject of an article."""
        return f"{self._data}news.{encode_token(str(news_id))}"

    def result(self, token: str) -> str:
        """Return the subject of an action's result; `token` as the sender wrote it."""
        return f"{self._data}results.{token}"

    def parse_action(self, subject: str) -> Action:
        """Return what a subject of the action stream asks for; the token of one that nobody takes is all of its end."""
        rest = subject.removeprefix(self._action)
        first, _, token = rest.partition(".")
        kind = _ACTIONS.get(first, UNMATCHED)
        if kind == UNMATCHED or not token:
            return Action(kind, rest, is_matched=False)
        return Action(kind, token, is_matched="." not in token)


def encode_token(symbol: str) -> str:
    """Return a symbol as one token of a subject, whatever it is; an empty one is `_`."""
    text = symbol.strip().upper().replace(".", "_").replace("/", "-")
    return _NO_TOKEN.sub("_", text) or "_"
