"""Imports point one way, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dry_work"

# A layer imports itself and what stands before it.
LAYERS = (
    {"errors", "clock", "wakeup", "backoff", "pulse", "addresses", "storage", "bucket_storage"},
    {"market", "orders", "proto"},
    {"ports", "settings", "settings_files"},
    {"wire", "observability"},
    {"alpaca", "feeds", "broker", "hub", "exchange", "embedded", "recording", "redis"},
    {"engine", "backtest"},
    {"dashboard"},
    {"cli"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Libraries that belong to some packages only.
OWNERS = {
    "backtrader": {"feeds", "broker", "engine", "backtest", "dashboard"},
    "alpaca": {"alpaca", "broker"},
    "google": {"feeds", "hub", "embedded", "bucket_storage", "recording"},
    "grpc": {"feeds", "hub", "embedded"},
    "nats": {"hub", "embedded", "feeds"},
    "redis": {"hub", "embedded", "feeds", "redis"},
    "picows": {"hub"},
    "apprise": {"observability"},
    "opentelemetry": {"observability"},
    "kubernetes": set(),
    "aiohttp": {"alpaca", "exchange", "hub", "dashboard"},
    "websockets": {"alpaca", "feeds", "hub"},
    "click": {"cli"},
    "exchange_calendars": {"market"},
}
PROTOBUF = {"proto", "wire", "hub", "feeds", "embedded"}
PURE = ("market", "orders", "wire")
IO_MODULES = {"socket", "asyncio", "requests", "aiohttp", "websockets", "grpc", "google", "subprocess"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_before_its_layer(path: Path) -> None:
    part = part_of(path)
    if part in ("__init__", "__main__"):
        return
    assert part in RANK, f"{part} stands in no layer"
    for name in imported(path):
        pieces = name.split(".")
        if pieces[0] != "dry_work" or len(pieces) == 1:
            continue
        assert RANK[pieces[1]] <= RANK[part], f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_imported_only_where_it_belongs(path: Path) -> None:
    part = part_of(path)
    for name in imported(path):
        root = name.split(".")[0]
        if name.startswith("google.protobuf"):  # bytes and values, no network
            assert part in PROTOBUF, f"{path.relative_to(PACKAGE)} imports {name}"
            continue
        if root in OWNERS:
            assert part in OWNERS[root], f"{path.relative_to(PACKAGE)} imports {name}"
        if part in PURE:
            assert root not in IO_MODULES, f"{path.relative_to(PACKAGE)} is pure and imports {name}"


def test_help_loads_no_heavy_library() -> None:
    heavy = ["backtrader", "alpaca", "google.pubsub_v1", "grpc", "pandas", "pyarrow", "aiohttp", "rich"]
    code = f"""
import sys
from dry_work.cli import main
try:
    main(["--help"])
except SystemExit as error:
    assert error.code == 0
print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_public_names_are_importable() -> None:
    import dry_work

    assert {getattr(dry_work, name) for name in dry_work.__all__}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        dry_work.Nothing  # noqa: B018
