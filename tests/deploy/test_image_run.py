"""The image, built by buildah and run as in a pod: another user, a read-only root, a stop in time.

Takes minutes, so it runs when DRY_WORK_IMAGE_TEST is set to 1, or to a root file system that was built already.
DRY_WORK_BASE_IMAGE names an image of the local store with Python; without one a base is made by debootstrap.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.market.symbols import read_symbols

ROOT = Path(__file__).parents[2]
WANTED = os.environ.get("DRY_WORK_IMAGE_TEST", "")
DEADLINE_S = 120.0
GRACE_S = 60.0  # terminationGracePeriodSeconds of PaperTrading.yaml
BUILD_S = 1500.0
USER = "10001"

pytestmark = [
    pytest.mark.skipif(not WANTED, reason="set DRY_WORK_IMAGE_TEST=1 to build the image and run it: it takes minutes"),
    pytest.mark.timeout(BUILD_S * 2),
]

# What a pod gets: no privilege, nothing to write but /tmp and the volume.
_ENTER = """
set -e
root=$1; state=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$state" "$root/var/lib/trading-agent"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
exec chroot "$root" setpriv --reuid USER --regid USER --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all sh -c 'cd /app && exec "$@"' sh "$@"
""".replace("USER", USER)


def call(*words: str, timeout_s: float = BUILD_S, **environment: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{' '.join(words[:6])}: {done.stderr[-3000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root file system of the built image."""
    if os.geteuid() != 0:
        pytest.skip("only root can build and enter an image without a daemon")
    if Path(WANTED).is_dir():
        yield Path(WANTED)
        return
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed")
    folder = tmp_path_factory.mktemp("image")
    buildah = ("buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run"))
    base = os.environ.get("DRY_WORK_BASE_IMAGE", "")
    try:
        if not base:
            base = make_base(buildah, folder)
        # The index and its certificates are the machine's.
        given = [
            f"--build-arg={name}={os.environ[name]}" for name in ("PIP_INDEX_URL", "HTTPS_PROXY") if name in os.environ
        ]
        call(
            *buildah, "build", "--pull-never", "--isolation", "chroot", "--format", "docker", "--network", "host",
            "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro", *given, f"--build-arg=PYTHON_IMAGE={base}",
            "--tag", "localhost/dry-work:test", str(ROOT), STORAGE_DRIVER="vfs",
        )  # fmt: skip
        container = call(*buildah, "from", "--pull-never", "localhost/dry-work:test", STORAGE_DRIVER="vfs")
        yield Path(call(*buildah, "mount", container, STORAGE_DRIVER="vfs"))
    finally:
        subprocess.run(
            [*buildah, "umount", "--all"], env={**os.environ, "STORAGE_DRIVER": "vfs"}, timeout=60, check=False
        )
        shutil.rmtree(folder, ignore_errors=True)


def make_base(buildah: tuple[str, ...], folder: Path) -> str:
    """Make an image with Debian's Python, which is as old as the lowest that is allowed; return its name."""
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed, and DRY_WORK_BASE_IMAGE is not set")
    call(
        "debootstrap",
        "--variant=minbase",
        "--include=python3,python3-venv,ca-certificates",
        "bookworm",
        str(folder / "base"),
    )
    container = call(*buildah, "from", "scratch", STORAGE_DRIVER="vfs")
    call(*buildah, "add", container, str(folder / "base"), "/", STORAGE_DRIVER="vfs")
    call(*buildah, "commit", "--rm", container, "localhost/python:test", STORAGE_DRIVER="vfs")
    shutil.rmtree(folder / "base")
    return "localhost/python:test"


