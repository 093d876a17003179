"""What an agent's sources are found to be, without running any of them. Pure.

The strategy class is looked for in the syntax tree. What a tree cannot tell (a base class from elsewhere, whether an
import succeeds) is left to the build, which imports the agent in its image.
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
import threading
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from deploy.archive import SourceArchive
from deploy.errors import InvalidSourceError
from deploy.unpack import DEFAULT_AGENT, name_agent

SETTINGS_FILE = "dry-work.toml"
DEFAULT_SYMBOLS = "symbols.txt"
LOWEST_PYTHON = (3, 11)
MAX_SOURCE_BYTES = 1 << 20  # of one Python file
MAX_SYMBOLS = 1_000
MAX_REQUIREMENTS = 50
_MAX_PROBLEMS = 20

_AGENT = re.compile(r"(?P<place>[A-Za-z0-9_][A-Za-z0-9_./-]*?)(:(?P<name>[A-Za-z_][A-Za-z0-9_]*))?")
_SYMBOL = re.compile(r"[A-Z][A-Z0-9]{0,9}(\.[A-Z]{1,3})?|[A-Z0-9]{1,10}/[A-Z]{3,6}|[A-Z]{1,6}\d{6}[CP]\d{8}")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(\[\s*[A-Za-z0-9_-]+(\s*,\s*[A-Za-z0-9_-]+)*\s*\])?"
    r"\s*((===?|~=|!=|<=?|>=?)\s*[A-Za-z0-9.*+!_-]+(\s*,\s*(===?|~=|!=|<=?|>=?)\s*[A-Za-z0-9.*+!_-]+)*)?"
)
_FIXED_PACKAGES = frozenset({"dry-work", "backtrader", "pip"})  # the image's own
_BUNDLED = ("agents.", "dry_work.")

# Secrets by their form. Findings name the kind and the place, never the value.
_SECRETS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("a private key", re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")),
    ("a service account's key", re.compile(rb'"private_key(?:_id)?"\s*:\s*"[^"]{16}')),
    ("an OAuth client's secret", re.compile(rb"GOCSPX-[A-Za-z0-9_-]{20}")),
    (
        "an Alpaca key",
        re.compile(rb"(?<!\w)[PAC]K(?=[A-Z0-9]*[0-9])[A-Z0-9]{18}(?:[A-Z0-9]{6})?(?!\w)"),
    ),
    ("a Google API key", re.compile(rb"AIza[0-9A-Za-z_-]{35}")),
    ("an AWS key", re.compile(rb"(?<![A-Z0-9])A(?:KI|SI)A[0-9A-Z]{16}(?![A-Z0-9])")),
    ("a GitHub token", re.compile(rb"gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{36}")),
    ("a Slack token", re.compile(rb"xox[abprs]-[A-Za-z0-9-]{20}")),
    ("an identity token", re.compile(rb"eyJ[A-Za-z0-9_-]{10,400}\.eyJ[A-Za-z0-9_-]{10,800}\.[A-Za-z0-9_-]{20}")),
)
_ASSIGNED = re.compile(
    rb"(?i)(?:secret|passw(?:or)?d|api[_-]?key|access[_-]?key|auth[_-]?token|credential)[a-z_]{0,20}[\"']?\s{0,4}"
    rb"(?::\s{0,4}str\s{0,4})?[=:]\s{0,4}[\"']([A-Za-z0-9+/=_.-]{20,200})[\"']"
)
_SECRET_FILES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("holds variables with secrets", re.compile(r"\.env(\..+)?")),
    ("is a private key", re.compile(r"id_(rsa|dsa|ecdsa|ed25519)|.+\.(ppk|p12|pfx|jks|keystore)")),
    ("holds passwords", re.compile(r"\.(netrc|pypirc|pgpass|git-credentials|htpasswd|boto)|_netrc")),
    ("holds credentials", re.compile(r"application_default_credentials\.json|kubeconfig|\.dockerconfigjson")),
)
_HARMLESS_FILES = frozenset({".env.example", ".env.sample", ".env.template"})

# Warnings are switched off for the whole process while a tree is made.
_WARNINGS = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """What an archive is to run."""

    agent: str  # file or module, and class when it names one
    params: Mapping[str, Any]
    symbols: tuple[str, ...]
    requirements: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what is no error, but may surprise


def check_sources(archive: SourceArchive) -> SourceSummary:
    """Return what an archive is to run.

    Raises:
        InvalidSourceError: listing what is wrong: secrets, syntax, settings, the strategy class, symbols, requirements.
    """
    files = archive.files
    problems = list(_find_secrets(files))
    trees: dict[str, ast.Module] = {}
    for name, content in files.items():
        if name.endswith(".py"):
            with _collecting(problems):
                trees[name] = _parse(name, content)
    agent, symbols, requirements = DEFAULT_AGENT, tuple[str, ...](), tuple[str, ...]()
    params: Mapping[str, Any] = {}
    with _collecting(problems):
        settings = _read_settings(files)
        run = settings["run"]
        with _collecting(problems):
            agent = _text(run.get("agent", DEFAULT_AGENT), "[run] agent", "a text such as agent/agent.py:Agent")
            params = _table(run.get("params", {}), "[run.params]")
            _check_agent(agent, params, files, trees)
        with _collecting(problems):
            symbols = _check_symbols(run, files)
        with _collecting(problems):
            requirements = _check_requirements(settings["deploy"])
    if problems:
        raise InvalidSourceError(problems[:_MAX_PROBLEMS])
    notes = []
    if "requirements.txt" in files:
        notes.append(f"requirements.txt is not read: name packages in {SETTINGS_FILE}, [deploy] requirements")
    return SourceSummary(agent=agent, params=params, symbols=symbols, requirements=requirements, notes=tuple(notes))


@contextlib.contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Add what a check finds to `problems`, and go on with the next check."""
    try:
        yield
    except _ProblemError as problem:
        problems.append(str(problem))


