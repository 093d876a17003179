"""The symbols of the subscription API over a restart, in a file. Pure but for the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from dry_work.storage import write_atomically

_log = structlog.get_logger(__name__)


class _Content(msgspec.Struct, frozen=True):
    configured: tuple[str, ...]  # by the settings, when it was written
    symbols: tuple[str, ...]


class SubscriptionMemory:
    """Keeps which symbols are published.

    Args:
        path: of the file; None: nothing is kept.
        configured: the symbols of the settings.
    """

    def __init__(self, path: Path | None, configured: Sequence[str]) -> None:
        self._path = path
        self.configured = tuple(configured)

    def read(self) -> tuple[str, ...]:
        """Return the symbols to begin with.

        Those of the settings, those that were added, and without those that were removed; a change of the settings
        holds: what they name anew is there, and what they name no more is gone.
        """
        kept = self._read_file()
        if kept is None:
            return self.configured
        removed = {symbol for symbol in kept.configured if symbol not in kept.symbols}
        added = [symbol for symbol in kept.symbols if symbol not in kept.configured]
        return tuple(dict.fromkeys([*(symbol for symbol in self.configured if symbol not in removed), *added]))

    def write(self, symbols: Sequence[str]) -> None:
        """Keep the symbols."""
        if self._path is None:
            return
        try:
            write_atomically(self._path, msgspec.json.encode(_Content(self.configured, tuple(symbols))))
        except OSError as error:
            _log.error("the symbols cannot be kept over a restart", path=str(self._path), reason=error.strerror)

    def _read_file(self) -> _Content | None:
        if self._path is None:
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Content)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("the symbols that were kept cannot be read", path=str(self._path), reason=str(error))
            return None
