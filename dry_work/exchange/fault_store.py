"""The faults that are set, kept in the state directory of an exchange, so that a restart goes on with them. One thread.

They are written when one is set or removed, when one that strikes a number of times strikes, and at the end: after
`kill -9` a fault without end may have forgotten some of the occasions that it had seen.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from dry_work.errors import CodecError, ConfigError
from dry_work.exchange.faults import FaultPlan

_log = structlog.get_logger(__name__)

FILE_NAME = "faults.json"


class FaultStore:
    """Keeps a plan in `folder`, which somebody else makes and locks."""

    def __init__(self, folder: str | Path, plan: FaultPlan) -> None:
        self.path = Path(folder) / FILE_NAME
        self._plan = plan

    def load(self) -> bool:
        """Take up the faults of an earlier run in the place of those that are set; tell whether there are any kept.

        Raises:
            ConfigError: the file cannot be used.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if data is not None:
            try:
                self._plan.load(data)
            except CodecError as error:
                raise ConfigError(f"{self.path}: {error.reason}; remove the file to begin without faults") from None
        self._plan.on_change = self.save
        return data is not None

    def save(self) -> None:
        """Write all faults; the file is the old one or the new one, never a part."""
        if self._plan.on_change is None:
            return  # was never taken up: the directory is not ours
        part = self.path.with_suffix(".part")
        try:
            part.write_bytes(self._plan.dump())
            os.replace(part, self.path)
        except OSError as error:
            _log.warning("faults could not be kept", path=str(self.path), reason=error.strerror or str(error))
