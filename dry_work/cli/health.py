"""`dry-work health`: whether an agent's heartbeat is fresh; the check of the image and of the probes.

Runs every minute beside an agent that has a fraction of a core, so it imports next to nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

POD_STATE_DIR = Path("/var/lib/trading-agent")
MAX_AGE_S = 600.0


def check_heartbeat(
    folder: Path, *, now_s: float, max_age_s: float = MAX_AGE_S, ready: bool = False
) -> tuple[bool, str]:
    """Return whether the agent of the state directory `folder` is well, and a sentence about it.

    Args:
        folder: the state directory; its file `heartbeat` is looked at.
        now_s: seconds since 1970.
        max_age_s: how old the heartbeat may be.
        ready: the heartbeat also has to be of the process that holds the directory now, not of one before it.
    """
    path = folder / "heartbeat"
    try:
        beat_s = path.stat().st_mtime
    except FileNotFoundError:
        return False, f"{path}: no heartbeat yet"
    except OSError as error:
        return False, f"{path}: {error.strerror}"
    age_s = now_s - beat_s
    if age_s > max_age_s:
        return False, f"{path}: {age_s:.0f} s old, allowed are {max_age_s:g} s: the strategy hangs or was not started"
    if age_s < -max_age_s:  # a clock that was set back; the next heartbeat puts it right
        return False, f"{path}: {-age_s:.0f} s in the future"
    if ready:
        taken_s = _read_start(folder)
        if taken_s is None:
            return False, f"{folder}: no agent holds it"
        if beat_s < taken_s:
            return False, f"{path}: of an earlier process; the one that runs now has not come so far"
    return True, f"heartbeat {max(age_s, 0.0):.0f} s old"


def _read_start(folder: Path) -> float | None:
    """Return when the running agent took the directory, in seconds since 1970; None when none has it."""
    taken_s = None
    for lock in folder.glob("agent-*.lock"):
        try:
            facts = lock.stat()
        except OSError:  # removed meanwhile
            continue
        if facts.st_size:  # one that was given back is empty
            taken_s = max(taken_s or 0.0, facts.st_mtime)
    return taken_s


@click.command("health")
@click.option(
    "--state-dir", type=click.Path(path_type=Path), metavar="DIR", help=f"The agent's state. Default: {POD_STATE_DIR}."
)
@click.option(
    "--max-age",
    type=click.FloatRange(min=1.0),
    default=MAX_AGE_S,
    show_default=True,
    metavar="SECONDS",
    help="How old the heartbeat may be.",
)
@click.option("--ready", is_flag=True, help="The heartbeat has to be of the process that runs now.")
def command(state_dir: Path | None, max_age: float, ready: bool) -> int:
    """Tell whether an agent's heartbeat is fresh: the check of a container and of its probes.

    \b
    Examples:
      dry-work health
      dry-work health --state-dir .dry-work/my-agent --max-age 60

    Exit codes: 0 it is, 1 it is not, 2 usage.
    """
    # A wall clock, since the file's time is one; nothing else here reads time.
    is_well, sentence = check_heartbeat(
        Path(os.path.expanduser(state_dir or POD_STATE_DIR)), now_s=time.time(), max_age_s=max_age, ready=ready
    )
    click.echo(sentence, err=not is_well)
    return 0 if is_well else 1
