"""The folder of the local target: where everything is, and how several processes write into it without a fight.

A lock of a file is held by an open file, which a child takes over: so it is known at any time, also after the service
was killed, whether a process that it has started still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import ConfigurationError, UnavailableError

DEFAULT_FOLDER = Path("~/.dry-work/deploy")
DEFAULT_SPEED = "60"
# What a program needs of the environment that it is started in. Keys and addresses of a shell are not among it.
_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_[A-Z]+|TZ|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|PYTHONPATH|LD_LIBRARY_PATH"
    r"|(https?|all|no)_proxy|(HTTPS?|ALL|NO)_PROXY|VIRTUAL_ENV"
)
_LOCK_S = 0.5  # somebody who looks whether a lock is held holds it for a moment


@dataclass(frozen=True)
class LocalFolder:
    """Where the local target keeps what it has. Only its owner can look into it."""

    root: Path

    @property
    def settings(self) -> Path:
        """What the service was started with: see `TargetSettings`."""
        return self.root / "settings.json"

    @property
    def service(self) -> Path:
        """Where the service that runs is: url, port, pid."""
        return self.root / "service.json"

    @property
    def service_lock(self) -> Path:
        """Held by the service that runs."""
        return self.root / "service.lock"

    @property
    def service_log(self) -> Path:
        """What the service has to say."""
        return self.root / "service.log"

    @property
    def token(self) -> Path:
        """The token that calls need."""
        return self.root / "token"

    @property
    def documents(self) -> Path:
        """Documents of agents."""
        return self.root / "agents.sqlite"

    @property
    def sources(self) -> Path:
        """Archives."""
        return self.root / "sources"

    @property
    def builds(self) -> Path:
        """A folder for each build, with the image that it has made."""
        return self.root / "builds"

    @property
    def agents(self) -> Path:
        """A folder for each agent by its normalised id: specification, state of the process, log, state directory."""
        return self.root / "agents"

    @property
    def exchange(self) -> Path:
        """The simulated exchange."""
        return self.root / "exchange"

    def state_dir(self, normalised: str) -> Path:
        """Return the state directory of an agent: its volume."""
        return self.agents / normalised / "state"

    def make(self) -> None:
        """Make the folder, for its owner only.

        Raises:
            ConfigurationError: it cannot be made or belongs to somebody else.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.root.stat().st_uid != os.getuid():
                raise ConfigurationError(f"{self.root}: belongs to another user; name another folder with --dir")
            self.root.chmod(0o700)
            for folder in (self.sources, self.builds, self.agents):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.root}: cannot be made or written: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """What agents of the local target trade on."""

    env_file: str = ""  # variables for agents, Alpaca's keys among them; empty: the simulated exchange
    data: tuple[str, ...] = ()  # recordings that the exchange plays; none: a synthetic day
    speed: str = DEFAULT_SPEED  # data seconds a second
    cash: str = "100000"

    @property
    def is_simulated(self) -> bool:
        """Whether agents trade on the simulated exchange."""
        return not self.env_file

    def describe(self) -> str:
        """Say it to people."""
        if self.env_file:
            return f"the account whose keys are in {self.env_file}"
        prices = ", ".join(self.data) or "synthetic prices"
        return f"the simulated exchange ({prices}, {self.speed} data seconds a second)"


def read_target(folder: LocalFolder) -> TargetSettings:
    """Return what the target was set to; the defaults where nothing was."""
    found = read_json(folder.settings) or {}
    return TargetSettings(
        env_file=str(found.get("env_file", "")),
        data=tuple(str(path) for path in found.get("data", ())),
        speed=str(found.get("speed", DEFAULT_SPEED)),
        cash=str(found.get("cash", "100000")),
    )


def write_target(folder: LocalFolder, settings: TargetSettings) -> None:
    """Keep what the target is to be."""
    values = {"env_file": settings.env_file, "data": list(settings.data)}
    write_json(folder.settings, {**values, "speed": settings.speed, "cash": settings.cash})


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None when there is no such file.

    Raises:
        UnavailableError: it cannot be read or is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UnavailableError(f"{path}: is damaged: expected a JSON object")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object: readers find the old one or the new one.

    Raises:
        UnavailableError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            json.dump(value, target)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UnavailableError(f"{path}: cannot be written: {error.strerror}") from error


def take_lock(path: Path, *, wait_s: float = _LOCK_S) -> int | None:
    """Take a lock and return its descriptor, which is to be closed; None when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(handle)
                return None
            time.sleep(0.01)
        else:
            return handle


def is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float = 10.0) -> Iterator[None]:
    """Hold a lock while the block runs.

    Raises:
        UnavailableError: another process has it all the time.
    """
    handle = take_lock(path, wait_s=wait_s)
    if handle is None:
        raise UnavailableError(f"{path}: another process holds it; call again")
    try:
        yield
    finally:
        os.close(handle)


def base_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a program needs of an environment, without keys and addresses."""
    return {name: value for name, value in environment.items() if _INHERITED.fullmatch(name)}


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file of `NAME=value` lines; `export` and quotes are allowed.

    Raises:
        ConfigurationError: it cannot be read, or a line is no assignment; never repeats the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {type(error).__name__}") from None
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.removeprefix("export ").partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ConfigurationError(f"{path}, line {number}: expected NAME=value")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if value:
            found[name.strip()] = value
    return found
