"""Write the Python modules of .proto files beside them: `python dry_work/proto/write_modules.py tradesvc/v0 stream/v0`.

It needs grpcio-tools. A line at the top of each module keeps linters away; nothing else is changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
HEADER = "# ruff: noqa\n# fmt: off\n# mypy: ignore-errors\n"


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
            path.write_text(HEADER + text, encoding="utf-8")
    return written


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for found in sorted((FOLDER / argument).glob("*.proto")):
            print(*write_modules(found, ROOT), sep="\n")
