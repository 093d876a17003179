"""What the source says of the fields of a class, and tables of Markdown, for the generators beside this file. Pure."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class FieldNote(NamedTuple):
    """A field, or a member of an enumeration, as its class writes it."""

    name: str
    type: str
    default: str
    text: str


def read_fields(kind: type) -> list[FieldNote]:
    """Return the fields of a class, or the members of an enumeration, with the comments behind them."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found = []
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = "" if node.value is None else _show_default(node.value)
            found.append(FieldNote(node.target.id, ast.unparse(node.annotation), default, _comment(lines, node)))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.append(FieldNote(node.targets[0].id, "", ast.unparse(node.value), _comment(lines, node)))
    return found


def _show_default(value: ast.expr) -> str:
    if isinstance(value, ast.Call):
        return "empty" if ast.unparse(value.func).endswith("field") else ast.unparse(value)
    text = ast.unparse(value)
    return {"''": "empty", "()": "empty", "{}": "empty"}.get(text, text)


def _comment(lines: Sequence[str], node: ast.stmt) -> str:
    line = lines[(node.end_lineno or node.lineno) - 1]
    _, mark, text = line[node.end_col_offset if node.end_lineno == node.lineno else 0 :].partition("#")
    return re.sub(r"^\s*noqa.*", "", text).strip() if mark else ""


def read_summary(kind: object) -> str:
    """Return the first paragraph of a docstring in one line."""
    text = inspect.getdoc(kind) or ""
    return " ".join(text.split("\n\n")[0].split())


def build_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown; bars in cells are escaped."""

    def lines() -> Iterator[str]:
        yield f"| {' | '.join(head)} |"
        yield f"|{' --- |' * len(head)}"
        for row in rows:
            cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
            yield "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)

    return "\n".join(lines())


def code(text: str) -> str:
    """Return a text as code, nothing for nothing."""
    return f"`{text}`" if text else ""
