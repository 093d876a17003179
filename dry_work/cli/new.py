"""`dry-work new`: a folder with an agent, its settings and a test that passes."""

from __future__ import annotations

import re
import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from dry_work.errors import ConfigError

# It becomes the agent id too, hence part of subscriptions and client order ids.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
ALLOWED = "1 to 63 letters, digits, - and _, a letter first"

# Where each template goes. Templates have names that no tool takes for source code of Dry Work.
FILES = {
    "agent.py.txt": "agent.py",
    "dry-work.toml.txt": "dry-work.toml",
    "symbols.txt": "symbols.txt",
    "tests/test_agent.py.txt": "tests/test_agent.py",
    "README.md.txt": "README.md",
    "gitignore.txt": ".gitignore",
}


@click.command("new")
@click.argument("name")
@click.option(
    "--path",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder to make it in. Default: the present one.",
)
def command(name: str, folder: Path) -> None:
    """Make the folder NAME with a strategy, its settings and a test that passes.

    \b
    Examples:
      dry-work new my-agent
      cd my-agent && pytest && dry-work run --local
    """
    made = write_agent(name, folder)
    click.echo(f"made {made}:")
    for path in FILES.values():
        click.echo(f"  {path}")
    click.echo(f"next: cd {made} && dry-work run --local")


def write_agent(name: str, folder: Path) -> Path:
    """Write the files of a new agent into `folder`/`name` and return that folder.

    Raises:
        ConfigError: for a name that cannot be used, a folder that has something in it, or one that cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be the name of an agent: expected {ALLOWED}")
    target = folder / name
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file: choose another name, or another folder with --path")
    existed = target.is_dir()
    if existed and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty, and nothing in it shall be overwritten: choose another name")
    templates = resources.files("dry_work") / "templates" / "agent"
    try:
        for source, path in FILES.items():
            _write(templates.joinpath(source), target / path, name)
    except OSError as error:
        if not existed:
            shutil.rmtree(target, ignore_errors=True)
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def _write(template: Traversable, path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.read_text(encoding="utf-8").replace("{{name}}", name), encoding="utf-8")
