"""Write the Python modules of .proto files beside them: `python dry_work/proto/write_modules.py tradesvc/v0 stream/v0`.

It needs grpcio-tools. The modules live in a descriptor pool of our own, and lines at the top keep linters away.
Protoc's check of the protobuf runtime is left out: what the modules use of it has not changed since protobuf 3.20.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
HEADER = "# ruff: noqa\n# fmt: off\n# mypy: ignore-errors\n"

_RUNTIME_CHECK = re.compile(r"^_runtime_version\.ValidateProtobufRuntimeVersion\(.*?^\)\n", re.MULTILINE | re.DOTALL)
_CHANGES = (
    ("_descriptor_pool.Default()", "POOL"),
    ("from google.protobuf import descriptor_pool as _descriptor_pool\n", "from dry_work.proto.pool import POOL\n"),
    ("from google.protobuf import runtime_version as _runtime_version\n", ""),
)


def write_modules(proto: Path, out: Path) -> list[Path]:
    """Write the modules of one file under `out`, in folders as those of the package; return them.

    Raises:
        RuntimeError: the file cannot be compiled.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]

    # Without gRPC's own modules: they refuse every version of grpcio below that of the tools. Services are few lines.
    options = [f"--python_out={out}", f"--pyi_out={out}"]
    include = Path(protoc.__file__).parent / "_proto"
    name = proto.relative_to(ROOT)
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{include}", *options, str(name)]) != 0:
        raise RuntimeError(f"{name} cannot be compiled")
    folder = out / name.parent
    written = sorted(path for path in folder.iterdir() if path.stem.startswith(f"{proto.stem}_pb2"))
    for path in written:
        text = path.read_text(encoding="utf-8")
        if not text.startswith(HEADER):
            path.write_text(HEADER + use_own_pool(text), encoding="utf-8")
    return written


def use_own_pool(text: str) -> str:
    """Return a module of protoc's as it is with our own descriptor pool."""
    text = _RUNTIME_CHECK.sub("", text)
    for old, new in _CHANGES:
        text = text.replace(old, new)
    return text


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for found in sorted((FOLDER / argument).glob("*.proto")):
            print(*write_modules(found, ROOT), sep="\n")
