"""The subscriptions of one agent: names, ownership, and streams that are kept open. Thread-safe.

Each carries the owner's nonce as a label, so that two processes with one agent id are seen: Pub/Sub would give each of
them half of the messages.
"""

from __future__ import annotations

import os
import random
import re
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import structlog

from dry_work.backoff import Backoff
from dry_work.clock import SECOND_NS, Clock
from dry_work.errors import ConfigError, FeedError, LeaseHeldError
from dry_work.feeds.subscriber import (
    PulledMessage,
    PullStream,
    Subscriber,
    SubscriptionExistsError,
    SubscriptionFacts,
    SubscriptionGoneError,
)
from dry_work.ports import SourceFailed, SourceStatus
from dry_work.pulse import give_pulse

OWNER_LABEL = "dry-work-owner"
HOST_LABEL = "dry-work-host"
PID_LABEL = "dry-work-pid"
SINCE_LABEL = "dry-work-since"

_SUBSCRIPTION_ID = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~%+-]{2,254}")
_NONCE = re.compile(r"[a-z0-9_-]{1,63}")

GONE_WAIT_S = 1.0  # before a subscription that is gone is made again
_BEAT_S = 30.0
LOOK_S = 2.0  # between looks at whether the streams' threads are there
_REACH_TIMEOUT_S = 2.0  # of one try to reach Pub/Sub again

_log = structlog.get_logger(__name__)


def subscription_id(agent_id: str, topic: str) -> str:
    """Return the id of the agent's subscription on `topic`.

    Raises:
        ConfigError: Pub/Sub would refuse it.
    """
    found = f"agent-{agent_id}-{topic}"
    if not agent_id or not topic or not _SUBSCRIPTION_ID.fullmatch(found):
        raise ConfigError(
            f"AGENT_ID {agent_id!r} and topic {topic!r} make no subscription id: allowed are letters, digits and "
            "._~%+- and at most 255 characters in all; a topic is given by its id, without its project"
        )
    return found


