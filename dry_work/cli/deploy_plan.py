"""What a deployment would do, shown before it is done."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dry_work.cli.deploy_local import choose_settings
from dry_work.cli.deploy_target import Target, translated

if TYPE_CHECKING:
    from dry_work.cli.deploy_source import Source


@dataclass(frozen=True, kw_only=True)
class PlanAnswer:
    """A plan for people and for programs."""

    text: str
    values: dict[str, Any]
    exit_code: int = 0


def plan_local(source: Source, agent_id: str, target: Target, given: Mapping[str, Any]) -> PlanAnswer:
    """Return what a deployment to this machine would start."""
    from deploy.ids import normalise_agent_id
    from deploy.local_cluster import LocalCluster
    from deploy.local_exchange import LocalExchange
    from deploy.local_service import find_service

    with translated():
        normalised = normalise_agent_id(agent_id)
        _, settings = choose_settings(target, given)
        service = find_service(target.folder)
        exchange = LocalExchange(target.folder)
        spec = LocalCluster(target.folder).kept(normalised).read_spec()
        address = exchange.address()
        runs_exchange = exchange.kept.is_kept
    client = target.look()
    known: dict[str, Any] = {}
    if client is not None:
        agents = client.call("listTradingAgents")["agents"]
        known = next((found for found in agents if found["agentId"] == agent_id), {})
    runs = spec is not None and spec.running
    is_same = runs and known.get("status") == "deployed" and known.get("sourceDigest") == source.archive.digest
    lines = [_row("keep" if service else "start", "service", service or "on a port of this machine")]
    if settings.is_simulated:
        action = "keep" if runs_exchange else "start"
        lines.append(_row(action, "exchange", f"{address.url if address else settings.describe()}"))
    else:
        lines.append(_row("keep", "account", settings.describe()))
    action = "keep" if is_same else "change" if runs else "create"
    lines.append(_row(action, "agent", f"{agent_id} ({normalised})"))
    before = str(known.get("sourceDigest", ""))
    after = source.archive.digest
    lines.append(f"            source: {_short(before)} → {_short(after)}" if not is_same else "            unchanged")
    details = {
        "sources": source.describe(),
        "strategy": source.summary.agent,
        "parameters": ", ".join(f"{name}={value}" for name, value in source.summary.params.items()) or "its own",
        "symbols": ", ".join(source.summary.symbols),
        "packages": ", ".join(source.summary.requirements) or "those that Dry Work has",
        "state": str(target.folder.state_dir(normalised)),
    }
    lines += [f"            {name}: {value}" for name, value in details.items()]
    lines.append("checked: form, syntax, strategy, settings, symbols and secrets; the import is checked by the build")
    undo = [] if is_same else [f"dry-work rollback {agent_id}" if runs else f"dry-work stop {agent_id}"]
    lines += ["to undo:", *(f"  {line}" for line in undo)] if undo else []
    values = {
        "target": "local",
        "agentId": agent_id,
        "action": action,
        "sourceDigest": after,
        "before": before or None,
        "service": service or None,
        "undo": undo,
        **{name: value for name, value in details.items() if name in ("strategy", "state")},
        "symbols": list(source.summary.symbols),
        "requirements": list(source.summary.requirements),
    }
    return PlanAnswer(text="\n".join(lines) + "\n", values=values)


def plan_cluster(source: Source, agent_id: str, target: Target) -> PlanAnswer:
    """Return what a deployment would change in the cluster that kubectl talks to; writes what is there beside it."""
    from deploy.build_plan import BUILD_ID_MARK
    from deploy.ids import normalise_agent_id
    from deploy.manifest import AgentManifest
    from deploy.plan import BEFORE, build_plan, format_plan, read_cluster, to_json
    from deploy.settings import read_settings
    from dry_work.settings import read_environment

    with translated():
        settings = read_settings(_without_client(read_environment(Path.cwd())))
        normalised = normalise_agent_id(agent_id)
        image = f"{settings.agent_image(normalised)}:{BUILD_ID_MARK}"
        user_id = _user_of(target)
        documents, _ = AgentManifest(settings)(normalised=normalised, user_id=user_id, image=image)
        plan = build_plan(documents, read_cluster(documents))
    text = f"source: {source.describe()}; strategy {source.summary.agent}\n{format_plan(plan)}"
    if plan.before:
        Path(BEFORE).write_text(plan.before, encoding="utf-8")
        text += f"wrote {BEFORE}: what is changed, as it is now\n"
    values = {"target": "cluster", "agentId": agent_id, "sourceDigest": source.archive.digest, **to_json(plan)}
    return PlanAnswer(text=text, values=values, exit_code=0 if plan.is_good else 1)


def _without_client(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("DRY_WORK_")}


def _user_of(target: Target) -> str:
    """Return whose agent it is going to be, by the token that would be sent; nobody's when there is none."""
    if target.token_file is None:
        return ""
    parts = target.token_file.read_text(encoding="ascii").strip().split(".") if target.token_file.is_file() else []
    if len(parts) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return ""
    return str(claims.get("sub", "")) if isinstance(claims, dict) else ""


def _row(action: str, what: str, text: str) -> str:
    signs = {"create": "+ create", "start": "+ start", "change": "~ change", "keep": "  keep"}
    return f"{signs[action]:<9} {what} {text}"


def _short(digest: str) -> str:
    return digest[:12] or "nothing"
