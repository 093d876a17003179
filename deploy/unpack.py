"""Unpack an archive whose digest is known, for the image of an agent. Needs nothing but Python's own library.

Runs as it stands in a build step, as `python unpack.py` beside `agent-source.zip` with `SOURCE_DIGEST` in its
environment, and as a function on the local target.
"""

import hashlib
import os
import re
import tomllib
import zipfile
from pathlib import Path

DEFAULT_AGENT = "agent/agent.py:Agent"
_RUN_HEADER = re.compile(r"^[ \t]*\[[ \t]*run[ \t]*\][ \t]*(#.*)?$", re.MULTILINE)


def name_agent(toml: str) -> str:
    """Return the text of a `dry-work.toml` with an agent named in `[run]`: the default one when it names none."""
    run = tomllib.loads(toml).get("run", {})
    if isinstance(run, dict) and "agent" in run:
        return toml
    line = f'agent = "{DEFAULT_AGENT}"'
    header = _RUN_HEADER.search(toml)
    named = f"{toml[: header.end()]}\n{line}{toml[header.end() :]}" if header else f"{toml}\n[run]\n{line}\n"
    try:
        if tomllib.loads(named)["run"]["agent"] == DEFAULT_AGENT:
            return named
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        pass  # [run] is written in a way that cannot be added to
    raise ValueError("dry-work.toml: [run] is to name the agent")


def unpack(archive: Path, digest: str, target: Path) -> list[str]:
    """Unpack `archive` into `target`, which is made, and return the requirements that it names.

    Raises:
        ValueError: when its bytes are not those that were checked.
    """
    content = archive.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("the source is not the one that was checked: deploy again")
    target.mkdir(parents=True)
    with zipfile.ZipFile(archive) as files:
        files.extractall(target)
    toml = target / "dry-work.toml"
    text = name_agent(toml.read_text(encoding="utf-8-sig") if toml.is_file() else "")
    toml.write_text(text, encoding="utf-8")
    return [str(line) for line in tomllib.loads(text).get("deploy", {}).get("requirements", [])]


if __name__ == "__main__":
    here = Path(__file__).parent
    try:
        lines = unpack(here / "agent-source.zip", os.environ["SOURCE_DIGEST"], here / "source")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    (here / "requirements.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
