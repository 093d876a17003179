"""Whether the hub is well."""

from __future__ import annotations

import pytest

from dry_work.hub.core import ConnectionState
from dry_work.hub.health import HealthReport, assess_health, build_document, name_feeds
from dry_work.hub.ports import SinkStatus, TopicStatus
from dry_work.hub.upstreams.connection import FeedStatus

UP, DOWN = ConnectionState.CONNECTED, ConnectionState.RECONNECTING


def feed(name: str, state: ConnectionState = UP, *, wanted: int = 1, **more: object) -> FeedStatus:
    return FeedStatus(feed=name, state=state, wanted=wanted, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("feeds", "status", "is_ready", "is_all_ready"),
    [
        ([], "healthy", True, True),
        ([feed("iex", ConnectionState.DISCONNECTED, wanted=0)], "healthy", True, True),
        ([feed("iex"), feed("orders.paper")], "healthy", True, True),
        ([feed("iex", DOWN), feed("orders.paper")], "degraded", True, False),
        ([feed("iex", DOWN), feed("orders.paper", ConnectionState.ERROR)], "unhealthy", False, False),
        ([feed("iex"), feed("opra", DOWN, wanted=0)], "healthy", True, True),
        ([feed("iex", ConnectionState.AUTHENTICATING)], "unhealthy", False, False),
    ],
)
def test_what_is_required_decides(feeds: list[FeedStatus], status: str, is_ready: bool, is_all_ready: bool) -> None:
    report = assess_health(feeds)
    assert (report.status, report.is_ready, report.is_all_ready) == (status, is_ready, is_all_ready)


@pytest.mark.parametrize(
    "report",
    [
        assess_health([feed("iex")], sinks=[SinkStatus(name="nats", is_ready=False, error="gone")]),
        assess_health([feed("iex")], accounts={"paper": "no answer"}),
        assess_health([feed("iex")], topics=[TopicStatus(topic="market-data", error="unavailable")]),
    ],
)
def test_a_server_that_is_down_is_told_and_leaves_the_feeds_healthy(report: HealthReport) -> None:
    assert (report.status, report.is_ready, report.is_all_ready) == ("healthy", True, False)


def test_servers_that_are_up_do_no_harm() -> None:
    report = assess_health(
        [feed("iex")],
        sinks=[SinkStatus(name="nats"), SinkStatus(name="redis", is_ready=False)],
        topics=[TopicStatus(topic="news")],
        accounts={"live": ""},
    )
    assert report.dependencies == {"alpaca.live": "", "nats": "", "redis": "not ready", "pubsub.news": ""}


@pytest.mark.parametrize(
    ("names", "environment", "expected"),
    [
        (["iex", "indicative", "crypto", "news"], "paper", ["sip", "opra", "crypto", "news"]),
        (["delayed_sip", "opra"], "live", ["sip", "opra"]),
        (["orders.paper"], "paper", ["trading"]),
        (["orders.live"], "paper", ["trading"]),
        (["orders.paper", "orders.live"], "paper", ["trading", "trading_live"]),
        (["orders.paper", "orders.live"], "live", ["trading_paper", "trading"]),
    ],
)
def test_feeds_have_the_names_that_readers_know(names: list[str], environment: str, expected: list[str]) -> None:
    assert list(name_feeds([feed(name) for name in names], environment)) == expected


def test_the_document_has_the_three_feeds_whatever_there_is() -> None:
    report = assess_health([feed("iex", items={"q": 3, "b": 1}, unknown={"z": 1}, attempts=2)])
    document = build_document(
        report, version="9.9", now_ns=1_767_366_245_999_999_999, uptime_s=3.9, clients=5, receivers=6, is_draining=True
    )
    assert list(document["feeds"]) == ["sip", "opra", "trading"]
    assert document["feeds"]["sip"] == {
        "state": "connected",
        "connected": True,
        "messages_received": 5,
        "reconnect_attempts": 2,
        "required": True,
        "error": "",
    }
    assert document["feeds"]["trading"]["state"] == "disconnected"
    assert document["feeds"]["trading"]["required"] is False
    del document["feeds"]
    assert document == {
        "status": "healthy",
        "version": "9.9",
        "uptime_secs": 3,
        "current_time": "2026-01-02T15:04:05Z",
        "clients": {"total": 5},
        "subscriptions": {"broadcast_receivers": 6},
        "dependencies": {},
        "draining": True,
    }


def test_the_document_tells_what_is_down_and_why() -> None:
    report = assess_health([], sinks=[SinkStatus(name="nats", is_ready=False, error="gone"), SinkStatus(name="grpc")])
    document = build_document(report, version="1", now_ns=0, uptime_s=0, clients=0, receivers=0, is_draining=False)
    assert document["dependencies"] == {"nats": {"up": False, "error": "gone"}, "grpc": {"up": True}}
