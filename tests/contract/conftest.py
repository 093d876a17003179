"""Google's own clients on a Pub/Sub server: ours, and Google's emulator where it is found; and the capability table.

The emulator is the one of `PUBSUB_EMULATOR_HOST`, else one of an installed SDK, else a container when Docker answers.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient as GapicPublisher

from dry_work.embedded.pubsub import EmbeddedPubSub
from tests.ports import find_free_port

TIMEOUT_S = 60.0

EMULATOR_START_S = 60.0
EMULATOR_IMAGE = "google/cloud-sdk:emulators"
EMULATOR_PORT = 8432
SDK_ROOTS = ("/usr/lib/google-cloud-sdk", "/usr/share/google-cloud-sdk", "/snap/google-cloud-sdk/current")


def find_emulator_launcher() -> Path | None:
    """Return the launcher of the emulator in an installed Google Cloud SDK."""
    roots = [Path(root) for root in SDK_ROOTS]
    if gcloud := shutil.which("gcloud"):
        roots.insert(0, Path(gcloud).resolve().parent.parent)
    if root := os.environ.get("CLOUDSDK_ROOT"):
        roots.insert(0, Path(root))
    for root in roots:
        launcher = root / "platform" / "pubsub-emulator" / "bin" / "cloud-pubsub-emulator"
        if launcher.is_file():
            return launcher
    return None


def wait_until_listening(port: int, is_running: Callable[[], bool], host: str = "127.0.0.1") -> bool:
    deadline = time.monotonic() + EMULATOR_START_S
    while time.monotonic() < deadline and is_running():
        try:
            socket.create_connection((host, port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False


@contextlib.contextmanager
def run_launcher(launcher: Path) -> Iterator[str]:
    """Run the emulator of an installed SDK; yields host and port."""
    port = find_free_port()
    process = subprocess.Popen(
        [str(launcher), "--host=127.0.0.1", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        if not wait_until_listening(port, lambda: process.poll() is None):
            pytest.skip(f"Google's Pub/Sub emulator ({launcher}) did not listen within {EMULATOR_START_S:g} s")
        yield f"127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_docker_there() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@contextlib.contextmanager
def run_container() -> Iterator[str]:
    """Run the emulator in a container; yields host and port."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from testcontainers.core.container import DockerContainer

        container = DockerContainer(EMULATOR_IMAGE).with_exposed_ports(EMULATOR_PORT)
        container.with_command(f"gcloud beta emulators pubsub start --host-port=0.0.0.0:{EMULATOR_PORT}")
        try:
            container.start()
        except Exception as error:
            pytest.skip(f"Docker answers but {EMULATOR_IMAGE} could not be run: {error}")
        try:
            host, port = container.get_container_host_ip(), int(container.get_exposed_port(EMULATOR_PORT))
            if not wait_until_listening(port, lambda: True, host):
                pytest.skip(f"Google's Pub/Sub emulator ({EMULATOR_IMAGE}) did not listen in {EMULATOR_START_S:g} s")
            yield f"{host}:{port}"
        finally:
            container.stop()


@pytest.fixture(scope="session")
def emulator_target() -> Iterator[str]:
    """Host and port of Google's emulator."""
    if target := os.environ.get("PUBSUB_EMULATOR_HOST"):
        yield target
        return
    launcher = find_emulator_launcher()
    if launcher is not None and (shutil.which("java") is not None or "JAVA_HOME" in os.environ):
        with run_launcher(launcher) as target:
            yield target
    elif is_docker_there():
        with run_container() as target:
            yield target
    else:
        pytest.skip(
            "Google's Pub/Sub emulator was not found: no PUBSUB_EMULATOR_HOST, no SDK with pubsub-emulator and Java, "
            "no Docker"
        )


