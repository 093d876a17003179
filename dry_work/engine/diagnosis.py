"""What `dry-work check` finds out: each part of what a run needs, looked at by itself.

Parts that ask over the network run on threads of their own. A part that fails never hides another, and no text of a
finding holds a credential.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from dry_work import __version__
from dry_work.clock import Clock
from dry_work.engine.findings import Finding, Subject, failed, ok, warning
from dry_work.engine.remote_checks import check_market_data, check_pubsub, check_venue
from dry_work.errors import ConfigError, DryWorkError
from dry_work.feeds.lease import check_agent_id
from dry_work.observability.alerts import try_channels
from dry_work.observability.heartbeat import ping
from dry_work.observability.settings import read_watch_settings
from dry_work.settings import read_environment, read_toml

LEAST_PYTHON = (3, 11)
FREE_WARNING_BYTES = 500_000_000
FREE_FAILED_BYTES = 20_000_000
_MASK = "***"
_PINNED = re.compile(r"\s*([A-Za-z0-9._-]+)\s*==\s*([^\s;#]+)")
_SECRET_NAMES = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|OAUTH")
_LEAST_SECRET = 6  # characters; shorter values are words like `any`, which may stand in a text for another reason


def diagnose(
    folder: Path,
    *,
    clock: Clock,
    environment: Mapping[str, str] | None = None,
    symbols: str | None = None,
    state_dir: str | None = None,
    live: bool = False,
    timeout_s: float = 5.0,
) -> Iterator[Finding]:
    """Look at everything that a run in `folder` needs and yield what was found, part by part.

    Args:
        folder: where the run would be started.
        environment: variables by name; None: those of this process.
        symbols, state_dir, live: as the options of `dry-work run`.
        timeout_s: of each request.
    """
    given = dict(os.environ if environment is None else environment)
    problems, subject = _read_subject(folder, given, symbols, state_dir, live, timeout_s)
    hide = _build_mask(subject.environment)
    remote: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("account", partial(check_venue, subject, clock)),
        ("market data", partial(check_market_data, subject)),
        ("Pub/Sub", partial(check_pubsub, subject)),
        ("alerts", lambda: check_alerts(subject)),
    ]
    local: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Python", lambda: [check_python()]),
        ("packages", lambda: check_packages(folder / "constraints.txt")),
        ("settings", lambda: problems or [ok("settings", "environment, .env and dry-work.toml can be read")]),
        ("symbols file", lambda: [check_symbols_file(subject)]),
        ("state directory", lambda: [check_state_directory(subject)]),
        ("agent id", lambda: [check_lease(subject)]),
    ]
    with ThreadPoolExecutor(max_workers=len(remote), thread_name_prefix="check") as pool:
        answers: list[Future[list[Finding]]] = [pool.submit(_look, part, look) for part, look in remote]
        for part, look in local:
            yield from map(hide, _look(part, look))
        for answer in answers:
            yield from map(hide, answer.result())


def check_alerts(subject: Subject) -> Iterator[Finding]:
    """Send a test alert to each URL and ask for the heartbeat's, when there are any."""
    settings = read_watch_settings(subject.environment, read_toml(subject.folder / "dry-work.toml", "alerts"))
    if settings.alert_urls:
        for name, is_taken in try_channels(settings.alert_urls, "a test by dry-work check"):
            if is_taken:
                yield ok("alerts", f"{name} took a test alert")
            else:
                yield failed("alerts", f"{name} did not take a test alert", "correct its URL in DRY_WORK_ALERTS")
    if settings.heartbeat_url:
        why = ping(settings.heartbeat_url, subject.timeout_s)
        if why:
            yield failed("heartbeat", f"it was not taken: {why}", "correct DRY_WORK_HEARTBEAT_URL")
        else:
            yield ok("heartbeat", "it was taken")


def _read_subject(
    folder: Path,
    given: dict[str, str],
    symbols: str | None,
    state_dir: str | None,
    live: bool,
    timeout_s: float,
) -> tuple[list[Finding], Subject]:
    problems: list[Finding] = []
    try:
        environment = read_environment(folder, given)
    except (ConfigError, OSError) as error:
        problems.append(failed("settings", str(error), "correct that line of the file"))
        environment = {name: value for name, value in given.items() if value.strip()}
    try:
        toml = read_toml(folder / "dry-work.toml")
    except (ConfigError, OSError) as error:
        problems.append(failed("settings", str(error), "correct dry-work.toml"))
        toml = {}
    return problems, Subject(
        folder=folder,
        environment=environment,
        toml=toml,
        symbols=symbols,
        state_dir=state_dir,
        live=live,
        timeout_s=timeout_s,
    )


