"""Archives of sources: equal bytes for equal files, and nothing bad let through."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.archive import (
    IGNORE_FILE,
    MAX_FILES,
    MIB,
    IgnoreRules,
    check_archive,
    make_archive,
    zip_files,
)
from deploy.errors import InvalidSourceError
from deploy.unpack import name_agent, unpack


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip with these entries as they are."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return target.getvalue()


def test_equal_files_give_equal_bytes_whatever_their_times_and_modes(tmp_path: Path) -> None:
    archives = []
    for folder, names in (("a", ("x.py", "sub/y.py")), ("b", ("sub/y.py", "x.py"))):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        archives.append(make_archive(tmp_path / folder))
    os.utime(tmp_path / "a/x.py", (10**9, 10**9))
    (tmp_path / "a/x.py").chmod(0o755)
    assert archives[0] == archives[1] == make_archive(tmp_path / "a")
    assert list(archives[0].files) == ["sub/y.py", "x.py"]
    # Known bytes: another machine, Python or zlib is to make the same.
    assert zip_files({"a.txt": b"1"}).hex() == (
        "504b030414000000000000002100b7efdc83010000000100000005000000612e74787431504b01021403140000000000"
        "00002100b7efdc830100000001000000050000000000000000000000a48100000000612e747874504b05060000000001"
        "00010033000000240000000000"
    )


def test_what_is_ignored_is_left_out(tmp_path: Path) -> None:
    files = {
        "agent/agent.py": 1,
        "agent/__pycache__/agent.cpython-311.pyc": 0,
        ".env": 0,
        ".env.example": 1,
        ".git/config": 0,
        ".venv/bin/python": 0,
        "notes/big.csv": 0,
        "notes/keep.csv": 1,
        "data/a/b/c.parquet": 0,
        "top.txt": 0,
        "sub/top.txt": 1,
        "build": 1,
    }
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / IGNORE_FILE).write_text(
        "# notes\n\nnotes/*.csv\n!notes/keep.csv\ndata/**/*.parquet\n/top.txt\nbuild/\n"
    )
    assert list(make_archive(tmp_path).files) == sorted(name for name, kept in files.items() if kept)


@pytest.mark.parametrize(
    ("pattern", "name", "ignored"),
    [
        ("*.pyc", "a/b/c.pyc", True),
        ("a/*.pyc", "a/b/c.pyc", False),
        ("a/**", "a/b/c", True),
        ("**/c", "a/b/c", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab].py", "b.py", True),
        ("\\#x", "#x", True),
        ("b", "a/b", True),
        ("/b", "a/b", False),
    ],
)
def test_ignore_lines_are_read_as_git_reads_them(pattern: str, name: str, ignored: bool) -> None:
    assert IgnoreRules([pattern]).ignores(name, is_folder=False) is ignored


def test_a_folder_that_cannot_be_packed_says_why(tmp_path: Path) -> None:
    with pytest.raises(InvalidSourceError, match="no such folder"):
        make_archive(tmp_path / "missing")
    with pytest.raises(InvalidSourceError, match="no files"):
        make_archive(tmp_path)
    (tmp_path / "a.py").write_text("")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidSourceError, match="link: is a link; copy the file itself"):
        make_archive(tmp_path)
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidSourceError, match="pipe: is neither a file nor a folder"):
        make_archive(tmp_path)
    (tmp_path / "pipe").unlink()
    with (tmp_path / "big.bin").open("wb") as target:
        target.truncate(11 * MIB)
    with pytest.raises(InvalidSourceError, match=r"more than 10 MiB with big\.bin"):
        make_archive(tmp_path)
    (tmp_path / "big.bin").unlink()
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(InvalidSourceError, match="more than 1,000 files"):
        make_archive(tmp_path)


def link(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return entry


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no zip, or was cut off"),
        (b"hello", "is no zip, or was cut off"),
        (zipped(("a.py", b"x"))[:-10], "is no zip, or was cut off"),
        (zipped(("a.py", b"x"))[10:], "is no zip, or was cut off"),
        (zipped(("a.py", b"x")) + b"more", "nothing after its end"),
        (b"PK" + zipped(("a.py", b"x")), "is no zip, or was cut off"),
        (zipped(), "has no files"),
        (zipped(("dir/", b"")), "has no files"),
        (zipped(("/etc/passwd", b"x")), "absolute path"),
        (zipped(("C:/x.py", b"x")), "absolute path"),
        (zipped(("../x.py", b"x")), "leaves the archive"),
        (zipped(("a/../../x.py", b"x")), "leaves the archive"),
        (zipped(("a//b.py", b"x")), "leaves the archive"),
        (zipped(("./a.py", b"x")), "leaves the archive"),
        (zipped(("a\\b.py", b"x")), "backslash"),
        (zipped(("a\nb.py", b"x")), "control character"),
        (zipped(("a\u202eyp.exe", b"x")), "control character"),
        (zipped(("a.py ", b"x")), "space or a point at the end"),
        (zipped(("x" * 241, b"x")), "a path of 241 characters"),
        (zipped(("/".join("a" * 21), b"x")), "21 deep"),
        (zipped((link("a", stat.S_IFLNK | 0o777), b"/etc/passwd")), "is a link"),
        (zipped((link("a", stat.S_IFIFO | 0o644), b"")), "neither a file nor a folder"),
        (zipped(("A.py", b"x"), ("a.py", b"x")), "differs from 'A.py' by case only"),
        (zipped(("é.py", b"x"), ("e\u0301.py", b"x")), "by case only"),
        (zipped(("a", b"x"), ("a/b.py", b"x")), "is a file and a folder"),
        (zipped(("a.py", b"x"), method=zipfile.ZIP_LZMA), "another method than store or deflate"),
        (zipped(("zeros", bytes(20 * MIB + 1))), "bytes unpacked, allowed are 20,971,520"),
        (zipped(*[(f"{number}", bytes(18 * MIB)) for number in range(3)]), "allowed are 52,428,800"),
        (zipped(*[(f"{number}", b"") for number in range(10_000)]), "has 10,000 files, allowed are 1,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_archives_are_refused(content: bytes, told: str) -> None:
    with pytest.raises(InvalidSourceError) as caught:
        check_archive(content)
    assert told in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused() -> None:
    with pytest.raises(InvalidSourceError, match=r"'a\.py': is there twice"):
        check_archive(zipped(("a.py", b"good"), ("a.py", b"evil")))


def test_encrypted_archives_are_refused() -> None:
    content = bytearray(zipped(("a.py", b"x"), method=zipfile.ZIP_STORED))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    with pytest.raises(InvalidSourceError, match="is encrypted"):
        check_archive(bytes(content))


def test_a_length_that_is_a_lie_and_damaged_bytes_are_refused() -> None:
    good = zipped(("a.py", b"x" * 1000))
    directory = good.index(b"PK\x01\x02")
    lie = bytearray(good)
    struct.pack_into("<L", lie, directory + 24, 10)  # 10 bytes, it says
    with pytest.raises(InvalidSourceError, match=r"is damaged|another length"):
        check_archive(bytes(lie))
    damaged = bytearray(zipped(("a.py", b"x" * 1000), method=zipfile.ZIP_STORED))
    damaged[100] ^= 1
    with pytest.raises(InvalidSourceError, match="is damaged"):
        check_archive(bytes(damaged))
    renamed = bytearray(good)
    renamed[30] = ord("b")  # the name beside the content is another than that in the directory
    with pytest.raises(InvalidSourceError, match="is damaged"):
        check_archive(bytes(renamed))


def test_entries_that_share_their_bytes_are_refused() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(MIB))
        first = archive.infolist()[0]
        for number in range(30):  # each one unpacks to the same megabyte
            twin = zipfile.ZipInfo("a")
            for name in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "flag_bits"):
                setattr(twin, name, getattr(first, name))
            twin.filename = twin.orig_filename = f"a{number}"
            archive.filelist.append(twin)
    with pytest.raises(InvalidSourceError, match="overlap"):
        check_archive(target.getvalue())


def test_a_larger_archive_than_allowed_is_not_even_looked_at() -> None:
    with pytest.raises(InvalidSourceError, match="has 2,000 bytes, allowed are 1,000"):
        check_archive(bytes(2000), max_bytes=1000)


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_break_the_check(noise: bytes, position: int, value: int) -> None:
    good = bytearray(zipped(("a.py", b"x = 1\n"), ("sub/b.txt", b"text")))
    good[position % len(good)] = value
    for content in (bytes(good), noise, b"PK\x03\x04" + noise, bytes(good)[: position % len(good)]):
        with contextlib.suppress(InvalidSourceError):
            found = check_archive(content)
            assert all(not name.startswith("/") and ".." not in name for name in found.files)


# Unpacking in the image


def test_unpacking_names_the_agent_and_its_requirements(tmp_path: Path) -> None:
    toml = b'[run]  # settings\nsymbols = "symbols.txt"\n[deploy]\nrequirements = ["ta==0.11"]\n'
    source = make_source(tmp_path, {"dry-work.toml": toml, "agent/agent.py": b"x"})
    assert unpack(tmp_path / "source.zip", source, tmp_path / "out") == ["ta==0.11"]
    text = (tmp_path / "out/dry-work.toml").read_text()
    assert text.startswith('[run]  # settings\nagent = "agent/agent.py:Agent"\nsymbols')
    assert (tmp_path / "out/agent/agent.py").read_bytes() == b"x"


def make_source(folder: Path, files: dict[str, bytes]) -> str:
    checked = check_archive(zip_files(files))
    (folder / "source.zip").write_bytes(checked.content)
    return checked.digest


def test_a_source_that_was_changed_after_the_check_is_not_unpacked(tmp_path: Path) -> None:
    digest = make_source(tmp_path, {"a.py": b"x"})
    make_source(tmp_path, {"a.py": b"evil"})
    with pytest.raises(ValueError, match="not the one that was checked"):
        unpack(tmp_path / "source.zip", digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("toml", "result"),
    [
        ("", '\n[run]\nagent = "agent/agent.py:Agent"\n'),
        ('[run]\nagent = "x.py"\n', '[run]\nagent = "x.py"\n'),
        ("[risk]\noff = false", '[risk]\noff = false\n[run]\nagent = "agent/agent.py:Agent"\n'),
        ("[run]\n[risk]\n", '[run]\nagent = "agent/agent.py:Agent"\n[risk]\n'),
    ],
)
def test_the_agent_is_named_where_the_settings_name_none(toml: str, result: str) -> None:
    assert name_agent(toml) == result


def test_settings_that_leave_no_place_for_the_agents_name_are_told() -> None:
    with pytest.raises(ValueError, match="is to name the agent"):
        name_agent("run = {cash = 5}")
