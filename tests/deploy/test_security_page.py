"""The page about security names tests that exist, and no threat without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/design/security.md").read_text(encoding="utf-8")
_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def test_every_threat_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "| ---"))]
    assert len(rows) > 30
    for row in rows:
        named = _TEST.findall(row)
        assert named, row
        for file, name in named:
            tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
            defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in defined, f"{file} has no {name}"


def test_every_test_that_is_named_stands_in_a_table() -> None:
    named = set(_TEST.findall(PAGE))
    in_tables = {found for line in PAGE.splitlines() if line.startswith("|") for found in _TEST.findall(line)}
    assert named == in_tables
