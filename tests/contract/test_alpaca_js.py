"""Alpaca's official JavaScript SDK, from npm and unmodified, trades on the exchange."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .howto_blocks import read_blocks, run_exchange

PACKAGE = "@alpacahq/alpaca-trade-api"
INSTALL_S = 150.0
DEADLINE_S = 90.0
OLDEST_NODE = 20


def find_node() -> str:
    """Return the path of Node, or skip."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are needed, one was not found")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node {version.strip()} was found, {OLDEST_NODE} or newer is needed")
    return node


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a version of the SDK installed, filled by `install`."""
    return {}


def install(version: str, installed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the SDK is installed, once a session; skip when that fails."""
    if version in installed:
        return installed[version]
    npm = shutil.which("npm")
    assert npm is not None
    folder = tmp_path_factory.mktemp(f"sdk{version}")
    (folder / "package.json").write_text(json.dumps({"private": True}))
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=30000"]
    try:
        done = subprocess.run(
            [npm, "install", *options, f"{PACKAGE}@{version}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {PACKAGE}@{version} within {INSTALL_S:g} s")
    if done.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}@{version}: {done.stderr.strip()[-200:]}")
    installed[version] = folder
    return folder


@pytest.mark.timeout(INSTALL_S + DEADLINE_S + 30)
@pytest.mark.parametrize(("version", "block", "name"), [("4", 0, "trade.mjs"), ("3", 1, "trade.cjs")])
def test_the_javascript_example_trades(
    version: str, block: int, name: str, installed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = find_node()
    folder = install(version, installed, tmp_path_factory)
    (folder / name).write_text(read_blocks("javascript")[block])
    with run_exchange() as (server, environment):
        done = subprocess.run(
            [node, name], cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        facts = server.describe()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cash 100000" in done.stdout
    assert "limit pending_new" in done.stdout
    assert re.search(r"^bar .*\d", done.stdout, re.MULTILINE)
    assert "order fill filled" in done.stdout
    assert re.search(r"^fill \d+", done.stdout, re.MULTILINE)
    assert "position BTCUSD 0.009975" in done.stdout  # less the fee
    assert (facts["orders"], facts["fills"]) == (2, 1)
