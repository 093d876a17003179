"""Where recordings are: files, folders, globs and `gs://` addresses, and what a catalog's names say of its files.

A catalog is a folder or a prefix of a bucket with files `bars/<frame>/<SYMBOL>/<day>.parquet`, and likewise
`trades/<SYMBOL>/<day>` and `quotes/<SYMBOL>/<day>`. The `/` of a symbol is written `-`, the day is the UTC date of the
timestamps; bars of a day or longer may be kept by year.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError, DataFileError
from dry_work.market.symbols import encode_attribute, parse_attribute
from dry_work.storage import Storage, StoredFile, is_remote, open_storage, split_address

SUFFIXES = (".parquet", ".pq", ".csv", ".csv.gz")

_FRAME = re.compile(r"([1-9]\d{0,4})([smhdwM])", re.ASCII)
_DATED_FILE = re.compile(r"(\d{4})(?:-(\d\d)-(\d\d))?\.(?:parquet|pq|csv|csv\.gz)", re.ASCII)
_UNITS_NS = {"s": SECOND_NS, "m": MINUTE_NS, "h": HOUR_NS, "d": DAY_NS, "w": 7 * DAY_NS}


class Period(msgspec.Struct, frozen=True):
    """Times from `start_ns` to just before `end_ns`; None is open."""

    start_ns: int | None = None
    end_ns: int | None = None

    def __bool__(self) -> bool:
        return self.start_ns is not None or self.end_ns is not None

    def overlaps(self, first_ns: int, last_ns: int) -> bool:
        """Tell whether a time from `first_ns` to `last_ns` may lie in the period."""
        return (self.start_ns is None or last_ns >= self.start_ns) and (self.end_ns is None or first_ns < self.end_ns)

    def __str__(self) -> str:
        start = "the beginning" if self.start_ns is None else describe_time(self.start_ns)
        return f"from {start} to {'the end' if self.end_ns is None else f'before {describe_time(self.end_ns)}'}"


ALWAYS = Period()


class CatalogEntry(msgspec.Struct, frozen=True):
    """What the name of a catalog's file says."""

    kind: str  # bars, trades or quotes
    frame: str  # length of the bars, such as 1m; empty for trades and quotes
    spelling: str  # the symbol, BTC-USD
    first_ns: int  # start of the file's day or year, UTC
    last_ns: int  # last nanosecond of it

    @property
    def length_ns(self) -> int | None:
        """Length of the bars; None for months, which have no fixed one."""
        return None if self.frame.endswith("M") else parse_frame(self.frame)


class SourceFile(msgspec.Struct, frozen=True):
    """A file that is read; `shown` is its path or address for people."""

    path: Path  # of a bucket's file only after `fetch_files`
    named: bool  # given as a file, not found in a folder or by a glob
    shown: str = ""
    stored: tuple[Storage, StoredFile] | None = None  # in a bucket

    def __str__(self) -> str:
        return self.shown or str(self.path)

    @property
    def entry(self) -> CatalogEntry | None:
        """What its name says, when it lies in a catalog."""
        return parse_entry(str(self))


def parse_frame(text: str) -> int:
    """Return the nanoseconds of a length such as 30s, 1m, 1h, 1d, 1w.

    Raises:
        ValueError: for anything else.
    """
    match = _FRAME.fullmatch(text)
    if match is None or match[2] not in _UNITS_NS:
        raise ValueError(f"{text!r} is no length of bars: expected one such as 30s, 1m, 1h or 1d")
    return int(match[1]) * _UNITS_NS[match[2]]


def describe_length(length_ns: int) -> str:
    """Return a length as people and catalogs write it: 1m, 5m, 1h, 1d."""
    for unit in ("d", "h", "m", "s"):
        if length_ns and not length_ns % _UNITS_NS[unit]:
            return f"{length_ns // _UNITS_NS[unit]}{unit}"
    return f"{length_ns / SECOND_NS:g}s"


