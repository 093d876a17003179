"""Every block of the how-tos and the README is valid: commands and options exist, Python compiles, tables parse."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import msgspec
import pytest

from dry_work.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md")))
SHELL = ("sh", "bash", "console")
# Blocks without a language hold commands as well as drawings and output: only their lines that are commands count.
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:^|[|;&(]\s*|\$ |[A-Z_]+=\S* )dry-work(?= |$)")
_ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "2>&1", "<"}
_ELSEWHERE = ("cream",)  # stubs that the reader generates


class Block(msgspec.Struct, frozen=True):
    """What stands in a fence."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        yield Block(page.name, line, found["language"], found["text"])


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def read_commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `dry-work` in shell text, with quotes taken off and comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        for found in _COMMAND.finditer(line):
            lexer = shlex.shlex(line[found.end() :], posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            try:
                for word in lexer:
                    if word in _ENDS or word.startswith("#"):
                        break
                    words.append(word)
            except ValueError:  # an apostrophe in a drawing's words
                continue
            yield words


def parse(words: list[str]) -> None:
    """Parse a command as the command line would, without running it.

    Raises:
        click.ClickException: the command, an option or a value is not known.
    """
    name, *arguments = words
    if name.startswith("-"):
        return
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        raise click.UsageError(f"there is no command {name!r}")
    # A page need not repeat required options that its sentence is not about; the files that it names are the reader's.
    with click.Context(command, info_name=name, parent=click.Context(cli)) as context:
        _, left, _ = command.make_parser(context).parse_args([word for word in arguments if word != "…"])
        if left and not any(isinstance(each, click.Argument) for each in command.params):
            raise click.UsageError(f"{name} takes no {left[0]!r}")


def find_problems(block: Block) -> list[str]:
    problems = []
    for words in read_commands(block.text):
        try:
            parse(words)
        except click.ClickException as error:
            problems.append(f"{block}: dry-work {' '.join(words)}: {error.format_message()}")
    return problems


def test_every_command_and_option_that_a_page_names_exists() -> None:
    commands = [words for block in BLOCKS if block.language in (*SHELL, "") for words in read_commands(block.text)]
    assert len(commands) > 60, "the pages have many more commands than these: the search has lost them"
    assert [problem for block in BLOCKS if block.language in (*SHELL, "") for problem in find_problems(block)] == []


@pytest.mark.parametrize(
    "text",
    ["dry-work nothing", "dry-work hub --sink redis", "X=1 dry-work run --agent-id me", "a | dry-work pubsub one"],
)
def test_a_command_that_does_not_exist_is_found(text: str) -> None:
    assert len(find_problems(Block("page.md", 1, "sh", text))) == 1


def test_options_that_are_named_in_running_text_exist() -> None:
    known = {
        option
        for name in cli.list_commands(click.Context(cli))
        if (command := cli.get_command(click.Context(cli), name)) is not None
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    missing = []
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for found in re.finditer(r"`dry-work ([a-z]+)((?: [^`\n]+)?)`", text):
            for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", found[2]):
                if option not in known:
                    missing.append(f"{page.name}: dry-work {found[1]} {option}")
            if found[1] not in cli.list_commands(click.Context(cli)):
                missing.append(f"{page.name}: dry-work {found[1]}")
    assert missing == []


@pytest.mark.parametrize("block", of(*SHELL), ids=str)
def test_a_shell_block_is_a_shell_program(block: Block) -> None:
    text = block.text
    if any(
        line.startswith("$ ") for line in text.splitlines()
    ):  # what is typed, and what comes out: the first is checked
        typed = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)
        # A quoted text may go on over the lines that follow: then all of the block is typed.
        text = (
            "\n".join(typed) if "\n".join(typed).count("'") % 2 == 0 else re.sub(r"^\$ ", "", text, flags=re.MULTILINE)
        )
    else:
        text = "\n".join(line for line in text.splitlines() if not line.startswith("{"))  # a reply
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, f"{block}: {checked.stderr}"


def read_imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the module of each import, and the name that is taken from it if there is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def is_there(module: str, name: str) -> bool:
    try:
        if not hasattr(import_module(module), name or "__name__"):
            import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def find_missing_imports(text: str, page: str) -> list[str]:
    imports = [found for found in read_imports(ast.parse(text, filename=page)) if not found[0].startswith(_ELSEWHERE)]
    return [".".join(filter(None, found)) for found in imports if not is_there(*found)]


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_a_python_block_compiles_and_what_it_imports_exists(block: Block) -> None:
    assert find_missing_imports(block.text, str(block)) == []


def test_an_import_of_what_does_not_exist_is_found() -> None:
    text = "import json\nimport dry_work.nothing\nfrom dry_work import cli\nfrom dry_work.cli import cli, nothing\n"
    assert find_missing_imports(text, "page.md") == ["dry_work.nothing", "dry_work.cli.nothing"]


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_a_toml_block_parses(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_a_json_block_is_json_line_by_line_or_as_a_whole(block: Block) -> None:
    try:
        values = [json.loads(block.text)]
    except json.JSONDecodeError:
        values = [json.loads(line) for line in block.text.splitlines()]
    assert values
    assert all(isinstance(value, dict | list) for value in values)
