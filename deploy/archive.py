"""The zip of an agent's sources: made so that equal files give equal bytes, and checked without trusting any of it.

Pure but for the reading of a folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.errors import InvalidSourceError

MIB = 1 << 20
MAX_ARCHIVE_BYTES = 10 * MIB
MAX_UNPACKED_BYTES = 50 * MIB
MAX_FILE_BYTES = 20 * MIB
MAX_FILES = 1_000
MAX_PATH_LENGTH = 240
MAX_DEPTH = 20
IGNORE_FILE = ".dryworkignore"
ARCHIVE_NAME = "agent-source.zip"

# What is never part of an agent. A line of .dryworkignore that begins with ! takes one back in, but for secrets, which
# the check refuses.
DEFAULT_IGNORED = (
    ".git/",
    ".hg/",
    ".svn/",
    ".venv/",
    "venv/",
    "node_modules/",
    "__pycache__/",
    "*.py[cod]",
    "*.egg-info/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".hypothesis/",
    ".ipynb_checkpoints/",
    ".dry-work/",
    ".idea/",
    ".vscode/",
    ".DS_Store",
    ".env",
    ".env.*",
    "!.env.example",
    IGNORE_FILE,
    f"/{ARCHIVE_NAME}",
)

_TIME = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip can tell
_DRIVE = re.compile(r"[A-Za-z]:")
_END = struct.Struct("<4s4H2LH")  # end of central directory
_MAX_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class SourceArchive:
    """An archive whose form is good, with what is in it."""

    content: bytes = field(repr=False)
    digest: str  # sha256 of `content`
    files: Mapping[str, bytes] = field(repr=False)  # by path, in order


def digest_of(content: bytes) -> str:
    """Return the sha256 of an archive, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def make_archive(folder: Path) -> SourceArchive:
    """Zip the files of a folder, without what `.dryworkignore` and `DEFAULT_IGNORED` name.

    Equal names and contents give equal bytes, on every machine: names are sorted, times and modes are constant, and
    nothing is compressed, since that differs from one zlib to another.

    Raises:
        InvalidSourceError: when there is no such folder, it has no files, a link or too much.
    """
    if not folder.is_dir():
        raise InvalidSourceError([f"{folder}: no such folder"])
    rules = IgnoreRules(DEFAULT_IGNORED)
    ignore_file = folder / IGNORE_FILE
    if ignore_file.is_file():
        try:
            rules = IgnoreRules((*DEFAULT_IGNORED, *ignore_file.read_text(encoding="utf-8-sig").splitlines()))
        except UnicodeDecodeError:
            raise InvalidSourceError([f"{ignore_file}: expected UTF-8 text"]) from None
    files: dict[str, bytes] = {}
    total = 0
    for name, path in sorted(_walk(folder, "", rules)):
        total += path.stat().st_size
        if len(files) >= MAX_FILES:
            raise InvalidSourceError(
                [f"{folder}: more than {MAX_FILES:,} files; name what does not belong to it in {IGNORE_FILE}"]
            )
        if total > MAX_ARCHIVE_BYTES:
            raise InvalidSourceError(
                [f"{folder}: more than 10 MiB with {name}; name what does not belong to it in {IGNORE_FILE}"]
            )
        files[name] = path.read_bytes()
    if not files:
        raise InvalidSourceError([f"{folder}: no files"])
    return check_archive(zip_files(files))


def zip_files(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of files by path; equal files give equal bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3  # Unix, also where it is made on another system
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, files[name])
    return target.getvalue()


def check_archive(content: bytes, *, max_bytes: int = MAX_ARCHIVE_BYTES) -> SourceArchive:
    """Return what is in an archive, if its form is good. Nothing is written and nothing of it is run.

    Raises:
        InvalidSourceError: listing what is wrong: no zip, cut off, encrypted, too large or too many files packed or
            unpacked, paths that leave it, links, names that collide.
    """
    if len(content) > max_bytes:
        raise InvalidSourceError(
            [f"the archive has {len(content):,} bytes, allowed are {max_bytes:,}; see {IGNORE_FILE}"]
        )
    _check_end(content)
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError):
        raise InvalidSourceError([_NO_ZIP]) from None
    with archive:
        entries = archive.infolist()
        if len(entries) > MAX_FILES:
            raise InvalidSourceError([f"the archive has {len(entries):,} files, allowed are {MAX_FILES:,}"])
        problems = list(_check_entries(entries, len(content)))
        if problems:
            raise InvalidSourceError(problems[:_MAX_PROBLEMS])
        files: dict[str, bytes] = {}
        for entry in sorted(entries, key=lambda entry: entry.filename):
            if not entry.is_dir():
                files[entry.filename] = _read(archive, entry)
    if not files:
        raise InvalidSourceError(["the archive has no files"])
    return SourceArchive(content=content, digest=digest_of(content), files=files)


_NO_ZIP = "the archive is no zip, or was cut off: make it again and upload it again"


def _check_end(content: bytes) -> None:
    """Look at the last record before anything is parsed: its directory could else be made of 200,000 entries."""
    if len(content) < _END.size or not content.startswith(b"PK"):
        raise InvalidSourceError([_NO_ZIP])
    signature, disk, start_disk, here, entries, size, offset, comment = _END.unpack(content[-_END.size :])
    if signature != b"PK\x05\x06":
        raise InvalidSourceError([f"{_NO_ZIP} (there may be nothing after its end, and no comment)"])
    if disk or start_disk or here != entries or comment:
        raise InvalidSourceError([_NO_ZIP])
    if entries > MAX_FILES:
        raise InvalidSourceError([f"the archive has {entries:,} files, allowed are {MAX_FILES:,}"])
    if offset + size != len(content) - _END.size or size > MAX_FILES * 512:
        raise InvalidSourceError([_NO_ZIP])


