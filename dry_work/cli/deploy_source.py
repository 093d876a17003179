"""What is deployed: a folder with an agent, or one strategy file, as the archive that the service takes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from deploy.archive import SourceArchive
    from deploy.checks import SourceSummary

TOML = "dry-work.toml"
SYMBOLS = "symbols.txt"


@dataclass(frozen=True, kw_only=True)
class Source:
    """An archive, and what is in it."""

    archive: SourceArchive
    summary: SourceSummary
    name: str  # that the agent gets unless another is given

    def describe(self) -> str:
        """Return it as a line for people."""
        count = len(self.archive.files)
        size = len(self.archive.content)
        return f"{count} file{'s' * (count != 1)}, {size:,} bytes, sha256 {self.archive.digest[:12]}"


def read_source(place: str, *, symbols: Path | None, params: Mapping[str, str]) -> Source:
    """Return the archive of a folder, or of a file `FILE.py` or `FILE.py:Class`.

    Args:
        symbols: of a file; default: symbols.txt beside it, then in the present folder.
        params: of a file's strategy. A folder has both in its dry-work.toml.

    Raises:
        ConfigError: it cannot be deployed; every finding in a line.
    """
    from deploy.archive import make_archive
    from deploy.checks import check_sources
    from deploy.errors import InvalidSourceError

    file, _, name = place.partition(":")
    path = Path(file)
    try:
        if path.suffix == ".py":
            archive = _pack_file(path, name, symbols, params)
            title = path.stem
        elif path.is_dir():
            if symbols is not None or params:
                raise ConfigError(f"--symbols and -p go with a single file; {place} has them in its {TOML}")
            archive = make_archive(path)
            title = _name_in(archive) or path.resolve().name
        else:
            raise ConfigError(f"{place}: expected a folder with an agent, or a strategy such as my.py or my.py:Cross")
        return Source(archive=archive, summary=check_sources(archive), name=title.replace("_", "-").lower())
    except InvalidSourceError as error:
        problems = "".join(f"\n  {problem}" for problem in error.problems)
        raise ConfigError(f"{place} cannot be deployed:{problems}") from None


def _pack_file(path: Path, name: str, symbols: Path | None, params: Mapping[str, str]) -> SourceArchive:
    from deploy.archive import check_archive, zip_files

    places = [symbols] if symbols is not None else [path.parent / SYMBOLS, Path(SYMBOLS)]
    found = next((place for place in places if place.is_file()), None)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if found is None:
        raise ConfigError(f"{' and '.join(map(str, places))}: no such file; name the symbols to trade with --symbols")
    # A JSON text is a TOML text too.
    lines = ["[run]", f"agent = {json.dumps(path.name + (f':{name}' if name else ''))}"]
    if params:
        lines += ["[run.params]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in params.items())]
    toml = "\n".join(lines) + "\n"
    return check_archive(
        zip_files({path.name: path.read_bytes(), SYMBOLS: found.read_bytes(), TOML: toml.encode()}),
    )


def _name_in(archive: SourceArchive) -> str:
    try:
        run = tomllib.loads(archive.files.get(TOML, b"").decode("utf-8-sig")).get("run", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return ""  # told by the check
    found = run.get("agent_id", "") if isinstance(run, dict) else ""
    return found if isinstance(found, str) else ""
