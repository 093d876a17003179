"""Archives in a local folder: `<user>/<agent>/<generation>.zip`. For the local target."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import ConflictError, NotFoundError, UnavailableError
from deploy.ports import SignedUpload

_OTHERS = re.compile(r"[^a-z0-9-]+")


class FolderSourceStore:
    """A `SourceStore` in a folder, which is made when it is not there. Generations count from 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def generation(self, user_id: str, agent_id: str) -> str:
        """Return the generation of the newest archive; empty when there is none."""
        with _mapped(self._folder):
            found = self._generations(user_id, agent_id)
        return str(max(found)) if found else ""

    def size_bytes(self, user_id: str, agent_id: str, generation: str) -> int:
        """Return the length of an archive."""
        with _mapped(self._folder):
            return self._path(user_id, agent_id, generation).stat().st_size

    def read(self, user_id: str, agent_id: str, generation: str) -> bytes:
        """Return an archive."""
        with _mapped(self._folder):
            return self._path(user_id, agent_id, generation).read_bytes()

    def write(self, user_id: str, agent_id: str, archive: bytes, *, expected_generation: str) -> str:
        """Store an archive and return its generation."""
        with _mapped(self._folder):
            place = self._place(user_id, agent_id)
            place.mkdir(parents=True, exist_ok=True)
            newest = max(self._generations(user_id, agent_id), default=0)
            if str(newest or "") != expected_generation:
                raise ConflictError("another archive was uploaded meanwhile; call again")
            temporary = place / f".{uuid.uuid4().hex}"
            try:
                with temporary.open("xb") as target:
                    target.write(archive)
                    target.flush()
                    os.fsync(target.fileno())
                # A link is made only where there is none: two writers cannot both get the same number.
                os.link(temporary, place / f"{newest + 1}.zip")
            except FileExistsError:
                raise ConflictError("another archive was uploaded meanwhile; call again") from None
            finally:
                temporary.unlink(missing_ok=True)
            return str(newest + 1)

    def address(self, user_id: str, agent_id: str, generation: str) -> str:
        """Return the path of an archive."""
        return str(self._path(user_id, agent_id, generation).absolute())

    def sign_upload(self, user_id: str, agent_id: str, *, expected_generation: str) -> SignedUpload | None:
        """Return None: archives come by the service."""
        del user_id, agent_id, expected_generation
        return None

    def close(self) -> None:
        """Nothing is held."""

    def _generations(self, user_id: str, agent_id: str) -> list[int]:
        place = self._place(user_id, agent_id)
        if not place.is_dir():
            return []
        return [int(path.stem) for path in place.glob("*.zip") if path.stem.isdigit()]

    def _path(self, user_id: str, agent_id: str, generation: str) -> Path:
        if not (generation.isascii() and generation.isdigit()):
            raise NotFoundError(f"no stored source of generation {generation!a}")
        return self._place(user_id, agent_id) / f"{int(generation)}.zip"

    def _place(self, user_id: str, agent_id: str) -> Path:
        return self._folder / _file_name(user_id) / _file_name(agent_id)


def _file_name(text: str) -> str:
    """Return a name for any id, also on a file system that knows no case: what can be read of it, and its digest."""
    readable = _OTHERS.sub("-", text.lower())[:40].strip("-")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError("the stored source is not there any more: upload it again") from None
    except OSError as error:
        raise UnavailableError(f"{folder}: sources cannot be stored or read: {error.strerror}") from error