def describe_time(time_ns: int) -> str:
    """Return a time for people, to the minute where it is a whole one."""
    moment = datetime.fromtimestamp(time_ns // SECOND_NS, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S" if moment.second else "%Y-%m-%d %H:%M") + " UTC"


def parse_entry(name: str) -> CatalogEntry | None:
    """Return what the name of a file says, None when it is not one of a catalog."""
    parts = name.replace("\\", "/").split("/")
    match = _DATED_FILE.fullmatch(parts[-1])
    if match is None or len(parts) < 3:
        return None
    year, month, day = match.groups()
    try:
        first = datetime(int(year), int(month or 1), int(day or 1), tzinfo=UTC)
        end = first + timedelta(days=1) if day else first.replace(year=first.year + 1)
    except ValueError:
        return None
    span = int(first.timestamp()) * SECOND_NS, int(end.timestamp()) * SECOND_NS - 1
    if parts[-3] in ("trades", "quotes"):
        return CatalogEntry(parts[-3], "", parts[-2], *span)
    if len(parts) >= 4 and parts[-4] == "bars" and _FRAME.fullmatch(parts[-3]):
        return CatalogEntry("bars", parts[-3], parts[-2], *span)
    return None


def select_files(
    sources: Iterable[SourceFile], wanted: Iterable[str] | None, period: Period, kinds: Sequence[str]
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return (the files to read, those that their catalog names exclude: other kinds, symbols and days)."""
    spellings = None if wanted is None else {encode_attribute(symbol) for symbol in wanted}
    kept: list[SourceFile] = []
    others: list[SourceFile] = []
    for source in sources:
        entry = source.entry
        fits = entry is None or (
            entry.kind in kinds
            and (spellings is None or entry.spelling.upper() in spellings)
            and period.overlaps(entry.first_ns, entry.last_ns)
        )
        (kept if fits or source.named else others).append(source)
    return kept, others


def entry_symbols(sources: Iterable[SourceFile]) -> set[str]:
    """Return the symbols that the names of catalog files tell."""
    return {parse_attribute(entry.spelling) for entry in (source.entry for source in sources) if entry is not None}


def name_paths(paths: Sequence[str | Path]) -> str:
    """Return what was asked for, shortened, for a sentence."""
    names = [str(path) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def find_files(paths: Sequence[str | Path], *, expected: str = "recordings") -> list[SourceFile]:
    """Return the files that `paths` name, in that order, each once. Files in buckets are listed, not read.

    Raises:
        ConfigError: a path that names nothing.
        DataFileError: a file that is neither Parquet nor CSV by its name.
        StorageError: a bucket that cannot be listed.
    """
    if not paths:
        raise ConfigError(f"no data given: name a file, a folder or a glob of {expected}")
    sources: dict[str, SourceFile] = {}
    for given in paths:
        for source in _find_remote(str(given)) if is_remote(given) else _find_local(str(given)):
            key = source.shown or str(source.path.resolve())
            if key not in sources or source.named:
                sources[key] = source
    return list(sources.values())


def fetch_files(sources: Sequence[SourceFile]) -> list[SourceFile]:
    """Return the files with a local path each: those in buckets are downloaded, or taken from the cache.

    Raises:
        StorageError: one cannot be downloaded.
    """
    by_storage: dict[int, tuple[Storage, list[StoredFile]]] = {}
    for source in sources:
        if source.stored is not None:
            by_storage.setdefault(id(source.stored[0]), (source.stored[0], []))[1].append(source.stored[1])
    paths = {
        (number, file.name): path
        for number, (storage, files) in by_storage.items()
        for file, path in zip(files, storage.local_paths(files), strict=True)
    }
    return [
        source
        if source.stored is None
        else msgspec.structs.replace(source, path=paths[id(source.stored[0]), source.stored[1].name])
        for source in sources
    ]


def _has_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_hidden(name: str) -> bool:
    """Names that start with a dot or underscore are no recordings."""
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _files_under(folder: Path) -> list[Path]:
    """Return the recordings below `folder`, sorted."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if _has_suffix(path.name) and path.is_file() and not _is_hidden(path.relative_to(folder).as_posix())
    ]


def _find_local(text: str) -> list[SourceFile]:
    if "://" in text:
        raise ConfigError(f"{text}: is neither a local path nor an address in a bucket such as gs://bucket/folder")
    path = Path(text).expanduser()
    if path.is_file():
        if not _has_suffix(path.name):
            raise _tell_suffix(path)
        return [SourceFile(path, True)]
    if path.is_dir():
        matches = _files_under(path)
        if not matches:
            raise ConfigError(f"{text}: no recordings in this folder; expected files {', '.join(SUFFIXES)}")
    else:
        if not glob.has_magic(text):
            raise ConfigError(f"{text}: no such file or folder")
        matches = []
        for match in sorted(Path(name) for name in glob.glob(str(path), recursive=True)):
            if match.is_dir():
                matches += _files_under(match)
            elif _has_suffix(match.name):
                matches.append(match)
        if not matches:
            raise _tell_no_match(text)
    return [SourceFile(match, False) for match in matches]


def _find_remote(text: str) -> list[SourceFile]:
    """Find files in a bucket by a name, a prefix that is taken for a folder, or a glob."""
    bucket, rest = split_address(text)
    if bucket != bucket.split("?")[0] or glob.has_magic(bucket):
        raise ConfigError(f"{text}: the name of a bucket has no wild cards")
    storage = open_storage(f"gs://{bucket}")

    def found(files: Iterable[StoredFile], named: bool) -> list[SourceFile]:
        return [SourceFile(Path(f.name), named, f"gs://{bucket}/{f.name}", (storage, f)) for f in files]

    if glob.has_magic(rest):
        fixed = rest[: re.search(r"[*?\[]", rest).start()].rpartition("/")[0]  # type: ignore[union-attr]
        pattern = re.compile(_translate_glob(rest))
        files = [
            file
            for file in storage.list(f"{fixed}/" if fixed else "")
            if _has_suffix(file.name) and pattern.match(file.name)
        ]
        files = [file for file in files if not _is_hidden(file.name[pattern.match(file.name).end() :])]  # type: ignore[union-attr]
        if not files:
            raise _tell_no_match(text)
        return found(files, False)
    if rest:
        same = [file for file in storage.list(rest) if file.name == rest]
        if same:
            if not _has_suffix(rest):
                raise _tell_suffix(text)
            return found(same, True)
    under = f"{rest}/" if rest else ""
    everything = storage.list(under)
    files = [file for file in everything if _has_suffix(file.name) and not _is_hidden(file.name.removeprefix(under))]
    if not files:
        if rest and not everything:
            raise ConfigError(f"{text}: no such file or folder in the bucket")
        raise ConfigError(f"{text}: no recordings in this folder; expected files {', '.join(SUFFIXES)}")
    return found(files, False)


def _translate_glob(pattern: str) -> str:
    """Return a glob as a regular expression for the beginning of a name, up to a `/` or its end.

    As for local files, `*` and `?` stay within one part of a name, `**` is any number of parts, and what matches a
    folder stands for all below it.
    """
    parts = pattern.split("/")
    text = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            text += r"(?!\.).*" if last else r"(?:(?!\.)[^/]+/)*"
            continue
        hidden = "" if part.startswith(".") else r"(?!\.)"  # a wild card is no leading dot
        pieces = re.sub(r"\*+|\?|\[[!^]?\]?[^\]]*\]|.", _translate_piece, part)
        text += hidden + pieces + ("" if last else "/")
    return f"{text}(?=/|$)"


def _translate_piece(match: re.Match[str]) -> str:
    piece = match[0]
    if piece.startswith("*"):
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if piece.startswith("[") and len(piece) > 2:
        inside = piece[1:-1].replace("\\", "\\\\")
        return f"[^/{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]"
    return re.escape(piece)


def _tell_suffix(path: object) -> DataFileError:
    return DataFileError(path, f"is neither Parquet nor CSV by its name; expected {', '.join(SUFFIXES)}")


def _tell_no_match(text: str) -> ConfigError:
    return ConfigError(f"{text}: matches no recording; expected files {', '.join(SUFFIXES)}")
