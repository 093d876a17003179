"""The client's part of the hub's WebSocket dialect."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from dry_work.errors import ConfigError, FeedDisconnectedError
from dry_work.feeds.hub_link import Arrival, Opening, Position
from dry_work.feeds.hub_stream import HubStream


def frame(*items: dict[str, Any]) -> bytes:
    return orjson.dumps(list(items))


def build(position: Position | None = None) -> HubStream:
    return HubStream("stocks", token="t", symbols=["AAPL"], position=position)


def bar(number: int) -> dict[str, Any]:
    return {"T": "b", "S": "AAPL", "o": number}


def test_the_conversation_ends_with_a_subscription_from_now() -> None:
    stream = build()
    (auth,), _ = stream.take(frame({"T": "success", "msg": "connected"}))
    assert auth == {"action": "auth", "key": "dry-work", "secret": "t"}
    (wish,), _ = stream.take(frame({"T": "success", "msg": "authenticated"}))
    assert wish == {"action": "subscribe", "bars": ["AAPL"], "watermarks": ["*"]}
    assert stream.take(frame({"T": "subscription", "bars": ["AAPL"]})) == ([], [])
    assert stream.opening is None
    stream.take(frame({"T": "hub", "epoch": "e1", "offset": 7}))
    assert stream.opening == Opening(positions={"stocks": Position("e1", 7)}, recovered=True)


@pytest.mark.parametrize("recovered", [True, False])
def test_one_that_comes_back_says_where_it_stands_and_is_told_whether_that_is_all(recovered: bool) -> None:
    stream = build(Position("e1", 7))
    (wish,), _ = stream.take(frame({"T": "success", "msg": "authenticated"}))
    assert wish["since"] == {"epoch": "e1", "offset": 7}
    stream.take(frame({"T": "hub", "epoch": "e2", "offset": 9, "recovered": recovered}))
    assert stream.opening == Opening(positions={"stocks": Position("e2", 9)}, recovered=recovered)


def test_events_wait_for_the_position_they_lead_to() -> None:
    stream = build()
    stream.take(frame({"T": "hub", "epoch": "e1", "offset": 0}))
    assert stream.take(frame(bar(1), {"T": "t", "S": "AAPL"}, "no map")) == ([], [])  # type: ignore[arg-type]
    _, arrivals = stream.take(frame(bar(2), {"T": "hub", "epoch": "e1", "offset": 5}, bar(3)))
    assert arrivals == [
        Arrival(feed="stocks", epoch="e1", item=bar(1)),
        Arrival(feed="stocks", epoch="e1", item=bar(2)),
        Arrival(feed="stocks", epoch="e1", offset=5),
    ]
    _, arrivals = stream.take(frame({"T": "hub", "epoch": "e1", "offset": 6}))
    assert arrivals[0].item == bar(3)


def error(code: int) -> bytes:
    return frame({"T": "error", "code": code, "msg": "why"})


def test_errors_are_told_by_what_can_be_done() -> None:
    with pytest.raises(ConfigError, match="HUB_TOKEN"):
        build().take(error(402))
    with pytest.raises(ConfigError, match="why"):
        build().take(error(410))
    opened = build()
    opened.take(frame({"T": "hub", "epoch": "e1", "offset": 0}))
    with pytest.raises(FeedDisconnectedError, match="407"):  # a slow reader comes back for what it has lost
        opened.take(error(407))


@pytest.mark.parametrize("data", [b"{}", b"no", frame({"T": "hub", "epoch": 1, "offset": "x"})])
def test_a_frame_that_cannot_be_read_ends_the_session(data: bytes) -> None:
    with pytest.raises(FeedDisconnectedError):
        build().take(data)
