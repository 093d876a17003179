"""What the parts of the hub know of each other. Everything here is called in the hub's event loop."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from dry_work.clock import Clock
from dry_work.hub.bus import Bus
from dry_work.hub.events import Topic

TOPIC_CAPACITY = 20_000  # bars and watermarks of one topic that may wait for Pub/Sub


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of the hub at one moment, and its counts since the start."""

    name: str  # pubsub, nats, redis, websocket, grpc
    is_ready: bool = True  # what it depends on (its server, its port) is there
    clients: int = 0
    offered: int = 0  # events for its clients; = delivered + conflated + dropped + waiting
    delivered: int = 0
    conflated: int = 0
    dropped: int = 0
    waiting: int = 0
    error: str = ""  # why it is not ready, or the last failure
    delivered_types: dict[str, int] = {}  # of those delivered, by type of message; what is missing is of no known type
    dropped_types: dict[str, int] = {}
    results: dict[tuple[str, str], int] = {}  # of what clients asked for, by action and outcome
    failures: dict[str, int] = {}  # by kind


class TopicStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A topic of Pub/Sub at one moment, and its counts: bars, statuses and watermarks, however many go in a message."""

    topic: str
    published: int = 0  # those that Pub/Sub has taken
    requests: int = 0  # requests that succeeded
    pending: int = 0  # taken from upstream and not published yet
    dropped: int = 0  # given up at stop, or for newer ones while Pub/Sub was away
    held: int = 0  # news or order updates that wait in the hub's history, because the topic is full
    failures: int = 0  # requests that failed and were sent again
    error: str = ""  # the last failure; empty once a request has succeeded


class Sink(Protocol):
    """One interface of the hub: it takes what clients want, and gives them events."""

    name: str

    async def start(self) -> None:
        """Open the interface. A server that is not there is tried on, in the background.

        Raises:
            ConfigError: it cannot be opened as it is set up.
        """

    async def stop(self, timeout_s: float) -> None:
        """Deliver what waits, at most `timeout_s` seconds long, and close. May be called twice."""

    def status(self) -> SinkStatus:
        """Return the interface as it is now."""


class HealthPart(Protocol):
    """What tells others how the hub is: the first part to start and the last to stop."""

    async def start(self) -> None:
        """Open its ports.

        Raises:
            ConfigError: one of them cannot be opened.
        """

    def note_started(self) -> None:
        """Every interface is open: from now on the hub may be ready."""

    def is_ready(self) -> bool:
        """Tell whether every feed that is required, and every server that the hub depends on, is up."""

    async def stop(self) -> None:
        """Close the ports. May be called twice."""


@runtime_checkable
class StateTaker(Protocol):
    """An interface that tells its clients how the upstreams stand."""

    def note_state(self, feed: str, state: str) -> None:
        """The connection of `feed` is in another state."""


@runtime_checkable
class ActionTaker(Protocol):
    """An interface that carries out what its clients ask for, such as orders."""

    async def finish_actions(self, timeout_s: float) -> bool:
        """Take nothing more in, and bring what is under way to its end, at most `timeout_s` seconds long.

        Returns whether anything was under way. Called before `stop`, while the upstreams still tell what becomes of it.
        """


class OrderAccount(Protocol):
    """An account whose orders go through the hub. Its requests are made on threads; a call returns when one is done."""

    environment: str  # paper or live
    account_id: str  # Alpaca's id, empty until it is known
    account_number: str

    async def call(
        self,
        method: str,
        path: str,
        data: Mapping[str, Any] | None = None,
        *,
        lane: str = "",
        timeout_s: float | None = None,
    ) -> Any:
        """Send one request of Alpaca's trading API and return the decoded answer; `path` is without its version.

        Args:
            method: see `dry_work.alpaca.venue_api.VenueApi.call`.
            path: see there.
            data: see there.
            lane: requests of one lane are made one after another, in the order of the calls. Empty: those that change
                something share one, and those that only ask are in none.
            timeout_s: of the request, from its begin; None: as the account has it.

        Raises:
            BrokerError: as there; OutcomeUnknownError when the time is over, BrokerUnavailableError when the request
                could not begin in time.
        """


class HubPort(Protocol):
    """The hub, as its interfaces see it."""

    bus: Bus
    clock: Clock
    rng: random.Random

    def hold(self, client: str, topics: Iterable[Topic]) -> None:
        """Note that `client` wants `topics` too; those that nobody wanted before are subscribed upstream.

        Order updates flow whether held or not. A client that holds nothing more for good is let go of with `release`.

        Raises:
            ConfigError: for a topic that no upstream of this hub serves. Nothing is held then.
        """

    def release(self, client: str, topics: Iterable[Topic] | None = None) -> None:
        """Let go of `topics` (None: all) of `client`; those that nobody wants any more are unsubscribed."""

    def account(self, environment: str) -> OrderAccount | None:
        """Return the account of `paper` or `live`; None when the hub has no credentials for it."""

    def is_ready(self) -> bool:
        """Tell whether every feed that is required, and every server that the hub depends on, is up."""