class _ProblemError(Exception):
    """One finding; it becomes part of an `InvalidSourceError`."""


def _parse(name: str, content: bytes) -> ast.Module:
    if len(content) > MAX_SOURCE_BYTES:
        raise _ProblemError(f"{name}: has {len(content):,} bytes, allowed are {MAX_SOURCE_BYTES:,} for a Python file")
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content, filename=name, feature_version=LOWEST_PYTHON)
            compile(tree, name, "exec", dont_inherit=True)  # finds a `return` outside a function; runs nothing
            return tree
    except SyntaxError as error:
        where = f"{name}, line {error.lineno}" if error.lineno else name
        raise _ProblemError(f"{where}: {error.msg}") from None
    except (ValueError, LookupError) as error:
        raise _ProblemError(f"{name}: is no Python: {error}") from None
    except (RecursionError, MemoryError):
        raise _ProblemError(f"{name}: is nested too deeply") from None


def _read_settings(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    content: dict[str, Any] = {}
    if SETTINGS_FILE in files:
        try:
            text = files[SETTINGS_FILE].decode("utf-8-sig")
            content = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _ProblemError(f"{SETTINGS_FILE}: no TOML: {error}") from None
    tables = {name: _table(content.get(name, {}), f"[{name}]") for name in ("run", "deploy")}
    for key in tables["deploy"]:
        if key != "requirements":
            raise _ProblemError(f"{SETTINGS_FILE}: [deploy] has no setting {key!r}; its settings: requirements")
    try:
        name_agent(files.get(SETTINGS_FILE, b"").decode("utf-8-sig"))
    except ValueError as error:
        raise _ProblemError(str(error)) from None
    return tables


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _ProblemError(f"{SETTINGS_FILE}: {where} is to be a table")
    return value


def _text(value: object, where: str, allowed: str) -> str:
    if not isinstance(value, str) or not value:
        raise _ProblemError(f"{SETTINGS_FILE}: {where}: expected {allowed}, not {value!r}")
    return value


# The strategy


def _check_agent(
    agent: str, params: Mapping[str, Any], files: Mapping[str, bytes], trees: Mapping[str, ast.Module]
) -> None:
    match = _AGENT.fullmatch(agent)
    if match is None or ".." in agent:
        raise _ProblemError(
            f"{SETTINGS_FILE}: [run] agent {agent!r}: expected a file and a class, such as agent/agent.py:Agent"
        )
    place, name = match["place"], match["name"]
    if place.endswith(".py") or "/" in place:
        path = str(PurePosixPath(place))
        if path not in files:
            listed = ", ".join(sorted(trees)[:5]) or "no Python file"
            raise _ProblemError(f"{path}: the agent's file is not in the archive, which has {listed}")
    else:
        stem = place.replace(".", "/")
        path = next((found for found in (f"{stem}.py", f"{stem}/__init__.py") if found in files), "")
        if not path:
            if place.startswith(_BUNDLED):
                return
            raise _ProblemError(f"{SETTINGS_FILE}: [run] agent {agent!r}: the archive has no module {place}")
    if path not in trees:
        return  # its syntax has been told
    _check_class(path, name, params, trees[path])


def _check_class(path: str, name: str | None, params: Mapping[str, Any], tree: ast.Module) -> None:
    classes: dict[str, ast.ClassDef] = {}
    others: set[str] = set()
    for statement in _top_level(tree.body):
        if isinstance(statement, ast.ClassDef):
            classes[statement.name] = statement
        else:
            others |= set(_bound_names(statement))
    strategies = sorted(found for found in classes if _is_strategy(classes[found], classes))
    if name is None:
        if "Agent" in classes or "Agent" in others:
            name = "Agent"
        elif len(strategies) == 1:
            name = strategies[0]
        else:
            listed = ", ".join(strategies) or "none"
            raise _ProblemError(f"{path}: name the strategy, as {path}:Class; strategies in it: {listed}")
    if name not in classes:
        if name in others or "*" in others:
            return
        listed = ", ".join(strategies) or "none"
        raise _ProblemError(f"{path}: has no class {name}; strategies in it: {listed}")
    if not _is_strategy(classes[name], classes):
        line = classes[name].lineno
        raise _ProblemError(f"{path}, line {line}: {name} is no Backtrader strategy: derive it from bt.Strategy")
    known = _literal_params(classes[name])
    unknown = sorted(set(params) - known) if known is not None else []
    if known is not None and unknown:
        listed = ", ".join(sorted(known)) or "it has none"
        raise _ProblemError(
            f"{SETTINGS_FILE}: [run.params] {name} has no parameter {unknown[0]!r}; its parameters: {listed}"
        )


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _top_level([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            handlers = [inner for handler in statement.handlers for inner in handler.body]
            yield from _top_level([*statement.body, *handlers, *statement.orelse, *statement.finalbody])
        elif isinstance(statement, ast.With):
            yield from _top_level(statement.body)
        else:
            yield statement


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _is_strategy(found: ast.ClassDef, classes: Mapping[str, ast.ClassDef], seen: frozenset[str] = frozenset()) -> bool:
    """Tell whether a class may be a strategy: False only when its tree says that it is none."""
    if not found.bases:
        return False
    for base in found.bases:
        if isinstance(base, ast.Name):
            if base.id == "object" or base.id in seen or base.id == found.name:
                continue
            if base.id in classes and not _is_strategy(classes[base.id], classes, seen | {found.name}):
                continue
            if base.id in _NO_STRATEGIES and base.id not in classes:
                continue
        return True
    return False


_NO_STRATEGIES = frozenset(
    {"Exception", "ABC", "Enum", "IntEnum", "StrEnum", "NamedTuple", "TypedDict", "Protocol", "Generic", "dict", "list"}
    | {"tuple", "str", "int", "float", "Indicator", "Analyzer", "Observer", "Sizer"}
)


def _literal_params(found: ast.ClassDef) -> set[str] | None:
    """Return the names in a class's `params`; None when its tree does not tell them all."""
    if len(found.bases) != 1 or ast.unparse(found.bases[0]) not in ("bt.Strategy", "backtrader.Strategy", "Strategy"):
        return None
    for statement in found.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "params" for target in statement.targets
        ):
            value = statement.value
            if isinstance(value, ast.Dict):
                keys: list[ast.expr | None] = list(value.keys)
            elif isinstance(value, ast.Tuple | ast.List):
                keys = [
                    entry.elts[0] if isinstance(entry, ast.Tuple | ast.List) and entry.elts else None
                    for entry in value.elts
                ]
            elif isinstance(value, ast.Call) and ast.unparse(value.func) == "dict" and not value.args:
                return None if None in (names := [word.arg for word in value.keywords]) else {str(n) for n in names}
            else:
                return None
            if all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in keys):
                return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
            return None
    return None


# Symbols and requirements


def _check_symbols(run: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[str, ...]:
    name = str(PurePosixPath(_text(run.get("symbols", DEFAULT_SYMBOLS), "[run] symbols", "the name of a file")))
    if name not in files:
        raise _ProblemError(f"{name}: is not in the archive; it is to have one symbol a line, such as AAPL or BTC/USD")
    try:
        text = files[name].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _ProblemError(f"{name}: expected UTF-8 text") from None
    found: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        symbol = line.strip().upper()
        if not symbol or symbol.startswith("#"):
            continue
        if not _SYMBOL.fullmatch(symbol):
            raise _ProblemError(
                f"{name}, line {number}: {line.strip()[:40]!r} is not a symbol: expected a stock such as AAPL or BRK.B,"
                " a crypto pair such as BTC/USD, or an OCC option symbol"
            )
        found[symbol] = None
    if not found:
        raise _ProblemError(f"{name}: names no symbol")
    if len(found) > MAX_SYMBOLS:
        raise _ProblemError(f"{name}: names {len(found):,} symbols, allowed are {MAX_SYMBOLS:,}")
    return tuple(found)


def _check_requirements(table: Mapping[str, Any]) -> tuple[str, ...]:
    listed = table.get("requirements", [])
    where = f"{SETTINGS_FILE}: [deploy] requirements"
    if not isinstance(listed, list) or not all(isinstance(line, str) for line in listed):
        raise _ProblemError(f"{where}: expected a list of texts")
    if len(listed) > MAX_REQUIREMENTS:
        raise _ProblemError(f"{where}: {len(listed)} packages, allowed are {MAX_REQUIREMENTS}")
    for line in listed:
        match = _REQUIREMENT.fullmatch(line)
        if match is None or len(line) > 200:
            raise _ProblemError(
                f"{where}: {line[:80]!r}: expected a package with its version, such as pandas-ta==0.3.14; addresses,"
                " files and options are not taken"
            )
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        if name in _FIXED_PACKAGES:
            raise _ProblemError(f"{where}: {name} is the image's own and is not replaced")
    return tuple(listed)


# Secrets


def _find_secrets(files: Mapping[str, bytes]) -> Iterator[str]:
    for name, content in files.items():
        base = name.rpartition("/")[2]
        for what, names in _SECRET_FILES:
            if base not in _HARMLESS_FILES and names.fullmatch(base):
                yield f"{name}: {what}; leave it out (see .dryworkignore), secrets come from the cluster"
                break
        else:
            yield from _find_secrets_in(name, content)


def _find_secrets_in(name: str, content: bytes) -> Iterator[str]:
    for what, pattern in _SECRETS:
        found = pattern.search(content)
        if found:
            yield f"{_place(name, content, found.start())}: has {what}; remove it, secrets come from the cluster"
    for found in _ASSIGNED.finditer(content):
        if _looks_random(found[1]):
            yield f"{_place(name, content, found.start())}: has a secret; remove it, secrets come from the cluster"
            return


def _place(name: str, content: bytes, offset: int) -> str:
    line_number = content.count(b"\n", 0, offset) + 1
    return f"{name}, line {line_number}"


def _looks_random(value: bytes) -> bool:
    """Tell a generated value from words: digits and letters, and more than 3.5 bits a character."""
    if not (re.search(rb"\d", value) and re.search(rb"[A-Za-z]", value)):
        return False
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values()) > 3.5
