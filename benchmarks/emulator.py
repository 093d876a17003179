"""Pub/Sub servers to measure: ours as a process, and Google's emulator where it is found."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

START_LIMIT_S = 60.0
_SDK_ROOTS = ("/usr/lib/google-cloud-sdk", "/usr/share/google-cloud-sdk", "/snap/google-cloud-sdk/current")


def find_launcher() -> Path | None:
    """Return the launcher of Google's emulator in an installed Cloud SDK, None when there is none or no Java."""
    roots = [Path(root) for root in _SDK_ROOTS]
    if gcloud := shutil.which("gcloud"):
        roots.insert(0, Path(gcloud).resolve().parent.parent)
    if root := os.environ.get("CLOUDSDK_ROOT"):
        roots.insert(0, Path(root))
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        return None
    launchers = [root / "platform" / "pubsub-emulator" / "bin" / "cloud-pubsub-emulator" for root in roots]
    return next((launcher for launcher in launchers if launcher.is_file()), None)


@contextlib.contextmanager
def run_ours() -> Iterator[str]:
    """Run `dry-work pubsub` and give its host:port."""
    port = find_free_port()
    with _run([sys.executable, "-m", "dry_work", "pubsub", "--port", str(port)], port) as target:
        yield target


@contextlib.contextmanager
def run_googles() -> Iterator[str | None]:
    """Give host:port of Google's emulator: `PUBSUB_EMULATOR_HOST`, else one from an installed SDK, else None."""
    if target := os.environ.get("PUBSUB_EMULATOR_HOST"):
        yield target
        return
    launcher = find_launcher()
    if launcher is None:
        yield None
        return
    port = find_free_port()
    with _run([str(launcher), "--host=127.0.0.1", f"--port={port}"], port) as target:
        yield target


def find_free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _run(command: list[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(  # noqa: S603 - the command is ours
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_until_listening(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the launcher of the emulator has a child
        process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}: exit code {process.poll()}")