def _look(part: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what one part says; whatever it raises is a finding too, after those that it made before."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except DryWorkError as error:
        found.append(failed(part, str(error), "see the message"))
    except Exception as error:  # a part that fails must not hide the others
        found.append(failed(part, f"this check failed itself: {type(error).__name__}: {error}", "please report it"))
    return found


def _build_mask(environment: Mapping[str, str]) -> Callable[[Finding], Finding]:
    """Return what takes credentials out of a finding, should a message of others repeat one."""
    found = {value for name, value in environment.items() if _SECRET_NAMES.search(name) and len(value) >= _LEAST_SECRET}

    def hide(finding: Finding) -> Finding:
        text, remedy = finding.text, finding.remedy
        for value in found:
            text, remedy = text.replace(value, _MASK), remedy.replace(value, _MASK)
        return msgspec.structs.replace(finding, text=text, remedy=remedy)

    return hide


# This machine


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Tell whether this Python can be used."""
    text = f"{'.'.join(map(str, version))}, Dry Work {__version__}"
    if version < LEAST_PYTHON:
        return failed("Python", text, f"use Python {'.'.join(map(str, LEAST_PYTHON))} or newer")
    return ok("Python", text)


def check_packages(constraints: Path, *, installed: Callable[[str], str] = importlib.metadata.version) -> list[Finding]:
    """Compare what Dry Work needs with the versions that it was tested with; nothing without that file."""
    try:
        text = constraints.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    tested = {_fold(match[1]): match[2] for line in text.splitlines() if (match := _PINNED.match(line))}
    needed = [_fold(name) for name in _requirements() if _fold(name) in tested]
    missing, other = [], []
    for name in needed:
        try:
            version = installed(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
        else:
            if version != tested[name]:
                other.append(f"{name} {version} (tested: {tested[name]})")
    remedy = f"pip install -c {constraints.name} dry-work"
    if missing:
        return [failed("packages", f"not installed: {', '.join(missing)}", remedy)]
    if other:
        return [warning("packages", f"other versions than tested: {', '.join(other)}", remedy)]
    return [ok("packages", f"{len(needed)} packages have the tested versions")]


def _requirements() -> list[str]:
    """Return the names of what Dry Work needs to run, extras left out."""
    try:
        lines = importlib.metadata.requires("dry-work") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines if "extra ==" not in line]
    return [match[0] for match in names if match]


def _fold(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_symbols_file(subject: Subject) -> Finding:
    """Tell whether the symbols file can be read."""
    try:
        symbols = subject.wanted_symbols()
    except ConfigError as error:
        return failed("symbols file", str(error), "write one symbol a line, or name another file with --symbols")
    return ok("symbols file", ", ".join(symbols[:8]) + (f" and {len(symbols) - 8} more" if len(symbols) > 8 else ""))


def check_state_directory(
    subject: Subject, *, usage: Callable[[Path], Any] = shutil.disk_usage, part: str = "state directory"
) -> Finding:
    """Tell whether the state directory can be written, and how much room there is. It is not made."""
    path = subject.state_path()
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    remedy = "give a writable folder with --state-dir"
    if not there.is_dir():
        return failed(part, f"{path}: {there} is no folder", remedy)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"dry-work check")
            file.flush()
    except OSError as error:
        return failed(part, f"{path} cannot be written: {error.strerror or error}", remedy)
    free = int(usage(there).free)
    text = f"{path} can be written{'' if path == there else ' (made at the first run)'}, {free / 1e9:.1f} GB free"
    if free < FREE_FAILED_BYTES:
        return failed(part, text, "make room on this disk: the orders journal must never fail to be written")
    if free < FREE_WARNING_BYTES:
        return warning(part, text, "make room on this disk")
    return ok(part, text)


def check_lease(subject: Subject) -> Finding:
    """Tell whether a process holds the agent id here."""
    agent_id = subject.agent_id
    if not agent_id:
        return warning(
            "agent id",
            "none: each run gets a random one, and does not know the orders of the one before",
            "set AGENT_ID, or agent_id in dry-work.toml",
        )
    try:
        check_agent_id(agent_id)
    except ConfigError as error:
        return failed("agent id", str(error), "set AGENT_ID to such a name")
    lock = subject.state_path() / f"agent-{agent_id}.lock"
    holder = read_holder(lock)
    if holder is None:
        return ok("agent id", f"{agent_id}, held by no process")
    return warning(
        "agent id",
        f"{agent_id} is held by {holder}: another run with it is refused",
        "leave it if that run is the one you want; otherwise stop it, or choose another AGENT_ID",
    )


def read_holder(lock: Path) -> str | None:
    """Return who holds a lease, as far as its file says; None when nobody does."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        content = os.read(descriptor, 4096)
        if not content:
            return None  # given back; a lock of ours, however short, could make a starting run fail
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                facts = json.loads(content)
                return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
            return "another process"
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return None  # the process that wrote it has ended
    finally:
        os.close(descriptor)
