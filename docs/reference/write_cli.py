"""Write `cli.md` beside this file from the `--help` of every command: `python docs/reference/write_cli.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dry_work.cli import COMMANDS, cli

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 110

HEAD = """\
# The command line

Written by `python docs/reference/write_cli.py` from the `--help` of every command; a test compares the two.

Exit codes: 0 done (also after SIGTERM), 1 failed, 2 usage or configuration, 3 stopped by a risk limit, 130 after
Ctrl-C. Results on stdout are for people; with `--json` the last line is one JSON object.

Shells complete commands, options and files after one line in their start-up file:

| shell | line |
| --- | --- |
| bash | `eval "$(_DRY_WORK_COMPLETE=bash_source dry-work)"` |
| zsh | `eval "$(_DRY_WORK_COMPLETE=zsh_source dry-work)"` |
| fish | `_DRY_WORK_COMPLETE=fish_source dry-work \\| source` |

The environment variables are in [`.env.example`](../../.env.example).
"""


def build_page() -> str:
    """Return the page."""
    root = _context(cli, "dry-work", None)
    parts = [HEAD, _section("dry-work", cli.get_help(root))]
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts.append(_section(f"dry-work {name}", command.get_help(_context(command, name, root))))
    return "\n".join(parts)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
