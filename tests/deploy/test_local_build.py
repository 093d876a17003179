"""Builds on this machine: real processes, environments and imports."""

from __future__ import annotations

import base64
import contextlib
import csv
import datetime as dt
import hashlib
import io
import json
import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.archive import digest_of, zip_files
from deploy.build_plan import BUILD_ID_MARK, BuildPlan, build_plan
from deploy.errors import NotFoundError
from deploy.local import local_settings
from deploy.local_build import KEPT_BUILDS, LocalBuildService
from deploy.local_files import LocalFolder, is_locked
from deploy.ports import BuildRecord

DEADLINE_S = 60.0
HANGING = b"import time\n\nprint('importing', flush=True)\ntime.sleep(600)\nclass Agent(object.Strategy):\n    pass\n"


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    found = LocalFolder(tmp_path / "deploy")
    found.make()
    return found


@pytest.fixture
def builds(folder: LocalFolder) -> LocalBuildService:
    return LocalBuildService(folder, now=lambda: dt.datetime.now(dt.UTC))


def make_plan(
    folder: LocalFolder, code: bytes, *, toml: str = "", tag: str = "attempt-1", timeout_s: int = 300
) -> BuildPlan:
    """Return the build of an agent that is applied to nothing."""
    content = zip_files({"agent/agent.py": code, "symbols.txt": b"SPY\n", "dry-work.toml": toml.encode()})
    source = folder.sources / f"{digest_of(content)}.zip"
    source.write_bytes(content)
    settings = local_settings()
    plan = build_plan(
        settings,
        agent_id="mine",
        normalised="mine",
        user_id="local",
        source=str(source),
        digest=digest_of(content),
        agent="agent/agent.py:Agent",
        documents=(),
        manifest=f"{settings.agent_image('mine')}:{BUILD_ID_MARK}",
        tags=("agent-mine", tag),
    )
    return BuildPlan(**{**plan.__dict__, "timeout_s": timeout_s})


