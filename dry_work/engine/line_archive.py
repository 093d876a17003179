"""A bounded file of what lines no longer hold in memory. Engine thread only."""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import structlog

_log = structlog.get_logger(__name__)
_VALUE_BYTES = 8
Values: TypeAlias = "array[float]"


class ArchiveOwner(Protocol):
    """Whoever put a block away."""

    def forget(self, slot: int) -> None:
        """Hear that the block in `slot`, the oldest of this owner, is about to be overwritten."""


class LineArchive:
    """Blocks of values of equal length in a file without a name, which is gone with the process however that ends.

    When the file is full, the oldest block is overwritten and its owner is told.

    Args:
        directory: where the file is made, with the first block; None: the machine's folder for temporary files.
        block_values: values in a block.
        max_bytes: size that the file never exceeds; 0: nothing is ever put away.
    """

    def __init__(self, directory: Path | None, *, block_values: int, max_bytes: int) -> None:
        self._directory = directory
        self.block_values = block_values
        self._block_bytes = block_values * _VALUE_BYTES
        self._slots = max_bytes // self._block_bytes
        self._owners: list[ArchiveOwner | None] = []
        self._turn = 0  # the slot that is written next once the file has its full size
        self._file: int | None = None
        self._closing: Any = None
        self._failed = False

    @property
    def keeps(self) -> bool:
        """True when blocks can be put away at all."""
        return self._slots > 0

    @property
    def bytes_on_disk(self) -> int:
        """Size of the file."""
        return len(self._owners) * self._block_bytes

    def put(self, values: Values, owner: ArchiveOwner) -> int | None:
        """Put a block away and return its slot; None when the disk does not take it."""
        slot = len(self._owners) if len(self._owners) < self._slots else self._turn
        try:
            if os.pwrite(self._open(), values, slot * self._block_bytes) != self._block_bytes:
                raise OSError("the disk is full")
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warning("history of lines stays in memory: it cannot be written to disk", error=str(error))
            return None
        self._failed = False
        if slot == len(self._owners):
            self._owners.append(owner)
            return slot
        earlier = self._owners[slot]
        if earlier is not None:
            earlier.forget(slot)
        self._owners[slot] = owner
        self._turn = (slot + 1) % self._slots
        return slot

    def read(self, slot: int) -> Values:
        """Return the block in `slot`.

        Raises:
            OSError: the disk does not give it.
        """
        if self._file is None:
            raise OSError("the file is closed")
        raw = os.pread(self._file, self._block_bytes, slot * self._block_bytes)
        if len(raw) != self._block_bytes:
            raise OSError(f"{len(raw)} of {self._block_bytes} bytes came")
        return array("d", raw)

    def release(self, slot: int) -> None:
        """Say that the block in `slot` is not needed any more."""
        self._owners[slot] = None

    def close(self) -> None:
        """Remove the file; twice is fine. It is removed with the archive in any case."""
        if self._closing is not None:
            self._closing()
        self._file = self._closing = None

    def _open(self) -> int:
        if self._file is None:
            self._file, name = tempfile.mkstemp(prefix="lines-", dir=self._directory)
            self._closing = weakref.finalize(self, os.close, self._file)
            os.unlink(name)
        return self._file
