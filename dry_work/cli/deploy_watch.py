"""Watches a deployment, and what an agent writes, in lines for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dry_work.errors import DryWorkError

if TYPE_CHECKING:
    from dry_work.cli.deploy_client import DeployClient

LOCAL_POLL_S = 0.25
REMOTE_POLL_S = 2.0
MAX_LINES = 1_000
_OUTAGE_S = 60.0  # for which a service may not answer while it is watched


def poll_s(client: DeployClient) -> float:
    """Return how often a service is asked."""
    return LOCAL_POLL_S if client.url.startswith("http://127.0.0.1") else REMOTE_POLL_S


def watch(client: DeployClient, agent_id: str, *, build_id: str = "") -> tuple[dict[str, Any], int]:
    """Print how a deployment gets on until it is settled; return the last status and the exit code.

    Args:
        build_id: that is waited for; when another one takes its place, that one is watched.
    """
    begun = time.monotonic()
    last = ""
    for status in _ask(client, agent_id):
        state = status["status"]
        line = describe_progress(status)
        if line and line != last:
            click.echo(line)
            last = line
        if build_id and status["buildId"] != build_id:
            build_id = status["buildId"]
            click.echo(f"build     {build_id}")
        if state == "deploying":
            continue
        seconds = time.monotonic() - begun
        if state == "deployed":
            click.echo(f"deployed  in {seconds:.1f} s")
            click.echo(f"next      dry-work status {agent_id}; dry-work logs {agent_id} --follow")
            return status, 0
        click.echo(f"{state.replace('_', ' ')}: {status['error'] or 'somebody has stopped it'}", err=True)
        return status, 1
    raise AssertionError  # the loop above ends by itself


def watch_rollout(client: DeployClient, agent_id: str) -> int:
    """Print how an agent that was started anew gets on until it runs or does not; return the exit code."""
    last = ""
    for status in _ask(client, agent_id):
        rollout = status.get("rollout") or {}
        phase, reason = rollout.get("phase"), rollout.get("reason") or ""
        if phase == "complete":
            click.echo(f"running   {agent_id}")
            return 0
        if phase in ("failed", "missing"):
            click.echo(f"{agent_id}: {reason or 'it was stopped meanwhile'}", err=True)
            return 1
        if reason and reason != last:
            click.echo(f"rollout   {reason}")
            last = reason
    raise AssertionError  # the loop above ends by itself


def _ask(client: DeployClient, agent_id: str) -> Iterator[dict[str, Any]]:
    answered = time.monotonic()
    while True:
        try:
            status = client.call("getTradingAgentStatus", agentId=agent_id)
        except DryWorkError:
            if time.monotonic() - answered > _OUTAGE_S:
                raise
        else:
            answered = time.monotonic()
            yield status
        time.sleep(poll_s(client))


def describe_progress(status: dict[str, Any]) -> str:
    """Return what a deployment that is under way does now; empty when that is not known."""
    if status["status"] != "deploying":
        return ""
    build, rollout = status.get("build") or {}, status.get("rollout") or {}
    if build.get("status") in ("queued", "working"):
        return f"          {build.get('step') or build['status']}"
    reason = rollout.get("reason")
    return f"rollout   {reason}" if reason else ""


def follow_logs(client: DeployClient, agent_id: str, *, since: str | None) -> None:
    """Print what an agent writes until Ctrl-C."""
    while True:
        answer = client.call("getTradingAgentLogs", agentId=agent_id, since=since, limit=MAX_LINES)
        since = print_lines(answer["lines"], since)
        if len(answer["lines"]) == MAX_LINES:
            click.echo("… more lines than can be shown here", err=True)
        time.sleep(max(poll_s(client), 0.5))


def print_lines(lines: list[dict[str, Any]], since: str | None = None) -> str | None:
    """Print lines of a log; return the time of the last one."""
    for line in lines:
        stamp = line["time"]
        click.echo(f"{stamp[:19]}Z  {line['text']}" if stamp else line["text"])
        since = stamp or since
    return since
