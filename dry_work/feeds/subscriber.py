"""Subscriptions of Pub/Sub by Google's client: the only file of the feeds that knows it. Thread-safe.

Streams use the client's `streaming_pull` itself, not its `subscribe`: that hides the loss of a stream, waits up to ten
seconds, and cannot be stopped meanwhile, when a stream ends several times (google-api-core 2.x, `bidi._Throttle`).
Its pool of threads would change the order of the messages, too.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import msgspec
import structlog
from google.api_core import exceptions as google_exceptions
from google.api_core import retry as google_retry
from google.auth import exceptions as auth_exceptions
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import ExpirationPolicy, StreamingPullRequest, StreamingPullResponse, Subscription

from dry_work import pulse
from dry_work.clock import SECOND_NS
from dry_work.errors import ConfigError, FeedDisconnectedError, FeedError
from dry_work.feeds.timed_reader import TimedReader
from dry_work.pulse import give_pulse

ACK_DEADLINE_S = 30
EXPIRATION_S = 86_400  # the least that Pub/Sub allows
MAX_MESSAGES = 1000
MAX_BYTES = 100 * 1_000_000
RESPONSES_AHEAD = 4  # that are read before they are taken; the server counts their messages as outstanding
_PAGE = 1000  # subscriptions that are listed at a time

# gRPC's own reconnect waits would otherwise grow to two minutes.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
)
_LEASE_S = 60  # of messages in a stream that are not acknowledged yet
_EXTEND_AFTER_S = 20.0

_log = structlog.get_logger(__name__)


class MissingTopicError(ConfigError):
    """The topic does not exist. Handled by the command line: exit 2."""


class SubscriptionExistsError(FeedError):
    """A subscription of this name exists already. Handled by the owner: look whose it is."""


class SubscriptionGoneError(FeedError):
    """The subscription does not exist any more. Handled by the owner: the source has failed."""


class SubscriptionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an existing subscription."""

    topic: str  # full name, or _deleted-topic_
    filter: str
    labels: Mapping[str, str]


class PulledMessage(msgspec.Struct, frozen=True):
    """A message as it was delivered."""

    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    publish_ns: int = 0  # when the server took it


# Given a message and something to call now and then while it cannot be taken yet; False: it was not taken.
TakeMessage = Callable[[PulledMessage, Callable[[], None]], bool]


class PullStream:
    """One streaming pull on a thread of its own. What was taken is acknowledged.

    Args:
        take: called with one message after the other; while it blocks, nothing more is read.
        on_end: called once from the stream's thread, with the error that ended it, or None after `cancel`.
    """

    def __init__(
        self, client: Any, path: str, *, take: TakeMessage, on_end: Callable[[Exception | None], None]
    ) -> None:
        self._client = client
        self._path = path
        self._take = take
        self._on_end = on_end
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        self._lock = threading.Lock()
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name=f"dry-work {path.rpartition('/')[2]}", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Begin to end it."""
        with self._lock:
            self._cancelled = True
            if self._call is not None:
                self._call.cancel()

    @property
    def is_alive(self) -> bool:
        """Tell whether it has not ended."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended; False when that takes longer than `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def beat(self) -> None:
        """Tell the server that somebody is here."""
        self._requests.put(StreamingPullRequest())

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            self._requests.put(
                StreamingPullRequest(
                    subscription=self._path,
                    stream_ack_deadline_seconds=_LEASE_S,
                    max_outstanding_messages=MAX_MESSAGES,
                    max_outstanding_bytes=MAX_BYTES,
                    client_id=str(uuid.uuid4()),
                )
            )
            call = self._client.streaming_pull(requests=iter(self._requests.get, None), retry=None, timeout=None)
            with self._lock:
                self._call = call
                if self._cancelled:
                    call.cancel()
            responses = TimedReader(call, name=f"dry-work pull {self._path.rpartition('/')[2]}", ahead=RESPONSES_AHEAD)
            try:
                self._take_all(responses)
            finally:
                responses.close(call.cancel)
            failure = FeedDisconnectedError(f"{self._path}: the server ended the stream")
        except BaseException as error:  # whatever it was, its owner has to open another one
            failure = _translate(error, self._path)
        finally:
            self._requests.put(None)  # ends the client's thread that sends
        self._on_end(None if self._cancelled else failure)

    def _take_all(self, responses: TimedReader[Any]) -> None:
        try:
            while True:
                give_pulse()
                for response in responses.take(pulse.EVERY_S):
                    self._read(StreamingPullResponse.pb(response).received_messages)
        except StopIteration:
            return

    def _read(self, received: Any) -> None:
        waiting = [each.ack_id for each in received]
        taken = 0
        acknowledged = 0
        extended_at = time.monotonic()

        def tend() -> None:
            give_pulse()
            nonlocal acknowledged, extended_at
            if taken > acknowledged:
                self._requests.put(StreamingPullRequest(ack_ids=waiting[acknowledged:taken]))
                acknowledged = taken
            if time.monotonic() - extended_at > _EXTEND_AFTER_S:
                extended_at = time.monotonic()
                left = waiting[taken:]
                self._requests.put(
                    StreamingPullRequest(modify_deadline_ack_ids=left, modify_deadline_seconds=[_LEASE_S] * len(left))
                )

        for each in received:
            message = each.message
            published = message.publish_time
            publish_ns = published.seconds * SECOND_NS + published.nanos
            pulled = PulledMessage(message.data, dict(message.attributes), message.message_id, publish_ns)
            if not self._take(pulled, tend):
                break
            taken += 1
        tend()