def build_labels(owner_nonce: str, clock: Clock) -> dict[str, str]:
    """Return the labels that say whose a subscription is."""
    if not _NONCE.fullmatch(owner_nonce):
        raise ConfigError("the owner nonce must be 1 to 63 lower-case letters, digits, hyphens and underscores")
    return {
        OWNER_LABEL: owner_nonce,
        HOST_LABEL: re.sub(r"[^a-z0-9_-]", "-", socket.gethostname().lower())[:63],
        PID_LABEL: str(os.getpid()),
        SINCE_LABEL: str(clock.time_ns() // SECOND_NS),
    }


def describe_owner(labels: Mapping[str, str]) -> str:
    """Return who made a subscription, as its labels say."""
    host, pid, since = (labels.get(name, "?") for name in (HOST_LABEL, PID_LABEL, SINCE_LABEL))
    if since.isdigit():
        since = datetime.fromtimestamp(int(since), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"process {pid} on {host} since {since}"


class SubscriptionKeeper:
    """Claims the subscriptions, opens lost streams again, and sees when they are lost for good.

    Args:
        subscriptions: subscription id by topic.
        labels: as `build_labels` makes them.
        take: given topic, message and what to call now and then while it waits, on a thread per topic; False: it was
            not taken.
        report: called with what the engine must know: lost, back, and gone for good; it must not block.
        owner_check_s: seconds between looks at whether the subscriptions are still ours.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        subscriptions: Mapping[str, str],
        *,
        labels: Mapping[str, str],
        take: Callable[[str, PulledMessage, Callable[[], None]], bool],
        report: Callable[[SourceStatus | SourceFailed], None],
        clock: Clock,
        rng: random.Random,
        owner_check_s: float,
    ) -> None:
        self.reconnects = 0
        self.recreated = 0  # subscriptions that were gone
        self._subscriber = subscriber
        self._subscriptions = subscriptions
        self._labels = labels
        self._take = take
        self._report = report
        self._clock = clock
        self._owner_check_s = owner_check_s
        self._backoffs = {topic: Backoff(random.Random(rng.getrandbits(64))) for topic in subscriptions}
        self._claimed: list[str] = []
        self._streams: dict[str, PullStream] = {}
        self._changed = threading.Condition()
        self._ended: dict[str, Exception | None] = {}  # topics whose stream is over, until it is dealt with
        self._lost: set[str] = set()  # topics without a stream
        self._channel_up = True
        self._hurry = False  # the connection is back: try at once
        self._connected = True
        self._stopping = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="dry-work-subscriptions", daemon=True)

    def claim(self, *, take_over: bool, agent_id: str) -> None:
        """Make the subscriptions, in place of those that are ours already."""
        for topic, name in self._subscriptions.items():
            # A second look is needed only when another process makes it in between.
            for _ in range(3):
                existing = self._subscriber.find(name)
                if existing is not None:
                    self._check_owner(name, existing, take_over=take_over, agent_id=agent_id)
                    self._subscriber.delete(name)
                try:
                    self._subscriber.create(name, topic, labels=self._labels)
                except SubscriptionExistsError:
                    continue
                self._claimed.append(name)
                break
            else:
                raise FeedError(f"subscription {name} cannot be made: another process makes it again and again")

    def start(self) -> None:
        """Open the streams."""
        for topic in self._subscriptions:
            self._open(topic)
        self._subscriber.watch(self._note_channel)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the streams, delete the subscriptions, close the connection."""
        with self._changed:
            self._stopping = True
            if not self._connected:
                timeout_s = min(timeout_s, 1.0)  # for a try
            deadline_s = self._clock.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s / 4)
        for stream in self._streams.values():
            stream.cancel()
        for stream in self._streams.values():
            stream.join(max(0.0, deadline_s - timeout_s / 2 - self._clock.monotonic()))
        for name in self._claimed:
            left_s = deadline_s - self._clock.monotonic()
            try:
                if left_s <= 0:
                    raise FeedError("no time left")
                if self._is_ours(name, timeout_s=left_s):
                    self._subscriber.delete(name, timeout_s=max(0.1, deadline_s - self._clock.monotonic()))
            except (FeedError, ConfigError) as error:
                _log.warning("subscription not deleted; it expires by itself", subscription=name, error=str(error))
        self._subscriber.close()
        if self._thread.ident is not None:
            self._thread.join(0.5)

    def _check_owner(self, name: str, existing: SubscriptionFacts, *, take_over: bool, agent_id: str) -> None:
        owner = existing.labels.get(OWNER_LABEL)
        if owner is None or owner == self._labels[OWNER_LABEL]:
            return
        who = describe_owner(existing.labels)
        if take_over:
            _log.warning("subscription taken over", subscription=name, owner=who)
            return
        project = self._subscriber.project_id
        raise LeaseHeldError(
            f"subscription {self._subscriber.path(name)} belongs to another process with agent id {agent_id!r} "
            f"({who}): each would get half of the bars. Stop that process, or choose another AGENT_ID; if it is gone, "
            f"start with --take-over or run `gcloud pubsub subscriptions delete {name} --project {project}`"
        )

    def _is_ours(self, name: str, *, timeout_s: float | None = None) -> bool:
        found = self._subscriber.find(name, timeout_s=timeout_s)
        return found is not None and found.labels.get(OWNER_LABEL) == self._labels[OWNER_LABEL]

    def _open(self, topic: str) -> None:
        self._streams[topic] = self._subscriber.open_stream(
            self._subscriptions[topic],
            take=lambda message, tend: self._take(topic, message, tend),
            on_end=lambda error: self._note_end(topic, error),
        )

    # Client's threads

    def _note_end(self, topic: str, error: Exception | None) -> None:
        with self._changed:
            if not self._stopping:
                self._ended[topic] = error
                self._changed.notify_all()

    def _note_channel(self, is_up: bool) -> None:
        with self._changed:
            self._channel_up = is_up
            self._hurry = is_up
            self._update_status()
            self._changed.notify_all()

    # Own thread

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            self._fail(error)

    def _watch(self) -> None:
        retry_at: dict[str, float] = {}
        now = self._clock.monotonic()
        next_check, next_beat = now + self._owner_check_s, now + _BEAT_S
        while True:
            give_pulse()
            with self._changed:
                now = self._clock.monotonic()
                if not (self._stopping or self._ended or self._hurry):
                    due = min([next_check, next_beat, now + LOOK_S, *retry_at.values()])
                    self._changed.wait(max(0.0, due - now))
                if self._stopping or self._failed:
                    return
                ended, self._ended = self._ended, {}
                for topic, stream in self._streams.items():
                    if topic not in ended and topic not in retry_at and not stream.is_alive:
                        ended[topic] = FeedError("its thread ended without a word")
                if self._hurry:
                    self._hurry = False
                    retry_at = dict.fromkeys(retry_at, 0.0)
            now = self._clock.monotonic()
            for topic, error in ended.items():
                self._streams[topic].join(1.0)
                retry_at[topic] = now + self._wait_after_end(topic, error, now)
            for topic in [topic for topic, at in retry_at.items() if at <= now]:
                del retry_at[topic]
                if not self._reopen(topic):
                    retry_at[topic] = now + self._backoffs[topic].next_wait_s(now)
            if now >= next_beat:
                next_beat = now + _BEAT_S
                for stream in self._streams.values():
                    stream.beat()
            if now >= next_check:
                next_check = now + self._owner_check_s
                self._check_all()

    def _wait_after_end(self, topic: str, error: Exception | None, now: float) -> float:
        """Return the seconds until the stream is opened again."""
        _log.info("stream ended", topic=topic, error="" if error is None else str(error))
        if isinstance(error, SubscriptionGoneError):
            # The server has lost it, or another process takes it over; that one must find the name free.
            self._set_lost(topic, True)
            return GONE_WAIT_S
        backoff = self._backoffs[topic]
        wait_s = backoff.next_wait_s(now)
        if backoff.attempts == 1:
            return 0.0  # servers end streams now and then as a matter of course
        self._set_lost(topic, True)
        return wait_s

    def _reopen(self, topic: str) -> bool:
        """Open a stream again, if the subscription is still ours; False when Pub/Sub is not reached."""
        name = self._subscriptions[topic]
        try:
            existing = self._subscriber.find(name, timeout_s=_REACH_TIMEOUT_S)
            if existing is None and not self._stopping:
                self._set_lost(topic, True)  # what was in it is lost: the engine must hear of it
                self._subscriber.create(name, topic, labels=self._labels)
                self.recreated += 1
                _log.warning("subscription was gone and is made again; what was in it is lost", subscription=name)
            elif existing is not None and existing.labels.get(OWNER_LABEL) != self._labels[OWNER_LABEL]:
                self._fail_taken(name, existing)
                return True
        except (FeedError, ConfigError) as error:
            _log.info("Pub/Sub not reached", topic=topic, error=str(error))
            self._set_lost(topic, True)
            return False
        if not self._stopping:
            self._open(topic)
            self._backoffs[topic].mark_connected(self._clock.monotonic())
            self._set_lost(topic, False)
        return True

    def _check_all(self) -> None:
        for name in self._subscriptions.values():
            try:
                found = self._subscriber.find(name)
            except (FeedError, ConfigError) as error:
                _log.info("subscription not checked", subscription=name, error=str(error))
                continue
            # One that is gone ends its stream, which is dealt with there.
            if found is not None and found.labels.get(OWNER_LABEL) != self._labels[OWNER_LABEL] and not self._stopping:
                self._fail_taken(name, found)

    def _set_lost(self, topic: str, is_lost: bool) -> None:
        with self._changed:
            (self._lost.add if is_lost else self._lost.discard)(topic)
            self._update_status()

    def _update_status(self) -> None:
        """Report a change; under the lock, so that reports are in order."""
        if (self._channel_up and not self._lost) == self._connected or self._stopping:
            return
        self._connected = not self._connected
        if self._connected:
            self.reconnects += 1
            status = SourceStatus(connected=True, detail="Pub/Sub is back")
        else:
            what = f"no stream on {', '.join(sorted(self._lost))}" if self._lost else "connection to Pub/Sub lost"
            status = SourceStatus(connected=False, detail=what)
        _log.info("market data", connected=status.connected, detail=status.detail)
        self._report(status)

    def _fail_taken(self, name: str, found: SubscriptionFacts) -> None:
        self._fail(FeedError(f"subscription {name} was taken over by {describe_owner(found.labels)}"))

    def _fail(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._report(SourceFailed(error=error))
