"""The project's own build file, by the rules of Cloud Build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.cloud_build_rules import find_problems

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def step(build: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in build["steps"] if found["id"] == name)


def test_cloud_build_takes_the_file(build: dict[str, Any]) -> None:
    assert find_problems(build) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"script": "true"}, "script together with args"),
        ({"args": ["build", "$_NOBODY"]}, r"\$_NOBODY is not declared"),
        ({"args": ["build", "${_NOBODY}"]}, r"\$_NOBODY is not declared"),
        ({"waitFor": ["push-image"]}, "no step before it"),
        ({"id": "test"}, "used twice"),
        ({"timeout": "7200s"}, "longer than the build's"),
        ({"argument": ["x"]}, "unknown field"),
    ],
)
def test_what_cloud_build_refuses_is_found(build: dict[str, Any], change: dict[str, Any], problem: str) -> None:
    step(build, "build-image").update(change)
    assert any(re.search(problem, found) for found in find_problems(build)), find_problems(build)


def test_a_substitution_that_nobody_uses_is_found(build: dict[str, Any]) -> None:
    build["substitutions"]["_LEFT_OVER"] = "x"
    assert find_problems(build) == ["substitution _LEFT_OVER is not used"]


def test_the_image_is_pushed_after_the_suite_and_a_run_without_network_root_or_writing(build: dict[str, Any]) -> None:
    assert set(step(build, "push-image")["waitFor"]) == {"test", "check-image"}
    words = step(build, "check-image")["args"]
    assert {"--read-only", "--network=none", "--cap-drop=ALL", "--memory=512m"} <= set(words)


def test_build_arguments_are_those_of_the_dockerfile_and_no_project_is_named(build: dict[str, Any]) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    known = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    given = {word.split("=")[1] for word in step(build, "build-image")["args"] if word.startswith("--build-arg=")}
    assert given == known
    assert build["substitutions"]["_IMAGE"] == "gcr.io/${PROJECT_ID}/dry-work"
    base = re.search(r"^ARG PYTHON_IMAGE=(.+)$", text, re.MULTILINE)
    assert base is not None
    assert build["substitutions"]["_PYTHON_IMAGE"] == base[1]
