"""Deployed agents beside what their state directories show: for `dry-work status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dry_work.errors import ConfigError, DryWorkError

if TYPE_CHECKING:
    from dry_work.cli.deploy_target import Target

UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One agent as its deploy service tells."""

    agent_id: str
    normalised: str
    status: str  # as the service has it; `not known` when it does not run
    build_id: str = ""
    digest: str = ""
    error: str = ""
    phase: str = ""  # of the rollout
    restarts: int = 0
    reason: str = ""
    step: str = ""  # of the build that runs
    unavailable: tuple[str, ...] = ()
    state_dir: Path | None = None  # of an agent of this machine
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # that finds its venue
    note: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nobody has to look at it."""
        return self.status != "deployment_failed" and not (self.status == "deployed" and self.phase == "failed")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        names = ("agent_id", "status", "build_id", "digest", "error", "phase", "restarts", "reason", "step", "note")
        return {name: getattr(self, name) or None for name in names} | {"restarts": self.restarts}


def find_deployments(target: Target) -> list[Deployment]:
    """Return the agents of a deploy service, by id. That of this machine is asked when it runs, and not started.

    Raises:
        ConfigError: there is no token for the service, or it is refused.
        DryWorkError: a service elsewhere does not answer.
    """
    client = target.look()
    found: dict[str, Deployment] = {}
    note = ""
    if client is not None:
        try:
            listed = client.call("listTradingAgents")["agents"]
            for entry in listed:
                status = client.call("getTradingAgentStatus", agentId=entry["agentId"])
                found[status["deploymentName"]] = _read(status)
        except ConfigError:
            raise
        except DryWorkError as error:
            if not target.is_local:
                raise
            note = str(error)
    if target.is_local:
        found = _add_local(target, found, note or ("" if client else "the local deploy service does not run"))
    return sorted(found.values(), key=lambda deployment: deployment.agent_id)


def _read(status: dict[str, Any]) -> Deployment:
    rollout, build = status.get("rollout") or {}, status.get("build") or {}
    return Deployment(
        agent_id=status["agentId"],
        normalised=str(status["deploymentName"]).removeprefix("trading-agent-"),
        status=status["status"] or "created",
        build_id=status["buildId"],
        digest=status.get("sourceDigest") or "",
        error=status.get("error") or "",
        phase=rollout.get("phase", ""),
        restarts=int(rollout.get("restarts") or 0),
        reason=rollout.get("reason") or "",
        step=build.get("step") or "",
        unavailable=tuple(status.get("unavailable") or ()),
    )


def _add_local(target: Target, found: dict[str, Deployment], note: str) -> dict[str, Deployment]:
    """Add where agents of this machine have their state; also of those that a service which is down cannot tell of."""
    import dataclasses

    from deploy.ids import NAME_PREFIX
    from deploy.local_cluster import LocalCluster
    from dry_work.cli.deploy_target import translated

    folder = target.folder
    if not folder.agents.is_dir():
        return found
    cluster = LocalCluster(folder)
    added = dict(found)
    with translated():
        for path in sorted(folder.agents.iterdir()):
            normalised = path.name
            name = f"{NAME_PREFIX}{normalised}"
            if name not in added:
                rollout = cluster.rollout(normalised)
                added[name] = Deployment(
                    agent_id=normalised,
                    normalised=normalised,
                    status=UNKNOWN,
                    phase=rollout.phase,
                    restarts=rollout.restarts,
                    reason=rollout.reason,
                    note=note,
                )
            added[name] = dataclasses.replace(
                added[name],
                state_dir=folder.state_dir(normalised),
                environment=cluster.venue_of(normalised),
            )
    return added


def choose_deployment(agent: str, found: Iterable[Deployment]) -> Deployment | None:
    """Return the deployment of an agent by its id or its normalised id; None when there is none."""
    found = list(found)
    exact = next((deployment for deployment in found if deployment.agent_id == agent), None)
    return exact or next((deployment for deployment in found if deployment.normalised == agent), None)


def build_deployment_list(found: Iterable[Deployment]) -> Iterator[Any]:
    """Yield the table of deployments for people."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("deployed agent", "deployment", "process", "build", "source"):
        table.add_column(name, overflow="fold")
    rows = list(found)
    for row in rows:
        style = "" if row.is_well else "bold red"
        process = row.phase + (f", {row.restarts} restarts" if row.restarts else "")
        table.add_row(row.agent_id, Text(row.status, style=style), process, row.build_id, row.digest[:12])
    yield table
    yield from (f"{row.agent_id}: {said}" for row in rows if (said := _explain(row)))


def describe_deployment(row: Deployment) -> Iterator[Any]:
    """Yield what is known of one deployment for people."""
    from rich.text import Text

    words = [f"deployment: {row.status.replace('_', ' ')}"]
    words += [f"build {row.build_id}"] if row.build_id else []
    words += [f"source {row.digest[:12]}"] if row.digest else []
    words += [f"in {row.step}"] if row.step else []
    words += [f"{row.restarts} restarts"] if row.restarts else []
    yield Text(", ".join(words), style="" if row.is_well else "bold red")
    said = _explain(row)
    if said:
        yield f"  {said}"


def _explain(row: Deployment) -> str:
    return row.error or row.reason or row.note or "; ".join(row.unavailable)
