"""Answers of the service, as plain values, and what they tell people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.ids import deployment_name
from deploy.ports import AgentDocument, SourceRecord

Answer = dict[str, Any]


def answer(document: AgentDocument, build_id: str = "") -> Answer:
    """Return what every call about one agent answers."""
    return {
        "success": True,
        "agentId": document.agent_id,
        "deploymentName": deployment_name(document.normalised_id),
        "buildId": build_id or document.build_id,
        "status": document.status,
    }


def describe(document: AgentDocument) -> Answer:
    """Return what is known of an agent by its document."""
    sources = [
        {"digest": source.digest, "sizeBytes": source.size_bytes, "uploaded": source.uploaded}
        for source in document.sources
    ]
    return {
        **answer(document),
        "name": document.name,
        "error": document.error,
        "deploymentStarted": document.fields.get("deploymentStarted"),
        "deploymentCompleted": document.fields.get("deploymentCompleted"),
        "sourceDigest": document.source_digest,
        "sources": sources,
    }


def uploaded(document: AgentDocument, record: SourceRecord, notes: Sequence[str]) -> Answer:
    """Return what an archive was found to be."""
    return {
        **answer(document),
        "sourceDigest": record.digest,
        "sizeBytes": record.size_bytes,
        "agent": record.agent,
        "symbols": list(record.symbols),
        "notes": list(notes),
    }


def taken(agent_id: str, normalised: str) -> str:
    """Say that an id cannot be had."""
    return f"the agent id {agent_id!a} is taken: it becomes {normalised} in Kubernetes names, as another agent's does"


def readable_id(name: str) -> str:
    """Return the beginning of an id for an agent of this name, with - at its end."""
    letters = "".join(character if character.isascii() and character.isalnum() else "-" for character in name.lower())
    words = "-".join(word for word in letters.split("-") if word)[:40].strip("-")
    return f"{words}-" if words else "agent-"
