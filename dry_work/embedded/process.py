"""Real servers as child processes: how they end."""

from __future__ import annotations

import subprocess

import structlog

STOP_TIMEOUT_S = 5.0

_log = structlog.get_logger(__name__)


def end_process(process: subprocess.Popen[bytes], *, name: str, grace_s: float = STOP_TIMEOUT_S) -> None:
    """Ask a process to end, and kill it when it has not ended after `grace_s` seconds (0: at once)."""
    if grace_s:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            _log.warning("a server did not stop in time", program=name, pid=process.pid)
    if process.poll() is None:
        process.kill()
        process.wait(STOP_TIMEOUT_S)