class Pod:
    """A process in the image, as in a pod."""

    def __init__(self, root: Path, state: Path, *words: str, **environment: str) -> None:
        environment = {
            "PATH": "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        self.output = state.with_suffix(".log")
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(
                [
                    "unshare", "--mount", "--pid", "--fork", "--kill-child",
                    "bash", "-c", _ENTER, "enter", str(root), str(state), *words,
                ],
                stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def main_process(self) -> int:
        """Return the number of the process that is 1 inside."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The pod's volume."""
    folder = tmp_path / "volume"
    folder.mkdir()
    for path in (folder, *folder.parents[:3]):
        path.chmod(0o755)
    os.chown(folder, int(USER), int(USER))
    return folder


@pytest.fixture
def start(root: Path, state: Path) -> Iterator[Callable[..., Pod]]:
    pods: list[Pod] = []

    def run(*words: str, **environment: str) -> Pod:
        pods.append(Pod(root, state, *words, **environment))
        return pods[-1]

    yield run
    for pod in pods:
        pod.close()


def wait_until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


def test_it_starts_as_another_user_on_a_root_that_cannot_be_written(start: Callable[..., Pod]) -> None:
    pod = start("sh", "-c", "id -u; dry-work --version; touch /app/x || echo read-only; touch /tmp/x && echo scratch")
    assert pod.wait() == 0, pod.text
    lines = pod.text.splitlines()
    assert lines[0] == USER
    assert any(re.fullmatch(r"dry-work, version \S+", line) for line in lines)
    assert lines[-2:] == ["read-only", "scratch"]


def test_what_is_installed_is_consistent_and_compiled(start: Callable[..., Pod]) -> None:
    code = "import dry_work.cli.hub, dry_work.cli.health as h, os; print(os.path.exists(h.__cached__))"
    pod = start("sh", "-c", f"python -m pip check && python -c '{code}'")
    assert pod.wait() == 0, pod.text
    assert pod.text.splitlines()[-1] == "True"


def test_a_whole_run_on_the_local_stack_ends_well_within_the_memory_of_a_pod(start: Callable[..., Pod]) -> None:
    code = (
        "import resource, sys; from dry_work.cli import main\n"
        "try: main(['run', '--local', '--plain', '--json', '--state-dir', '/var/lib/trading-agent'])\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    pod = start("python", "-c", code)
    assert pod.wait() == 0, pod.text
    *_, result, memory_kib = pod.text.splitlines()
    assert json.loads(result)["fills"]
    assert int(memory_kib) < 512 * 1024


def test_an_agent_beats_is_ready_and_stops_within_its_grace(
    start: Callable[..., Pod], state: Path, tmp_path: Path
) -> None:
    symbols = [str(symbol) for symbol in read_symbols(ROOT / "symbols.txt")]  # which the image has too
    programs: list[subprocess.Popen[str]] = []
    server = ExchangeServer(synthetic_day(symbols, minutes=1440), rules="backtrader", speed=60.0)
    server.start()
    try:
        words = [sys.executable, "-m", "dry_work", "pubsub", "--port", "0", "--project", "pod"]
        pubsub = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        programs.append(pubsub)
        assert pubsub.stdout is not None
        match = next(found for line in pubsub.stdout if (found := re.search(r"PUBSUB_EMULATOR_HOST=(\S+)", line)))
        environment = {
            "ALPACA_API_KEY": "PKTEST",
            "ALPACA_SECRET_KEY": "not-a-secret",
            "ALPACA_URL": server.url,
            "ALPACA_DATA_URL": server.url,
            "ALPACA_STREAM_URL": server.stream_url,
            "GOOGLE_CLOUD_PROJECT": "pod",
            "PUBSUB_EMULATOR_HOST": match[1],
        }
        words = [sys.executable, "-m", "dry_work", "hub", "--symbols", ",".join(symbols)]
        programs.append(
            subprocess.Popen(
                words, env={**os.environ, **environment}, cwd=tmp_path, stdout=subprocess.DEVNULL, text=True
            )
        )
        not_yet = start("dry-work", "health")
        assert not_yet.wait() == 1, not_yet.text
        agent = start("dry-work", "run", AGENT_ID="in-a-pod", **environment)
        wait_until(lambda: (state / "heartbeat").is_file() or agent.process.poll() is not None, lambda: agent.text)
        assert agent.process.poll() is None, agent.text
        assert (state / "heartbeat").stat().st_uid == int(USER)
        for words in (["dry-work", "health"], ["dry-work", "health", "--ready"]):
            check = start(*words)
            assert check.wait() == 0, check.text
        began = time.monotonic()
        os.kill(agent.main_process(), signal.SIGTERM)
        assert agent.wait(GRACE_S) == 0, agent.text
        assert time.monotonic() - began < GRACE_S
        assert "not-a-secret" not in agent.text
        after = start("dry-work", "health", "--ready")
        assert after.wait() == 1, after.text
    finally:
        for program in programs:
            program.terminate()
            program.wait(DEADLINE_S)
            if program.stdout is not None:
                program.stdout.close()
        server.stop()
