"""Write the Python modules of cream.v1 anew from its .proto files: `python dry_work/proto/cream/write_modules.py`.

It needs grpcio-tools. The files keep the names that they have for every client (cream/v1/stream_proxy.proto), and their
modules live in this package and in a descriptor pool of our own: so what protoc writes is changed in these places.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from dry_work.proto.write_modules import use_own_pool

ROOT = Path(__file__).parents[1]  # names of .proto files are relative to it
PROTOS = ("cream/v1/common.proto", "cream/v1/execution.proto", "cream/v1/stream_proxy.proto")
HEADER = '# ruff: noqa\n# fmt: off\n# mypy: disable-error-code="type-arg"\n'

_CHANGES = (
    ("from cream.v1 import", "from dry_work.proto.cream.v1 import"),
    ("DESCRIPTOR, 'cream.v1.", "DESCRIPTOR, 'dry_work.proto.cream.v1."),
)


def write_modules(out: Path) -> list[Path]:
    """Write the modules and their stubs under `out`, in the folders of their package; return them.

    Raises:
        RuntimeError: a file cannot be compiled.
    """
    protoc = importlib.import_module("grpc_tools.protoc")
    include = Path(str(protoc.__file__)).parent / "_proto"
    written = []
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--python_out={folder}", f"--pyi_out={folder}"]
        if protoc.main(["protoc", f"-I{ROOT}", f"-I{include}", *options, *PROTOS]) != 0:
            raise RuntimeError("the .proto files cannot be compiled")
        for path in sorted(Path(folder).rglob("*_pb2.py*")):
            text = use_own_pool(path.read_text(encoding="utf-8"))
            for old, new in _CHANGES:
                text = text.replace(old, new)
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(HEADER + text, encoding="utf-8")
            written.append(target)
    return written


if __name__ == "__main__":
    print(*write_modules(ROOT), sep="\n")