def _check_entries(entries: list[zipfile.ZipInfo], archive_bytes: int) -> Iterator[str]:
    packed, unpacked = 0, 0
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for entry in entries:
        shown = ascii(entry.orig_filename[:MAX_PATH_LENGTH])
        problem = _check_name(entry) or _check_kind(entry)
        if problem:
            yield f"{shown}: {problem}"
            continue
        packed += entry.compress_size
        unpacked += entry.file_size
        key = _fold(entry.filename.rstrip("/"))
        if entry.is_dir():
            folders.setdefault(key, entry.filename)
            continue
        if key in seen:
            other = seen[key]
            kind = "is there twice" if other == entry.filename else f"differs from {other!a} by case only"
            yield f"{shown}: {kind}"
        seen[key] = entry.filename
        for parent in _parents(entry.filename):
            folders.setdefault(_fold(parent), parent)
    for key in seen.keys() & folders.keys():
        yield f"{seen[key]!a}: is a file and a folder"
    if unpacked > MAX_UNPACKED_BYTES:
        yield f"the archive has {unpacked:,} bytes unpacked, allowed are {MAX_UNPACKED_BYTES:,}"
    if packed > archive_bytes:
        yield "the archive's files overlap"


def _check_name(entry: zipfile.ZipInfo) -> str:
    name = entry.orig_filename
    if "\0" in name or any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in name):
        return "has a control character in its name"
    if "\\" in name:
        return "has a backslash in its name; folders are separated by /"
    if name.startswith("/") or _DRIVE.match(name):
        return "is an absolute path; paths are to start in the archive's root"
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leaves the archive, or has . or .. or nothing between two /"
    if len(name) > MAX_PATH_LENGTH or len(parts) > MAX_DEPTH:
        return f"is a path of {len(name)} characters, {len(parts)} deep; allowed are {MAX_PATH_LENGTH} and {MAX_DEPTH}"
    if any(part != part.strip() or part.endswith(".") for part in parts):
        return "has a space or a point at the end of a name"
    return ""


def _check_kind(entry: zipfile.ZipInfo) -> str:
    if entry.flag_bits & 0x41:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed by another method than store or deflate"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link; put the file itself in"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > entry.is_dir():
        return "is neither a file nor a folder"
    if entry.is_dir() and entry.file_size:
        return "is a folder with content of its own"
    if entry.file_size > MAX_FILE_BYTES:
        return f"has {entry.file_size:,} bytes unpacked, allowed are {MAX_FILE_BYTES:,}"
    return ""


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return an entry's bytes; what it says of its length is not believed."""
    try:
        with archive.open(entry) as source:
            content = source.read(entry.file_size + 1)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        ValueError,
        OSError,
        struct.error,
        RuntimeError,
    ):
        raise InvalidSourceError([f"{entry.filename!a}: is damaged; make the archive again"]) from None
    if len(content) != entry.file_size:
        raise InvalidSourceError([f"{entry.filename!a}: has another length than it says"])
    return content


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _walk(folder: Path, prefix: str, rules: IgnoreRules) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = prefix + entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if rules.ignores(name, is_folder=is_folder):
            continue
        if entry.is_symlink():
            raise InvalidSourceError([f"{name}: is a link; copy the file itself, or name it in {IGNORE_FILE}"])
        if is_folder:
            yield from _walk(Path(entry.path), f"{name}/", rules)
        elif entry.is_file(follow_symlinks=False):
            yield name, Path(entry.path)
        else:
            raise InvalidSourceError([f"{name}: is neither a file nor a folder; name it in {IGNORE_FILE}"])


class IgnoreRules:
    """Lines of an ignore file, read as git reads its own: the last line that fits decides, ! takes a path back in."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool, bool]] = []
        for line in lines:
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            taken_in = text.startswith("!")
            text = text.removeprefix("!")
            only_folders = text.endswith("/")
            self._rules.append((_translate(text.rstrip("/")), only_folders, not taken_in))

    def ignores(self, name: str, *, is_folder: bool) -> bool:
        """Tell whether a path below the root is left out; what is in a folder that is left out is not asked about."""
        ignored = False
        for pattern, only_folders, result in self._rules:
            if (is_folder or not only_folders) and pattern.fullmatch(name):
                ignored = result
        return ignored


def _translate(text: str) -> re.Pattern[str]:
    anchored = "/" in text
    parts = text.removeprefix("/").split("/")
    found = "" if anchored else "(?:.*/)?"
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if part == "**":
            found += ".*" if last else "(?:.*/)?"
            continue
        found += _translate_part(part) + ("" if last else "/")
    return re.compile(found, re.DOTALL)


def _translate_part(part: str) -> str:
    """Return the pattern of what stands between two /; no wild card of it fits a /."""
    found, position = "", 0
    while position < len(part):
        character = part[position]
        position += 1
        end = part.find("]", position + 1)
        if character == "*":
            found += "[^/]*"
        elif character == "?":
            found += "[^/]"
        elif character == "[" and end > 0:
            inner = part[position:end].replace("\\", "\\\\")
            negated = inner.startswith(("!", "^"))
            found += f"(?!/)[{'^' if negated else ''}{inner[negated:].replace('[', chr(92) + '[')}]"
            position = end + 1
        elif character == "\\" and position < len(part):
            found += re.escape(part[position])
            position += 1
        else:
            found += re.escape(character)
    return found
