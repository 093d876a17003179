"""Pages that repeat what the program says of itself are up to date."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dry_work.settings import parse_env_file

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "dry_work"
_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def test_the_page_of_the_command_line_is_what_help_says() -> None:
    # In a process of its own: click remembers how a command's help was first asked for.
    code = "import runpy, sys; sys.stdout.write(runpy.run_path(sys.argv[1])['build_page']())"
    path = ROOT / "docs" / "reference" / "write_cli.py"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    shown = path.with_name("cli.md").read_text(encoding="utf-8")
    assert shown == done.stdout, "run `python docs/reference/write_cli.py`"


def names_in(node: ast.AST) -> Iterator[str]:
    for found in ast.walk(node):
        if isinstance(found, ast.Constant) and isinstance(found.value, str) and _NAME.fullmatch(found.value):
            yield found.value


def variables_of(tree: ast.AST) -> Iterator[str]:
    """Yield the names of environment variables that a module reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if re.search(r"(read_variable|\.variable|(environ|environment)\.get|os\.getenv)$", called):
                yield from names_in(ast.Module([ast.Expr(arg) for arg in node.args], []))
            for keyword in node.keywords:
                if keyword.arg == "envvar":
                    yield from names_in(keyword.value)
        elif isinstance(node, ast.Subscript) and re.search(r"(environ|environment)$", ast.unparse(node.value)):
            yield from names_in(node.slice)
        elif isinstance(node, ast.FunctionDef) and node.name == "read_credentials":
            # Its names stand in tables.
            yield from (name for item in node.body if isinstance(item, ast.Assign) for name in names_in(item))


def test_each_variable_that_is_read_stands_in_the_example_of_a_settings_file_or_on_its_page() -> None:
    read: set[str] = set()
    written: set[str] = set()  # as a text, anywhere: some are read by a name that is handed over
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read.update(variables_of(tree))
        written.update(names_in(tree))
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    named = [match[1] for line in lines if (match := re.match(r"(?:# )?([A-Z][A-Z0-9_]+)=", line))]
    assert {"ALPACA_API_KEY", "PAPER_ALPACA_API_SECRET_KEY", "GOOGLE_CLOUD_PROJECT", "LOG_LEVEL"} <= read
    pages = [ROOT / "docs" / "reference" / "hub-settings.md", ROOT / "docs" / "howto" / "observe.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    of_pages = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text))  # tests of their own compare them with what is read
    assert read <= {*named, *of_pages}
    assert set(named) <= written | of_pages
    assert len(named) == len(set(named))


def test_the_example_of_a_settings_file_can_be_used_as_it_is_and_holds_no_secret() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(parse_env_file(text).values()) == {""}
    uncommented = re.sub(r"^# (?=[A-Z][A-Z0-9_]+=)", "", text, flags=re.MULTILINE)
    for name, value in parse_env_file(uncommented).items():
        if re.search("KEY|SECRET|TOKEN|ACCOUNT", name):
            assert value == "", name


@pytest.mark.parametrize(
    ("words", "word", "expected"),
    [
        ("dry-work p", 1, ["plain,publish", "plain,pubsub"]),
        ("dry-work run --agent my", 3, ["file,my"]),
        ("dry-work run --symbols sy", 3, ["file,sy"]),
        ("dry-work new x --path d", 4, ["dir,d"]),
        ("dry-work exchange --rules b", 3, ["plain,backtrader"]),
    ],
)
def test_a_shell_completes_commands_files_and_choices(words: str, word: int, expected: list[str]) -> None:
    environment = {
        **os.environ, "_DRY_WORK_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(word),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from dry_work.cli import main; main()"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == expected, done.stderr
