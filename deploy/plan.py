"""What a deployment would change in the cluster: rendered, checked, compared, with the way back. Pure.

`read_cluster` is the only part that talks to anybody: `kubectl`, which reads and rehearses, and changes nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.errors import ConfigurationError, UnavailableError
from deploy.manifest import to_yaml
from deploy.schemas import describe, find_problems
from deploy.setup_apply import Done, Run, run_command

Action = Literal["create", "change", "keep", "unknown"]

CALL_S = 20.0
FIELD_MANAGER = "dry-work-deploy"
_NEVER_SHOWN = frozenset({"Secret"})
# Lists whose entries have a name: their order says nothing.
_KEYS = ("name", "mountPath", "containerPort", "key")


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    """What a cluster says of a list of objects, by their position."""

    live: tuple[Mapping[str, Any] | None, ...] = ()
    refusals: tuple[str, ...] = ()  # of the server-side dry run, a sentence each
    silence: str = ""  # why the cluster was not asked, or did not answer


@dataclass(frozen=True, kw_only=True)
class Change:
    """What becomes of one object."""

    document: Mapping[str, Any]
    action: Action
    differences: tuple[str, ...] = ()  # `path: before → after`, a line each
    live: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a deployment would do."""

    changes: tuple[Change, ...]
    problems: tuple[str, ...]  # by schema, Pod Security and the cluster's own dry run
    silence: str = ""
    undo: tuple[str, ...] = ()  # command lines
    before: str = ""  # YAML of what is changed, as it is now; `undo` names it as BEFORE

    @property
    def is_good(self) -> bool:
        """Whether nothing stands against it."""
        return not self.problems


BEFORE = "before.yaml"


def build_plan(documents: Sequence[Mapping[str, Any]], view: ClusterView) -> Plan:
    """Return what applying `documents` would do in a cluster that says `view`.

    Raises:
        ConfigurationError: the objects cannot be checked, since kubernetes-validate is not installed.
    """
    live = view.live or (None,) * len(documents)
    changes = tuple(
        _compare(document, found, is_known=not view.silence) for document, found in zip(documents, live, strict=True)
    )
    before = [strip(change.live) for change in changes if change.action == "change" and change.live is not None]
    return Plan(
        changes=changes,
        problems=(*find_problems(documents), *view.refusals),
        silence=view.silence,
        undo=tuple(_undo(changes)),
        before=to_yaml(before) if before else "",
    )


def format_plan(plan: Plan) -> str:
    """Return a plan for people: what is made, changed and kept, what stands against it, and the way back."""
    signs = {"create": "+ create", "change": "~ change", "keep": "  keep", "unknown": "? apply"}
    lines = []
    for change in plan.changes:
        namespace = change.document.get("metadata", {}).get("namespace", "")
        lines.append(
            f"{signs[change.action]:<9} {describe(change.document)}" + (f" in {namespace}" if namespace else "")
        )
        lines += [f"            {line}" for line in change.differences]
    if plan.silence:
        lines.append(f"not compared with a cluster: {plan.silence}")
    lines.append("problems:" if plan.problems else "checked: schemas and restricted Pod Security" + _rehearsed(plan))
    lines += [f"  {problem}" for problem in plan.problems]
    if plan.undo:
        lines.append("to undo:")
        lines += [f"  {line}" for line in plan.undo]
    return "\n".join(lines) + "\n"


def _rehearsed(plan: Plan) -> str:
    return "" if plan.silence else ", and the cluster's dry run"


def to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values."""
    return {
        "changes": [
            {
                "kind": change.document.get("kind"),
                "name": change.document.get("metadata", {}).get("name"),
                "namespace": change.document.get("metadata", {}).get("namespace"),
                "action": change.action,
                "differences": list(change.differences),
            }
            for change in plan.changes
        ],
        "problems": list(plan.problems),
        "not_compared": plan.silence or None,
        "undo": list(plan.undo),
    }


def read_cluster(
    documents: Sequence[Mapping[str, Any]],
    *,
    run: Run = run_command,
    kubectl: Sequence[str] = ("kubectl",),
    timeout_s: float = CALL_S,
) -> ClusterView:
    """Ask a cluster what it has of `documents`, and whether it would take them; changes nothing.

    Args:
        kubectl: the program, with options such as `--context`.
    """
    live: list[Mapping[str, Any] | None] = []
    refusals: list[str] = []
    try:
        for document in documents:
            found = _get(document, run, kubectl, timeout_s)
            live.append(found)
            answer = _rehearse(document, run, kubectl, timeout_s)
            if answer:
                refusals.append(f"{describe(document)}: {answer}")
    except (ConfigurationError, UnavailableError) as error:
        return ClusterView(silence=str(error))
    return ClusterView(live=tuple(live), refusals=tuple(refusals))


def _get(document: Mapping[str, Any], run: Run, kubectl: Sequence[str], timeout_s: float) -> dict[str, Any] | None:
    words = (*kubectl, "get", "--filename", "-", "--ignore-not-found", "--output", "json", _timeout(timeout_s))
    done = run(words, stdin=json.dumps(document), timeout_s=timeout_s + 5)
    if done.code != 0:
        if _is_unknown_kind(done):
            return None
        raise UnavailableError(_said(done))
    if not done.output.strip():
        return None
    try:
        found = json.loads(done.output)
    except ValueError as error:
        raise UnavailableError("kubectl answers what is no JSON") from error
    if isinstance(found, dict) and found.get("kind") == "List":  # as kubectl wraps what it read from a file
        found = next(iter(found.get("items") or ()), None)
    return found if isinstance(found, dict) else None


def _rehearse(document: Mapping[str, Any], run: Run, kubectl: Sequence[str], timeout_s: float) -> str:
    """Return why the cluster would not take an object; empty when it would."""
    words = (
        *kubectl, "apply", "--server-side", "--dry-run=server", "--force-conflicts", f"--field-manager={FIELD_MANAGER}",
        "--filename", "-", _timeout(timeout_s),
    )  # fmt: skip
    done = run(words, stdin=json.dumps(document), timeout_s=timeout_s + 5)
    return "" if done.code == 0 else _said(done)


def _timeout(timeout_s: float) -> str:
    return f"--request-timeout={timeout_s:g}s"


def _is_unknown_kind(done: Done) -> bool:
    return "no matches for kind" in done.errors


def _said(done: Done) -> str:
    lines = [line.strip() for line in done.errors.splitlines()]
    said = " ".join(line for line in lines if line and not line.startswith("Warning:"))
    return (said or f"kubectl ended with {done.code}")[:400]


def strip(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of a cluster without what the cluster itself writes, so that it can be applied again."""
    kept = {key: value for key, value in document.items() if key != "status"}
    metadata = dict(kept.get("metadata", {}))
    for name in (
        "creationTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "selfLink",
        "uid",
        "finalizers",
    ):
        metadata.pop(name, None)
    annotations = {
        name: value
        for name, value in metadata.get("annotations", {}).items()
        if not name.startswith(("kubectl.kubernetes.io/last-applied", "deployment.kubernetes.io/", "pv.kubernetes.io/"))
    }
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    return {**kept, "metadata": metadata}


