"""Where a running agent's dashboard is: a file in its state directory, for programs of the same user."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

NAME = "dashboard.json"


class PublishedAddress(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds."""

    link: str  # with the token, where there is one
    pid: int


def publish_address(folder: Path, link: str, *, pid: int) -> None:
    """Write down where the dashboard of the process `pid` is; only this user can read it."""
    path = folder / NAME
    fresh = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(PublishedAddress(link=link, pid=pid)))
    fresh.replace(path)


def read_address(folder: Path, *, pid: int | None) -> str:
    """Return the link to the dashboard of the process `pid`, which uses the folder; empty when it has none."""
    try:
        found = msgspec.json.decode((folder / NAME).read_bytes(), type=PublishedAddress)
    except (OSError, msgspec.MsgspecError):
        return ""
    return found.link if pid is not None and found.pid == pid else ""


def withdraw_address(folder: Path) -> None:
    """Remove the file. May be called twice."""
    with contextlib.suppress(OSError):
        (folder / NAME).unlink()
