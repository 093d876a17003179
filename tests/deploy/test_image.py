"""The Dockerfile, without building it; `test_image_run.py` builds and runs it."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

from deploy.manifest import read_template

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The instructions of the Dockerfile, continuations joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def of(lines: list[str], word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]


def test_the_base_is_pinned_by_tag_and_can_be_pinned_by_digest(lines: list[str]) -> None:
    assert of(lines, "FROM") == ["${PYTHON_IMAGE}${PYTHON_DIGEST} AS build", "${PYTHON_IMAGE}${PYTHON_DIGEST}"]
    match = re.fullmatch(r"PYTHON_IMAGE=python:(\d+\.\d+)-slim-bookworm", of(lines, "ARG")[0])
    assert match is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {match[1]}" in project["classifiers"]


def test_it_runs_as_trader_with_a_volume_and_without_a_shell(lines: list[str]) -> None:
    last_stage = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM")) :]
    assert of(last_stage, "USER") == ["trader"]
    assert of(last_stage, "VOLUME") == ["/var/lib/trading-agent"]
    assert json.loads(of(last_stage, "ENTRYPOINT")[0]) == ["dry-work"]
    assert json.loads(of(last_stage, "CMD")[0]) == ["run"]
    assert "--uid 10001" in of(last_stage, "RUN")[0]


def test_its_health_check_is_the_liveness_probe(lines: list[str]) -> None:
    match = re.fullmatch(
        r"--interval=(\d+)s --timeout=(\d+)s --start-period=(\d+)s --retries=(\d+) CMD (\[.*\])",
        of(lines, "HEALTHCHECK")[0],
    )
    assert match is not None
    deployment = next(found for found in read_template("PaperTrading.yaml") if found["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    probe = container["livenessProbe"]
    assert json.loads(match[5]) == probe["exec"]["command"]
    found = [int(match[number]) for number in (1, 2, 3, 4)]
    names = ("periodSeconds", "timeoutSeconds", "initialDelaySeconds", "failureThreshold")
    assert found == [probe[name] for name in names]
    assert found[0] == found[2] == 60
    user = deployment["spec"]["template"]["spec"]["securityContext"]
    assert (user["runAsUser"], user["runAsGroup"], user["fsGroup"]) == (10001, 10001, 10001)


def test_only_named_files_come_in_and_all_of_them_are_there(lines: list[str]) -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    assert rules[0] == "*"
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for line in of(lines, "COPY") if "--from" not in line for word in line.split()[:-1]}
    assert copied == admitted
    for name in copied:
        assert (ROOT / name).exists(), name
        assert not fnmatch.fnmatch(name, "*.env*")
    assert of(lines, "ADD") == []


def test_versions_are_the_tested_ones_and_the_extras_exist(lines: list[str]) -> None:
    text = " ".join(of(lines, "RUN"))
    assert "-c constraints.txt" in text
    match = re.search(r"names = (\([^)]*\))", text)
    assert match is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(ast.literal_eval(match[1])) <= set(project["optional-dependencies"])


def test_every_file_can_be_read_by_the_lowest_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    match = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    assert match is not None
    for folder in ("dry_work", "agents", "deploy", "functions"):
        for path in (ROOT / folder).rglob("*.py"):
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, int(match[1])))


def test_no_credential_is_in_what_an_image_is_made_of() -> None:
    for path in [ROOT / "Dockerfile", ROOT / "cloudbuild.yaml", *(ROOT / "k8s").rglob("*")]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\b(PK|AK|CK)[A-Z0-9]{18}\b|-----BEGIN|AIza[\w-]{30}", text), path
            assert not re.search(r"^kind: Secret$", text, re.MULTILINE), path
