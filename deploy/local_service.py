"""Starts and ends the service of the local target. For the command line."""

from __future__ import annotations

import os
import signal
import time

from deploy.errors import ConfigurationError, UnavailableError
from deploy.local_cluster import LocalCluster
from deploy.local_files import LocalFolder, is_locked, read_json, take_lock, write_json
from deploy.local_spec import start_detached

START_S = 60.0
STOP_S = 60.0


def find_service(folder: LocalFolder) -> str:
    """Return the address of the service that runs; empty when none does."""
    if not is_locked(folder.service_lock):
        return ""
    return str((read_json(folder.service) or {}).get("url", ""))


def start_service(folder: LocalFolder, *, port: int | None = None) -> str:
    """Return the address of the service, which is started when it does not run. Several callers may do so at once.

    Raises:
        ConfigurationError: it cannot be started; says why.
        UnavailableError: it does not answer in time.
    """
    folder.make()
    deadline = time.monotonic() + START_S
    handle = take_lock(folder.service_lock, wait_s=0.1)
    if handle is not None:
        try:
            before = read_json(folder.service) or {}
            write_json(folder.service, {"port": before["port"]} if "port" in before else {})
            words = (str(folder.root), "-" if port is None else str(port))
            start_detached("deploy.local", *words, lock=handle, log=folder.root / "service.out")
        finally:
            os.close(handle)
    while time.monotonic() < deadline:
        running = is_locked(folder.service_lock)
        found = read_json(folder.service) or {}
        if found.get("url") and running:
            return str(found["url"])
        if not running:
            said = found.get("error") or _last_line(folder) or f"see {folder.service_log}"
            raise ConfigurationError(f"the local deploy service cannot be started: {said}")
        time.sleep(0.05)
    raise UnavailableError(f"the local deploy service does not answer: see {folder.service_log}")


def stop_service(folder: LocalFolder) -> bool:
    """End the service that runs; tell whether one did. Agents and builds go on.

    Raises:
        UnavailableError: it does not end in time.
    """
    found = read_json(folder.service) or {}
    if not is_locked(folder.service_lock) or not isinstance(found.get("pid"), int):
        return False
    os.kill(found["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while is_locked(folder.service_lock):
        if time.monotonic() > deadline:
            raise UnavailableError(f"the local deploy service, process {found['pid']}, does not end")
        time.sleep(0.02)
    return True


def stop_target(folder: LocalFolder) -> bool:
    """End the service, all agents and the exchange; they come back with the next service. Tell whether it ran.

    Raises:
        UnavailableError: something does not end in time.
    """
    was_running = stop_service(folder)
    if not folder.agents.is_dir():
        return was_running
    if not LocalCluster(folder).stop_all():
        raise UnavailableError("an agent or the exchange does not end in time: see its keeper.log")
    return was_running


def _last_line(folder: LocalFolder) -> str:
    path = folder.root / "service.out"
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else ""