def _compare(document: Mapping[str, Any], live: Mapping[str, Any] | None, *, is_known: bool) -> Change:
    if not is_known:
        return Change(document=document, action="unknown")
    if live is None:
        return Change(document=document, action="create")
    if document.get("kind") in _NEVER_SHOWN:
        return Change(document=document, action="change", differences=("values are not shown",), live=None)
    wanted = {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}  # found by these
    differences = tuple(find_differences(wanted, strip(live)))
    return Change(document=document, action="change" if differences else "keep", differences=differences, live=live)


def find_differences(wanted: Any, live: Any, path: str = "") -> list[str]:
    """Return `path: before → after` for what `wanted` asks for and `live` has otherwise.

    What `live` has beyond it is the cluster's default, but for entries of lists with names: these would go.
    """
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        found = []
        for key, value in wanted.items():
            inner = f"{path}.{key}" if path else str(key)
            found += find_differences(value, live[key], inner) if key in live else _added(value, inner)
        return found
    if isinstance(wanted, list) and isinstance(live, list):
        key = _key_of(wanted, live)
        if key:
            return _compare_named(wanted, live, key, path)
        if len(wanted) == len(live):
            return [
                line
                for position, (one, other) in enumerate(zip(wanted, live, strict=True))
                for line in find_differences(one, other, f"{path}[{position}]")
            ]
    if _same(wanted, live):
        return []
    return [f"{path}: {_short(live)} → {_short(wanted)}"]


def _compare_named(wanted: list[Any], live: list[Any], key: str, path: str) -> list[str]:
    before, after = {entry[key]: entry for entry in live}, {entry[key]: entry for entry in wanted}
    found = []
    for name, entry in after.items():
        inner = f"{path}[{name}]"
        found += find_differences(entry, before[name], inner) if name in before else _added(entry, inner)
    return [*found, *(f"{path}[{name}]: {_short(entry)} → gone" for name, entry in before.items() if name not in after)]


def _added(value: Any, path: str) -> list[str]:
    # An empty value is what a cluster leaves out.
    is_empty = value is None or value is False or value in ({}, [], "")
    return [] if is_empty else [f"{path}: nothing → {_short(value)}"]


def _key_of(wanted: list[Any], live: list[Any]) -> str:
    """Return the name that tells the entries of two lists apart; empty when there is none."""
    entries = [*wanted, *live]
    if not entries or not all(isinstance(entry, Mapping) for entry in entries):
        return ""
    for key in _KEYS:
        if all(key in entry for entry in entries) and all(
            len({entry[key] for entry in side}) == len(side) for side in (wanted, live)
        ):
            return key
    return ""


_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|Ki|Mi|Gi)?")
_SUFFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def _same(wanted: Any, live: Any) -> bool:
    """Tell whether two values mean the same: Kubernetes writes 1000m as 1."""
    return wanted == live or (_quantity(wanted) is not None and _quantity(wanted) == _quantity(live))


def _quantity(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = _QUANTITY.fullmatch(str(value))
    return float(match[1]) * _SUFFIXES[match[2] or ""] if match else None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _undo(changes: Iterable[Change]) -> Iterable[str]:
    """Yield command lines that put everything back, in the opposite order."""
    changed = list(changes)
    restored = [change for change in changed if change.action == "change" and change.live is not None]
    if restored:
        yield f"kubectl apply --server-side --force-conflicts --field-manager={FIELD_MANAGER} --filename {BEFORE}"
    for change in reversed(changed):
        if change.action not in ("create", "unknown"):
            continue
        metadata = change.document["metadata"]
        place = ["--namespace", str(metadata["namespace"])] if metadata.get("namespace") else []
        kind = _resource(change.document)
        note = "  # with what the agent has kept" if change.document.get("kind") == "PersistentVolumeClaim" else ""
        words = ["kubectl", "delete", *place, "--ignore-not-found", f"{kind}/{metadata['name']}"]
        if change.action == "unknown":
            note = note or "  # if it was not there before"
        yield shlex.join(words) + note


def _resource(document: Mapping[str, Any]) -> str:
    group = str(document.get("apiVersion", "")).rpartition("/")[0]
    kind = str(document.get("kind", "")).lower()
    return f"{kind}.{group}" if "." in group else kind
