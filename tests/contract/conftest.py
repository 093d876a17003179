"""Where Google's own Pub/Sub emulator is found, and how it is run beside the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

EMULATOR_START_S = 60.0
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


def wait_until_listening(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + EMULATOR_START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False


@pytest.fixture(scope="session")
def emulator_target() -> Iterator[str]:
    """Host and port of Google's emulator: `PUBSUB_EMULATOR_HOST`, else one started from an installed SDK."""
    if target := os.environ.get("PUBSUB_EMULATOR_HOST"):
        yield target
        return
    launcher = find_emulator_launcher()
    if launcher is None:
        pytest.skip("Google's Pub/Sub emulator was not found: no PUBSUB_EMULATOR_HOST, no SDK with pubsub-emulator")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Google's Pub/Sub emulator needs Java, which was not found")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(launcher), "--host=127.0.0.1", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        if not wait_until_listening(process, port):
            pytest.skip(f"Google's Pub/Sub emulator ({launcher}) did not listen within {EMULATOR_START_S:g} s")
        yield f"127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
