"""Why a replay may differ from its session: a changed source, inputs that nobody recorded, other versions. Pure."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping

import msgspec

WALL_CLOCK = "the wall clock"
RANDOM = "random numbers"
OUTSIDE = "what is outside the program"

_EXACT = {
    "time.time": WALL_CLOCK, "time.time_ns": WALL_CLOCK, "time.monotonic": WALL_CLOCK,
    "time.monotonic_ns": WALL_CLOCK, "time.perf_counter": WALL_CLOCK, "time.perf_counter_ns": WALL_CLOCK,
    "time.localtime": WALL_CLOCK, "time.gmtime": WALL_CLOCK, "time.ctime": WALL_CLOCK,
    "datetime.datetime.now": WALL_CLOCK, "datetime.datetime.utcnow": WALL_CLOCK,
    "datetime.datetime.today": WALL_CLOCK, "datetime.date.today": WALL_CLOCK, "pandas.Timestamp.now": WALL_CLOCK,
    "pandas.Timestamp.utcnow": WALL_CLOCK, "uuid.uuid1": RANDOM, "uuid.uuid4": RANDOM, "os.urandom": RANDOM,
    "open": OUTSIDE, "os.getenv": OUTSIDE, "os.getpid": OUTSIDE, "input": OUTSIDE,
}  # fmt: skip
_MODULES = {
    "random": RANDOM, "secrets": RANDOM, "numpy.random": RANDOM, "requests": OUTSIDE, "httpx": OUTSIDE,
    "urllib.request": OUTSIDE, "os.environ": OUTSIDE, "socket": OUTSIDE, "sqlite3": OUTSIDE,
}  # fmt: skip


class UnrecordedRead(msgspec.Struct, frozen=True):
    """A place at which a strategy reads what is not in the record."""

    what: str
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file} line {self.line}: {self.text}"


def find_unrecorded_reads(sources: Mapping[str, str]) -> list[UnrecordedRead]:
    """Return where sources call what gives another answer each time.

    Args:
        sources: texts by file name; one that is no Python is passed over.
    """
    found: list[UnrecordedRead] = []
    for file, text in sources.items():
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        names = dict(_imported_names(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call | ast.Subscript):
                continue
            name = _full_name(node.func if isinstance(node, ast.Call) else node.value, names)
            what = _classify(name) if name else ""
            if what:
                found.append(UnrecordedRead(what, file, node.lineno, name))
    return found


def _imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.AST, names: Mapping[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    known = names.get(node.id)
    if known is None and (parts or node.id not in _EXACT):
        return ""
    return ".".join([known or node.id, *reversed(parts)])


def _classify(name: str) -> str:
    if name in _EXACT:
        return _EXACT[name]
    for module, what in _MODULES.items():
        if name == module or name.startswith(f"{module}."):
            return what
    return ""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a session and its replay ran with, each as texts by name."""

    sources: Mapping[str, str]
    params: Mapping[str, str]
    versions: Mapping[str, str]  # of dry_work, backtrader, python


def explain_divergence(recorded: Setting, replayed: Setting) -> list[str]:
    """Return what may be the cause, the likeliest first, as sentences."""
    causes: list[str] = []
    changed = [
        f"{name} ({_digest(recorded.sources.get(name))} → {_digest(replayed.sources.get(name))})"
        for name in sorted(recorded.sources.keys() | replayed.sources.keys())
        if recorded.sources.get(name) != replayed.sources.get(name)
    ]
    if changed:
        causes.append(f"the strategy's source has changed since the session: {', '.join(changed)}")
    different = [
        f"{name} {recorded.params.get(name, 'not there')} → {replayed.params.get(name, 'not there')}"
        for name in sorted(recorded.params.keys() | replayed.params.keys())
        if recorded.params.get(name) != replayed.params.get(name)
    ]
    if different:
        causes.append(f"parameters are others: {', '.join(different)}")
    reads = find_unrecorded_reads(replayed.sources)
    for what in (WALL_CLOCK, RANDOM, OUTSIDE):
        places = [str(read) for read in reads if read.what == what]
        if places:
            hint = "" if what == OUTSIDE else "; dry_work.recording.inputs has them recorded"
            causes.append(f"the strategy reads {what} without the recorder ({', '.join(places[:5])}){hint}")
    versions = [
        f"{name} {recorded.versions.get(name)} → {replayed.versions[name]}"
        for name in replayed.versions
        if recorded.versions.get(name) != replayed.versions[name]
    ]
    if versions:
        causes.append(f"the versions are others: {', '.join(versions)}")
    if not causes:
        causes.append(
            "neither source, parameters nor versions have changed, and the source reads no clock, random number, file "
            "or network: something else gives another answer each time, such as the order of a set"
        )
    return causes


def _digest(text: str | None) -> str:
    return "not there" if text is None else hashlib.sha256(text.encode()).hexdigest()[:8]