class Subscriber:
    """A connection to the subscriptions of one project.

    Args:
        project_id: Google Cloud project.
        endpoint: host:port of an emulator or of the embedded server; None: Google.
        timeout_s: limit of each request, tries included.
    """

    def __init__(self, project_id: str, *, endpoint: str | None, timeout_s: float = 10.0) -> None:
        self.project_id = project_id
        self.target = endpoint or "pubsub.googleapis.com"
        self._timeout_s = timeout_s
        self._client = _connect(endpoint)
        self._channel: grpc.Channel = self._client.transport.grpc_channel
        self._watchers: list[Callable[[grpc.ChannelConnectivity], None]] = []
        self._closed = False

    def path(self, subscription_id: str) -> str:
        """Return the subscription's full name."""
        return f"projects/{self.project_id}/subscriptions/{subscription_id}"

    def topic_path(self, topic: str) -> str:
        """Return the topic's full name."""
        return f"projects/{self.project_id}/topics/{topic}"

    def find(self, subscription_id: str, *, timeout_s: float | None = None) -> SubscriptionFacts | None:
        """Return what is known of a subscription, None when it does not exist."""
        try:
            found = self._call(self._client.get_subscription, timeout_s, subscription=self.path(subscription_id))
        except SubscriptionGoneError:
            return None
        return SubscriptionFacts(topic=found.topic, filter=found.filter, labels=dict(found.labels))

    def list_names(self, *, prefix: str, most_pages: int = 10) -> list[str]:
        """Return the ids that begin with `prefix` among the project's first pages of subscriptions."""
        found: list[str] = []
        token = ""
        for _ in range(most_pages):
            request = {"project": f"projects/{self.project_id}", "page_size": _PAGE, "page_token": token}
            page = self._call(self._client.list_subscriptions, None, request=request)
            found += [each.name.rpartition("/")[2] for each in page.subscriptions]
            token = page.next_page_token
            if not token:
                break
        return sorted(name for name in found if name.startswith(prefix))

    def create(self, subscription_id: str, topic: str, *, labels: Mapping[str, str]) -> None:
        """Create a subscription without filter that expires when nobody uses it.

        Raises:
            MissingTopicError: the topic does not exist.
            SubscriptionExistsError: the name is taken.
        """
        request = Subscription(
            name=self.path(subscription_id),
            topic=self.topic_path(topic),
            ack_deadline_seconds=ACK_DEADLINE_S,
            expiration_policy=ExpirationPolicy(ttl={"seconds": EXPIRATION_S}),
            labels=dict(labels),
        )
        try:
            self._call(self._client.create_subscription, None, request=request)
        except SubscriptionGoneError:
            raise MissingTopicError(
                f"topic {topic!r} does not exist in project {self.project_id!r} at {self.target}; create it, for "
                f"example with `gcloud pubsub topics create {topic} --project {self.project_id}`, or start the "
                "publisher first"
            ) from None

    def delete(self, subscription_id: str, *, timeout_s: float | None = None) -> None:
        """Delete a subscription; it is no error when there is none."""
        try:
            self._call(self._client.delete_subscription, timeout_s, subscription=self.path(subscription_id))
        except SubscriptionGoneError:
            return

    def open_stream(
        self, subscription_id: str, *, take: TakeMessage, on_end: Callable[[Exception | None], None]
    ) -> PullStream:
        """Start to pull, see `PullStream`."""
        return PullStream(self._client, self.path(subscription_id), take=take, on_end=on_end)

    def watch(self, on_change: Callable[[bool], None]) -> None:
        """Call `on_change` with False when the connection is lost and with True when it is there."""

        def look(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.READY:
                on_change(True)
            elif state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                on_change(False)

        self._watchers.append(look)
        self._channel.subscribe(look)

    def close(self) -> None:
        """Close the connection and end its streams. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for watcher in self._watchers:
            self._channel.unsubscribe(watcher)
        self._client.transport.close()

    def _call(self, method: Callable[..., Any], timeout_s: float | None, **request: Any) -> Any:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        # A server that is just starting refuses the first connections.
        retry = google_retry.Retry(
            predicate=google_retry.if_exception_type(google_exceptions.ServiceUnavailable),
            initial=0.1,
            maximum=1.0,
            timeout=limit_s,
        )
        try:
            return method(**request, retry=retry, timeout=limit_s)
        except (google_exceptions.GoogleAPIError, auth_exceptions.GoogleAuthError) as error:
            raise _translate(error, f"Pub/Sub at {self.target}, project {self.project_id!r}") from error


def _translate(error: BaseException, what: str) -> Exception:
    """Return our error for one of the client's."""
    if isinstance(error, google_exceptions.RetryError) and error.cause is not None:
        error = error.cause
    text = f"{what}: {getattr(error, 'message', None) or str(error) or type(error).__name__}"
    if isinstance(error, google_exceptions.NotFound):
        return SubscriptionGoneError(text)
    if isinstance(error, google_exceptions.AlreadyExists):
        return SubscriptionExistsError(text)
    if isinstance(error, auth_exceptions.DefaultCredentialsError):
        return ConfigError(_NO_CREDENTIALS)
    if isinstance(error, google_exceptions.Forbidden | google_exceptions.Unauthorized):
        return ConfigError(f"{text}; the account needs the role Pub/Sub Editor, or Subscriber and Viewer")
    if isinstance(error, google_exceptions.InvalidArgument):
        return ConfigError(text)
    return FeedDisconnectedError(text)


_NO_CREDENTIALS = (
    "no Google credentials: set GOOGLE_APPLICATION_CREDENTIALS or run `gcloud auth application-default login`; "
    "for an emulator set PUBSUB_EMULATOR_HOST"
)


def _connect(endpoint: str | None) -> Any:
    """Return a client; no connection is made yet."""
    if endpoint is not None:
        channel = grpc.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        return SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
    try:
        return SubscriberClient(transport=SubscriberGrpcTransport(channel=_create_channel))
    except auth_exceptions.GoogleAuthError as error:
        raise ConfigError(f"{_NO_CREDENTIALS} ({error})") from error


def _create_channel(host: str, **settings: Any) -> Any:
    settings["options"] = _CHANNEL_OPTIONS
    return SubscriberGrpcTransport.create_channel(host, **settings)