def wait_for(builds: LocalBuildService, build_id: str, holds: Callable[[BuildRecord], object]) -> BuildRecord:
    deadline = time.monotonic() + DEADLINE_S
    while not holds(found := builds.status(build_id)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def processes_of(build: Path) -> list[str]:
    """Return the processes that work in a build's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if entry.readlink().is_relative_to(build):
                found.append(entry.parent.name)
    return found


def finish(builds: LocalBuildService, plan: BuildPlan) -> BuildRecord:
    return wait_for(builds, builds.submit(plan), lambda record: record.is_done)


def test_an_agent_that_lacks_a_package_fails_with_its_last_words(
    folder: LocalFolder, builds: LocalBuildService
) -> None:
    found = finish(builds, make_plan(folder, b"import no_such_package\nclass Agent(no_such_package.Strategy): pass\n"))
    assert (found.status, found.step) == ("failure", "check-agent-import")
    assert found.reason.startswith("the agent cannot be imported in its environment (")
    assert "No module named 'no_such_package'" in found.reason
    assert not (folder.builds / found.build_id / "image").exists()
    assert any("no_such_package" in line for line in builds.log(found.build_id, limit=50))


def test_a_build_is_cancelled_while_it_imports_and_leaves_no_process(
    folder: LocalFolder, builds: LocalBuildService
) -> None:
    build_id = builds.submit(make_plan(folder, HANGING))
    wait_for(builds, build_id, lambda _: any("importing" in line for line in builds.log(build_id, limit=9)))
    assert builds.find("attempt-1") == builds.status(build_id)
    builds.cancel(build_id)
    found = wait_for(builds, build_id, lambda record: record.is_done)
    assert (found.status, found.reason) == ("cancelled", "the build was cancelled")
    assert not processes_of(folder.builds / build_id)
    builds.cancel(build_id)
    assert builds.status(build_id) == found


def test_a_build_that_was_killed_and_one_that_takes_too_long_have_failed(
    folder: LocalFolder, builds: LocalBuildService
) -> None:
    slow = builds.submit(make_plan(folder, HANGING, timeout_s=1))
    build_id = builds.submit(make_plan(folder, HANGING, tag="attempt-2"))
    wait_for(builds, build_id, lambda record: record.step == "check-agent-import")
    group = Path(folder.builds / build_id / "pid").read_text()
    os.kill(int(group), signal.SIGKILL)
    found = wait_for(builds, build_id, lambda record: record.is_done)
    assert found.status == "failure"
    assert found.reason == "the build was interrupted in check-agent-import: deploy again"
    found = wait_for(builds, slow, lambda record: record.is_done)
    assert (found.status, found.reason) == ("timeout", "the build took longer than 1 s, in check-agent-import")
    for done in (slow, build_id):
        wait_for(builds, done, lambda _, done=done: not is_locked(folder.builds / done / "build.lock"))
        wait_for(builds, done, lambda _, done=done: not processes_of(folder.builds / done))


def test_an_archive_that_was_exchanged_is_not_built(folder: LocalFolder, builds: LocalBuildService) -> None:
    plan = make_plan(folder, b"class Agent: pass\n")
    Path(plan.source).write_bytes(zip_files({"agent/agent.py": b"import os\n"}))
    found = finish(builds, plan)
    assert (found.status, found.step) == ("failure", "build-agent-image")
    assert "the source is not the one that was checked" in found.reason


def make_wheel(folder: Path, name: str, version: str, code: str) -> None:
    """Write a wheel of one module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        writer.writerow((path, f"sha256={digest}", len(text.encode())))
    writer.writerow((f"{info}/RECORD", "", ""))
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": rows.getvalue()}.items():
            wheel.writestr(path, text)


def test_requirements_are_installed_into_an_environment_of_the_agents_own(
    folder: LocalFolder, builds: LocalBuildService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "wheels", "very_own_indicator", "1.2", "LENGTH = 12\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    code = b"import backtrader as bt, very_own_indicator as v\nclass Agent(bt.Strategy):\n    length = v.LENGTH\n"
    toml = '[deploy]\nrequirements = ["very-own-indicator==1.2"]\n'
    found = finish(builds, make_plan(folder, code, toml=toml))
    assert found.status == "success", builds.log(found.build_id, limit=50)
    image = json.loads((folder.builds / found.build_id / "image.json").read_text())
    assert image["python"] == str(folder.builds / found.build_id / "env" / "bin" / "python")
    assert image["symbols"] == ["SPY"]
    missing = '[deploy]\nrequirements = ["not-to-be-had==9"]\n'
    found = finish(builds, make_plan(folder, code, toml=missing))
    assert (found.status, found.step) == ("failure", "build-agent-image")
    assert "not-to-be-had" in found.reason


def test_unknown_builds_are_told_and_ids_that_are_paths_are_none(builds: LocalBuildService) -> None:
    for build_id in ("20260101-000000-aaaaaa", "../sources", ""):
        with pytest.raises(NotFoundError):
            builds.status(build_id)
    assert builds.find("attempt-9") is None


def test_old_builds_of_an_agent_are_removed_and_those_of_others_stay(
    folder: LocalFolder, builds: LocalBuildService
) -> None:
    for number in range(KEPT_BUILDS + 3):
        place = folder.builds / f"20250101-0000{number:02d}-abcdef"
        place.mkdir()
        record = {"build_id": place.name, "normalised": "mine" if number else "other", "tags": [], "status": "success"}
        (place / "record.json").write_text(json.dumps({**record, "step": "", "reason": "", "finished": ""}))
    plan = make_plan(folder, b"class Agent: pass\n")
    Path(plan.source).write_bytes(b"no zip")
    finish(builds, plan)
    left = sorted(path.name for path in folder.builds.iterdir())
    assert left[0] == "20250101-000000-abcdef"
    assert len(left) == KEPT_BUILDS + 2  # and the one of another agent, and the new one
