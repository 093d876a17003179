"""Waits for processes of the local target."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dry_work.errors import DryWorkError

if TYPE_CHECKING:
    from dry_work.cli.deploy_target import Target

_STOP_S = 90.0


def wait_until_gone(target: Target, answer: dict[str, Any]) -> None:
    """Wait until the process of an agent of this machine has ended. Elsewhere the cluster does it in its time."""
    if not target.is_local:
        return
    from deploy.ids import normalise_agent_id
    from deploy.local_cluster import LocalCluster

    kept = LocalCluster(target.folder).kept(normalise_agent_id(answer["agentId"]))
    deadline = time.monotonic() + _STOP_S
    while kept.is_kept:
        if time.monotonic() > deadline:
            raise DryWorkError(f"the agent does not stop: see {kept.log_path}")
        time.sleep(0.05)
