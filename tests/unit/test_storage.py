import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dry_work.errors import ConfigError, StorageError
from dry_work.storage import StoredFile, is_remote, open_storage, split_address


@pytest.mark.parametrize(("location", "expected"), [("gs://b/x", True), (Path("gs://b/x"), True), ("/data", False)])
def test_an_address_in_a_bucket_is_told_from_a_folder(location, expected):
    assert is_remote(location) is expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [("gs://b", ("b", "")), ("gs://b/", ("b", "")), ("gs://b/x/y/", ("b", "x/y")), (str(Path("gs://b/x")), ("b", "x"))],
)
def test_an_address_has_bucket_and_prefix(address, expected):
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["gs://", "gs:///x", "gs://*/x", "gs:// b"])
def test_an_address_without_bucket_is_refused(address):
    with pytest.raises(ConfigError, match=r"names no bucket; expected gs://bucket/folder"):
        open_storage(address)


def test_other_addresses_are_refused():
    with pytest.raises(ConfigError, match="s3://b/x: is neither a folder nor an address in a bucket such as gs://"):
        open_storage("s3://b/x")


def test_a_file_is_written_read_listed_and_deleted(tmp_path):
    storage = open_storage(tmp_path / "catalog")
    assert storage.location == str(tmp_path / "catalog")
    assert storage.list() == []
    assert not (tmp_path / "catalog").exists()  # made by the first write
    storage.write("bars/1m/SPY/2024-06-11.parquet", b"one")
    storage.write("bars/1m/IBM/2024-06-11.parquet", b"other")
    storage.write("notes.txt", b"")
    assert storage.read("bars/1m/SPY/2024-06-11.parquet") == b"one"
    assert [(file.name, file.size) for file in storage.list()] == [
        ("bars/1m/IBM/2024-06-11.parquet", 5),
        ("bars/1m/SPY/2024-06-11.parquet", 3),
        ("notes.txt", 0),
    ]
    path = tmp_path / "catalog/notes.txt"
    assert storage.list("notes")[0] == StoredFile("notes.txt", 0, path.stat().st_mtime_ns)
    assert storage.local_path("notes.txt") == path
    assert storage.local_paths(storage.list("notes")) == [path]
    assert storage.exists("notes.txt")
    storage.delete("notes.txt")
    storage.delete("notes.txt")
    storage.delete("notes.txt/below")
    assert not storage.exists("notes.txt")
    storage.close()
    storage.close()


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("a", ["a/b/1", "a/b/2", "a/c", "ab"]),
        ("a/", ["a/b/1", "a/b/2", "a/c"]),
        ("a/b", ["a/b/1", "a/b/2"]),
        ("a/b/2", ["a/b/2"]),
        ("a/c/", []),
        ("ab/c", []),
        ("x/y", []),
    ],
)
def test_a_prefix_is_one_of_names_not_of_folders(tmp_path, prefix, expected):
    storage = open_storage(tmp_path)
    for name in ("a/b/1", "a/b/2", "a/c", "ab", "b"):
        storage.write(name, b"")
    assert [file.name for file in storage.list(prefix)] == expected


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a\\b", "a\0b", ".tmp-x"])
def test_a_name_never_leaves_the_folder(tmp_path, name):
    storage = open_storage(tmp_path / "catalog")
    for call in (storage.read, storage.delete, storage.exists, storage.local_path):
        with pytest.raises(StorageError):
            call(name)
    with pytest.raises(StorageError):
        storage.write(name, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    storage = open_storage(tmp_path)
    for call in (storage.read, storage.local_path):
        with pytest.raises(StorageError, match=r"/bars/x: no such file") as caught:
            call("bars/x")
        assert not caught.value.retryable


def test_a_file_where_the_folder_should_be_is_told(tmp_path):
    (tmp_path / "catalog").write_bytes(b"")
    with pytest.raises(StorageError, match="is a file, expected a folder"):
        open_storage(tmp_path / "catalog")
    storage = open_storage(tmp_path)
    with pytest.raises(StorageError, match="catalog/x: cannot be written"):
        storage.write("catalog/x", b"1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written: no permission"):
        open_storage(tmp_path).write("x", b"1")


def test_unfinished_files_of_a_killed_process_are_no_files(tmp_path):
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    storage = open_storage(tmp_path)
    storage.write("x", b"whole")
    assert [file.name for file in storage.list()] == ["x"]


def test_when_nothing_more_can_be_written_the_old_content_stays_and_nothing_else(tmp_path):
    storage = open_storage(tmp_path)
    storage.write("x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="no space left for 2,000 bytes; free some") as caught:
            storage.write("x", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.retryable
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert storage.read("x") == b"old"


FULL_DISK = """
import os, sys
from dry_work.errors import StorageError
from dry_work.storage import open_storage
storage = open_storage(sys.argv[1])
storage.write("x", b"old")
try:
    storage.write("x", os.urandom(1_000_000))
except StorageError as error:
    print(error)
print(sorted(os.listdir(sys.argv[1])), storage.read("x"))
"""


def test_a_full_disk_is_told_and_keeps_the_old_content(tmp_path):
    script = f'mount -t tmpfs -o size=64k none "{tmp_path}" && exec "{sys.executable}" -c "$CODE" "{tmp_path}"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script],
            env={**os.environ, "CODE": FULL_DISK},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no unshare command: a small disk cannot be made")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"a small disk cannot be made: {done.stderr.strip()}")
    assert done.stdout.splitlines() == [
        f"{tmp_path}/x: no space left for 1,000,000 bytes; free some, then try again",
        "['x'] b'old'",
    ], done.stderr


def test_readers_see_the_old_or_the_new_content_never_a_part(tmp_path):
    storage = open_storage(tmp_path)
    contents = [bytes([number]) * 200_000 for number in range(20)]
    storage.write("x", contents[0])
    seen: set[bytes] = set()
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(storage.read("x"))

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        storage.write("x", content)
    done.set()
    reader.join(30)
    assert not reader.is_alive()
    assert seen <= set(contents)
    assert seen


def test_without_the_package_for_buckets_one_sentence_says_what_to_install():
    code = """
import sys
sys.modules["google.cloud.storage"] = None
from dry_work.errors import ConfigError
from dry_work.storage import open_storage
try:
    open_storage("gs://bucket/catalog")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == (
        "gs://bucket/catalog: buckets need a further package: pip install 'dry-work[storage]'"
    )
