"""What Cloud Build refuses in a build file, as far as it can be told without it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.cloud.devtools.cloudbuild_v1.types import Build
from google.protobuf.json_format import ParseDict, ParseError

BUILT_IN = frozenset(
    (
        "PROJECT_ID", "PROJECT_NUMBER", "LOCATION", "BUILD_ID", "TRIGGER_NAME", "COMMIT_SHA", "REVISION_ID",
        "SHORT_SHA", "REPO_NAME", "REPO_FULL_NAME", "BRANCH_NAME", "TAG_NAME", "REF_NAME", "TRIGGER_BUILD_CONFIG_PATH",
        "SERVICE_ACCOUNT_EMAIL", "SERVICE_ACCOUNT",
    )
)  # fmt: skip
_USED = re.compile(r"\$\$|\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Z_][A-Z0-9_]*))")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def find_problems(build: Mapping[str, Any]) -> list[str]:
    """Return what Cloud Build would refuse."""
    return list(_check(build))


def _check(build: Mapping[str, Any]) -> Iterator[str]:
    try:
        ParseDict(dict(build), Build.pb()())
    except ParseError as error:
        yield f"unknown field or wrong type: {error}"
        return
    declared = set(build.get("substitutions", {}))
    for name in declared:
        if not re.fullmatch(r"_[A-Z0-9_]+", name):
            yield f"substitution {name!r}: expected an underscore, capitals and digits"
    used: set[str] = set()
    for name in _names(build.get("substitutions", {})):
        if not build.get("options", {}).get("dynamicSubstitutions"):
            yield f"a substitution uses ${name}, which needs dynamicSubstitutions"
        if name in declared:
            used.add(name)
        elif name not in BUILT_IN:
            yield f"${name} is not declared"
    seen: list[str] = []
    for position, step in enumerate(build.get("steps", ())):
        label = step.get("id", f"step {position}")
        if not step.get("name"):
            yield f"{label}: no image"
        if "id" in step and (not _ID.fullmatch(step["id"]) or step["id"] in seen):
            yield f"{label}: the id is not usable, or used twice"
        if step.get("script") and (step.get("args") or step.get("entrypoint")):
            yield f"{label}: script together with args or entrypoint"
        for before in step.get("waitFor", ()):
            if before != "-" and before not in seen:
                yield f"{label}: waits for {before!r}, which is no step before it"
        # A script gets its variables from its environment; substitutions are not put into it.
        parts = {key: value for key, value in step.items() if key != "script"}
        for name in _names(parts):
            if name in declared:
                used.add(name)
            elif name not in BUILT_IN:
                yield f"{label}: ${name} is not declared"
        seen.append(step.get("id", ""))
    if not seen:
        yield "no steps"
    for name in sorted(declared - used):
        yield f"substitution {name} is not used"
    total = _seconds(build.get("timeout", "3600s"))
    if not 0 < total <= 86_400:
        yield f"timeout {build.get('timeout')!r}: expected up to 24 hours"
    for step in build.get("steps", ()):
        if _seconds(step.get("timeout", "0s")) > total:
            yield f"{step.get('id')}: its timeout is longer than the build's"


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _names(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _names(entry)
    elif isinstance(value, str):
        for match in _USED.finditer(value):
            if match[1] or match[2]:
                yield match[1] or match[2]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(\.\d+)?)s", text)
    return float(match[1]) if match else -1.0
