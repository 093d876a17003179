"""`dry-work pubsub` as a user types it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.cloud import pubsub_v1

from dry_work.addresses import is_loopback_host
from dry_work.cli import main
from dry_work.cli.pubsub import command
from dry_work.errors import ConfigError

TIMEOUT_S = 60.0


@contextlib.contextmanager
def run_command(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command until the block ends; yields the process and the target that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from dry_work.cli import main; main()", "pubsub", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "GOOGLE_CLOUD_PROJECT"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.fullmatch(r"export PUBSUB_EMULATOR_HOST=(\S+)\n", line):
                yield process, found.group(1)
                return
        pytest.fail(f"no target was printed: {process.communicate()}")
    finally:
        process.kill()
        process.communicate()


def wait_until_caught(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Wait until the process has a handler for the signal."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc to see when the handler of a signal is set")
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status.read_text())
        if caught and int(caught.group(1), 16) >> (number - 1) & 1:
            return
        assert time.monotonic() < deadline, f"{number.name} was not handled in time"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_its_topics_until_it_is_stopped(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_command("--project", "local", "--topic", "market-data", "--topic", "crypto-data") as (process, target):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", target)
        publisher = pubsub_v1.PublisherClient()
        names = [topic.name for topic in publisher.list_topics(project="projects/local", timeout=TIMEOUT_S)]
        publisher.stop()
        publisher.transport.close()
        assert names == ["projects/local/topics/crypto-data", "projects/local/topics/market-data"]
        wait_until_caught(process, number)
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == code
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_port_in_use_ends_the_command_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as raised:
            main(["pubsub", "--port", str(port)])
    assert raised.value.code == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert re.search(rf"127\.0\.0\.1:{port}: Address already in use; choose another --port", error)


def test_a_topic_needs_a_project() -> None:
    result = CliRunner(env={"GOOGLE_CLOUD_PROJECT": ""}).invoke(command, ["--topic", "market-data"])
    assert isinstance(result.exception, ConfigError)
    assert "GOOGLE_CLOUD_PROJECT" in str(result.exception)


def test_a_topic_that_google_does_not_allow_is_refused() -> None:
    result = CliRunner().invoke(command, ["--project", "p", "--topic", "goog-data"])
    assert isinstance(result.exception, ConfigError)
    assert "projects/p/topics/goog-data" in str(result.exception)


def test_a_host_beyond_the_loopback_must_be_given_on_the_command_line() -> None:
    result = CliRunner().invoke(command, [], default_map={"host": "0.0.0.0"})
    assert isinstance(result.exception, ConfigError)
    assert "there is no authentication" in str(result.exception)


def test_a_host_beyond_the_loopback_is_served_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.cli.signals.StopWaiter.wait_for_code", lambda _: 0)
    result = CliRunner().invoke(command, ["--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 0
    assert "Warning: there is no authentication" in result.stderr
    assert re.search(r"^export PUBSUB_EMULATOR_HOST=127\.0\.0\.1:\d+$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("example.com", False)],
)  # fmt: skip
def test_loopback_hosts_are_told_from_others(host: str, expected: bool) -> None:
    assert is_loopback_host(host) is expected