class Pubsub:
    """Google's clients on one server, in a project of the test's own."""

    def __init__(self, target: str, monkeypatch: pytest.MonkeyPatch, server_name: str = "embedded") -> None:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", target)
        self.target = target
        self.server_name = server_name
        self.patience_s = TIMEOUT_S
        self.publisher = pubsub_v1.PublisherClient()
        self.subscriber = pubsub_v1.SubscriberClient()
        self.project = f"test-{uuid.uuid4().hex[:8]}"
        self.topic = f"projects/{self.project}/topics/market-data"
        self.subscription = f"projects/{self.project}/subscriptions/agent-one"
        self._pulls: list[Any] = []

    def create(self, **settings: Any) -> None:
        self.publisher.create_topic(name=self.topic)
        self.subscriber.create_subscription(request={"name": self.subscription, "topic": self.topic, **settings})

    def publish(self, *payloads: bytes, key: str = "", **attributes: str) -> list[str]:
        """Publish in one request, past the client's batching."""
        messages = [{"data": data, "attributes": attributes, "ordering_key": key} for data in payloads]
        return list(GapicPublisher.publish(self.publisher, topic=self.topic, messages=messages).message_ids)

    def update(self, *paths: str, **settings: Any) -> Any:
        """Update these fields of the subscription."""
        request = {"subscription": {"name": self.subscription, **settings}, "update_mask": {"paths": paths}}
        return self.subscriber.update_subscription(request=request, retry=None)

    def pull(self, count: int = 100, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Pull once; nothing within the time is an empty list."""
        try:
            answer = self.subscriber.pull(
                subscription=self.subscription, max_messages=count, timeout=timeout_s, retry=None
            )
        except exceptions.DeadlineExceeded:
            return []
        return list(answer.received_messages)

    def pull_all(self, count: int) -> list[Any]:
        """Pull until `count` messages have come."""
        received: list[Any] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(received) < count:
            assert time.monotonic() < deadline, f"{len(received)} of {count} messages came in time"
            received += self.pull(count - len(received))
        return received

    def acknowledge(self, *ack_ids: str) -> None:
        self.subscriber.acknowledge(subscription=self.subscription, ack_ids=list(ack_ids))

    def give_back(self, *ack_ids: str, after_s: int = 0) -> None:
        self.subscriber.modify_ack_deadline(
            subscription=self.subscription, ack_ids=list(ack_ids), ack_deadline_seconds=after_s
        )

    def subscribe(self, callback: Callable[[Any], None], **flow: Any) -> Any:
        pull = self.subscriber.subscribe(
            self.subscription, callback=callback, flow_control=pubsub_v1.types.FlowControl(**flow)
        )
        self._pulls.append(pull)
        return pull

    def open_stream(self, **first: Any) -> Stream:
        return Stream(self, first)

    def close(self) -> None:
        for pull in self._pulls:
            pull.cancel()
            with contextlib.suppress(exceptions.GoogleAPICallError):
                pull.result(TIMEOUT_S)
        self.publisher.stop()
        self.publisher.transport.close()
        self.subscriber.close()


class Stream:
    """A raw streaming pull: what the server itself sends, before the client's own flow control."""

    def __init__(self, pubsub: Pubsub, first: dict[str, Any]) -> None:
        self.requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.requests.put({"subscription": pubsub.subscription, "stream_ack_deadline_seconds": 10, **first})
        self.received: list[Any] = []
        self.properties: Any = None
        self.error: exceptions.GoogleAPICallError | None = None
        self.ended = threading.Event()
        generator = iter(self.requests.get, None)
        self._call = pubsub.subscriber.streaming_pull(
            requests=(pubsub_v1.types.StreamingPullRequest(request) for request in generator)
        )
        self._thread = threading.Thread(target=self._read, name="test-stream")
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self.properties = response.subscription_properties
                self.received += response.received_messages
        except exceptions.GoogleAPICallError as error:
            self.error = error
        self.ended.set()

    @property
    def data(self) -> list[bytes]:
        return [one.message.data for one in self.received]

    def send(self, **request: Any) -> None:
        self.requests.put(request)

    def close(self) -> None:
        self._call.cancel()
        self.requests.put(None)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def server() -> Iterator[EmbeddedPubSub]:
    server = EmbeddedPubSub()
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["embedded", pytest.param("emulator", marks=pytest.mark.emulator)])
def pubsub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pubsub]:
    """Clients on either server."""
    if request.param == "embedded":
        target = request.getfixturevalue("server").target
    else:
        target = request.getfixturevalue("emulator_target")
    pubsub = Pubsub(target, monkeypatch, request.param)
    yield pubsub
    pubsub.close()


@pytest.fixture
def make_pubsub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Pubsub]]:
    """Make clients on a server that the test runs itself."""
    made: list[Pubsub] = []

    def make(target: str) -> Pubsub:
        made.append(Pubsub(target, monkeypatch))
        return made[-1]

    yield make
    for pubsub in made:
        pubsub.close()


@pytest.fixture
def ours(server: EmbeddedPubSub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pubsub]:
    """Clients on our server, for what is documented and the emulator does otherwise."""
    pubsub = Pubsub(server.target, monkeypatch)
    yield pubsub
    pubsub.close()
