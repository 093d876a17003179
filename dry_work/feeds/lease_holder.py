"""Who holds the lease of an agent id, as its lock file shows it. Reads only, and takes no lock.

A lease is not tried, since a trader that starts at that moment would find it taken: whether the process that holds it
is alive is seen from the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from datetime import datetime
from pathlib import Path

import msgspec

from dry_work.clock import SECOND_NS

_START_TOLERANCE_S = 5.0


class LeaseHolder(msgspec.Struct, frozen=True):
    """Who holds a lease, or held it when it died."""

    name: str
    changed_ns: int
    pid: int | None = None
    host: str = ""
    since_ns: int | None = None
    is_alive: bool | None = None  # None: not known; of one that has given it back: no holder
    is_readable: bool = True


def read_holder(lock: Path) -> LeaseHolder:
    """Return who holds the lease whose lock file this is."""
    name = lock.name.removeprefix("agent-").removesuffix(".lock")
    try:
        changed_ns = lock.stat().st_mtime_ns
        text = lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return LeaseHolder(name, 0)
    except OSError:
        return LeaseHolder(name, 0, is_readable=False)
    try:
        facts = json.loads(text)
        pid, host = int(facts["pid"]), str(facts["host"])
        since_ns = int(datetime.fromisoformat(facts["since"]).timestamp()) * SECOND_NS
    except (ValueError, KeyError, TypeError):
        return LeaseHolder(name, changed_ns)  # given back
    is_alive = _is_alive(pid, since_ns) if host == socket.gethostname() else None
    return LeaseHolder(name, changed_ns, pid, host, since_ns, is_alive)


def _is_alive(pid: int, since_ns: int) -> bool:
    """Tell whether the process runs, and not another one that has got its number since."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):  # another system than Linux
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        boot_s = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
        began_s = boot_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return fields[0] != "Z" and began_s <= since_ns / SECOND_NS + _START_TOLERANCE_S
    return True
