"""What `dry-work check` finds out: each part of what a run needs, looked at by itself.

Parts that ask over the network run on threads of their own, each for a limited time. A part that fails or hangs never
hides another, and no text of a finding holds a credential.
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
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from dry_work import __version__
from dry_work.clock import Clock
from dry_work.engine.account_checks import describe_hours
from dry_work.engine.feed_checks import check_feed
from dry_work.engine.findings import Finding, Subject, failed, ok, warning
from dry_work.engine.remote_checks import CALENDAR, check_market_data, check_venue
from dry_work.errors import ConfigError, DryWorkError
from dry_work.feeds.lease import check_agent_id
from dry_work.observability.alerts import try_channels
from dry_work.observability.heartbeat import ping
from dry_work.observability.settings import read_watch_settings
from dry_work.settings import read_environment, read_toml

LEAST_PYTHON = (3, 11)
FREE_WARNING_BYTES = 500_000_000
FREE_FAILED_BYTES = 20_000_000
SLOW_WRITE_S = 0.1  # of a small file until it is on the disk; an order waits for that
_WRITES = 3  # of which the quickest counts
REQUESTS_A_PART = 8  # a part that takes longer than so many time-outs is given up
_MASK = "***"
_PINNED = re.compile(r"\s*([A-Za-z0-9._-]+)\s*==\s*([^\s;#]+)")
_SPECIFIER = re.compile(r"(==|!=|>=|<=|>|<)\s*([^\s,]+)")
_TOLD_PACKAGES = ("backtrader", "alpaca-py")
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
    feed: str | None = None,
    timeout_s: float = 5.0,
) -> Iterator[Finding]:
    """Look at everything that a run in `folder` needs and yield what was found, part by part.

    Args:
        folder: where the run would be started.
        environment: variables by name; None: those of this process.
        symbols, state_dir, live, feed: as the options of `dry-work run`.
        timeout_s: of each request. No part takes more than `REQUESTS_A_PART` times as long.
    """
    given = dict(os.environ if environment is None else environment)
    problems, subject = _read_subject(folder, given, symbols, state_dir, live, timeout_s)
    subject = msgspec.structs.replace(subject, feed_given=feed)
    hide = _build_mask(subject.environment)
    remote: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("account", partial(check_venue, subject, clock)),
        ("market data", partial(check_market_data, subject)),
        ("market data feed", partial(check_feed, subject)),
        ("alerts", lambda: check_alerts(subject)),
    ]
    local: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Python", lambda: [check_python()]),
        ("packages", lambda: check_packages(folder / "constraints.txt")),
        ("settings", lambda: problems or [ok("settings", "environment, .env and dry-work.toml can be read")]),
        ("symbols file", lambda: [check_symbols_file(subject)]),
        ("state directory", lambda: [check_state_directory(subject)]),
        ("agent id", lambda: [check_lease(subject)]),
        ("sessions", lambda: [check_sessions(clock)]),
    ]
    answers = [_Answer(part, look, timeout_s * REQUESTS_A_PART) for part, look in remote]
    for part, look in local:
        yield from map(hide, _look(part, look))
    for answer in answers:
        yield from map(hide, answer.wait())


class _Answer:
    """What a part says that may wait for somebody else. Its thread never keeps the process from ending."""

    def __init__(self, part: str, look: Callable[[], Iterable[Finding]], limit_s: float) -> None:
        self._part = part
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, args=(look,), name=f"check {part}", daemon=True)
        self._thread.start()

    def _run(self, look: Callable[[], Iterable[Finding]]) -> None:
        _look(self._part, look, self._found)

    def wait(self) -> list[Finding]:
        """Return what was found, in time."""
        self._thread.join(max(0.0, self._end_s - time.monotonic()))
        found = list(self._found)
        if self._thread.is_alive():
            text = f"not finished within {self._limit_s:g} s"
            found.append(failed(self._part, text, "look at the network, also at its name servers; or give --timeout"))
        return found


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


def _look(part: str, look: Callable[[], Iterable[Finding]], into: list[Finding] | None = None) -> list[Finding]:
    """Return what one part says; whatever it raises is a finding too, after those that it made before."""
    found: list[Finding] = [] if into is None else into
    try:
        for finding in look():
            found.append(finding)
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
    """Compare what is installed with the tested versions, without that file with those that Dry Work asks for."""
    try:
        text = constraints.read_text(encoding="utf-8")
    except FileNotFoundError:
        wanted, remedy = _requirements(), "pip install --upgrade dry-work"
        is_tested = False
    else:
        tested = {_fold(match[1]): match[2] for line in text.splitlines() if (match := _PINNED.match(line))}
        wanted = {name: f"=={tested[name]}" for name in _requirements() if name in tested}
        remedy = f"pip install -c {constraints.name} dry-work"
        is_tested = True
    found: dict[str, str] = {}
    missing, other = [], []
    for name, versions in wanted.items():
        try:
            version = found[name] = installed(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if not is_within(version, versions):
            other.append(f"{name} {version} ({'tested: ' if is_tested else 'needed: '}{versions.removeprefix('==')})")
    if missing:
        return [failed("packages", f"not installed: {', '.join(missing)}", remedy)]
    if other and is_tested:
        return [warning("packages", f"other versions than tested: {', '.join(other)}", remedy)]
    if other:
        return [failed("packages", f"versions that do not go with Dry Work: {', '.join(other)}", remedy)]
    named = "".join(f", {name} {found[name]}" for name in _TOLD_PACKAGES if name in found)
    what = "have the tested versions" if is_tested else "are as Dry Work needs them"
    return [ok("packages", f"{len(found)} packages {what}{named}")]


def is_within(version: str, specifiers: str) -> bool:
    """Tell whether a version is one of those that `specifiers` name, as in a list of requirements. Pure."""
    for part in filter(None, (each.strip() for each in specifiers.split(","))):
        match = _SPECIFIER.fullmatch(part)
        if match is None:
            continue
        if match[1] in ("==", "!="):
            if (version == match[2]) is (match[1] == "!="):
                return False
            continue
        ours, theirs = _numbers(version), _numbers(match[2])
        longest = max(len(ours), len(theirs))
        ours, theirs = (each + (0,) * (longest - len(each)) for each in (ours, theirs))
        if not {">=": ours >= theirs, "<=": ours <= theirs, ">": ours > theirs, "<": ours < theirs}[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _requirements() -> dict[str, str]:
    """Return the versions that Dry Work needs to run by name, extras left out."""
    try:
        lines = importlib.metadata.requires("dry-work") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = [re.match(r"([A-Za-z0-9._-]+)\s*([^;]*)", line) for line in lines if "extra ==" not in line]
    return {_fold(match[1]): match[2].strip(" ()") for match in found if match}


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
    subject: Subject,
    *,
    usage: Callable[[Path], Any] = shutil.disk_usage,
    now: Callable[[], float] = time.monotonic,
    part: str = "state directory",
) -> Finding:
    """Tell whether the state directory can be written to the disk, how fast, and how much room there is.

    It is not made.
    """
    path = subject.state_path()
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    remedy = "give a writable folder with --state-dir"
    if not there.is_dir():
        return failed(part, f"{path}: {there} is no folder", remedy)
    try:
        written_s = min(_time_write(there, now) for _ in range(_WRITES))
    except OSError as error:
        return failed(part, f"{path} cannot be written: {error.strerror or error}", remedy)
    free = int(usage(there).free)
    text = f"{path} can be written{'' if path == there else ' (made at the first run)'}, {free / 1e9:.1f} GB free"
    if free < FREE_FAILED_BYTES:
        return failed(part, text, "make room on this disk: the orders journal must never fail to be written")
    if free < FREE_WARNING_BYTES:
        return warning(part, text, "make room on this disk")
    text = f"{text}, on the disk in {written_s * 1e3:.0f} ms"
    if written_s > SLOW_WRITE_S:
        return warning(part, text, "give a local disk with --state-dir: each order waits until it is written there")
    return ok(part, text)


def _time_write(folder: Path, now: Callable[[], float]) -> float:
    """Return the seconds until a small file and its folder are on the disk; nothing is left of it."""
    begun_s = now()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"dry-work check")
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return now() - begun_s


def check_sessions(clock: Clock) -> Finding:
    """Tell whether the stock market is open by this machine's clock and the calendar."""
    now_ns = clock.time_ns()
    try:
        return ok("sessions", describe_hours(CALENDAR.session_at(now_ns), CALENDAR.next_open_ns(now_ns)))
    except ConfigError as error:
        return failed("sessions", str(error), "set this machine's clock")


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
