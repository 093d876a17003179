"""Stores of agents and of sources: the same tests for every kind, on real servers where there are any."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google.oauth2.service_account
import pytest

from deploy.errors import AlreadyExistsError, ConflictError, DeployError, NotFoundError, UnavailableError
from deploy.ports import AgentDocument, AgentStore, SourceRecord, SourceStore
from deploy.source_folder import FolderSourceStore
from deploy.source_gcs import GcsSourceStore
from deploy.store_firestore import FirestoreAgentStore
from deploy.store_sqlite import SqliteAgentStore
from tests.deploy.gcs_server import BUCKET, fetch_object, run_gcs_server
from tests.deploy.tokens import TokenMaker
from tests.ports import find_free_port

DEADLINE_S = 60.0
TIME = dt.datetime(2026, 1, 2, 15, 4, 5, 678901, dt.UTC)


def find_emulator() -> Path | None:
    """Return the jar of Google's Firestore emulator, beside an installed gcloud."""
    gcloud = shutil.which("gcloud")
    roots = [Path(gcloud).resolve().parents[1]] if gcloud else []
    roots += [Path(os.environ[name]) for name in ("CLOUDSDK_ROOT_DIR",) if os.environ.get(name)]
    roots += [Path("/usr/lib/google-cloud-sdk"), Path.home() / "google-cloud-sdk"]
    for root in roots:
        for path in root.glob("platform/cloud-firestore-emulator/*.jar"):
            return path
    return None


@pytest.fixture(scope="session")
def firestore_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if os.environ.get("FIRESTORE_EMULATOR_HOST"):
        yield os.environ["FIRESTORE_EMULATOR_HOST"]
        return
    jar, java = find_emulator(), shutil.which("java")
    if jar is None or java is None:
        pytest.skip("no Firestore emulator: `gcloud components install cloud-firestore-emulator` and a Java")
    port = find_free_port()
    main = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"  # as the script beside the jar calls it
    command = [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-cp", str(jar), main]
    log_path = tmp_path_factory.mktemp("firestore") / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                break
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


@pytest.fixture(params=["sqlite", "firestore"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentStore]:
    found: AgentStore
    if request.param == "sqlite":
        found = SqliteAgentStore(tmp_path / "state/agents.sqlite")
    else:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", request.getfixturevalue("firestore_host"))
        found = FirestoreAgentStore("my-project", collection=f"c{uuid.uuid4().hex}", timeout_s=20.0)
    yield found
    found.close()
    found.close()


def test_a_document_is_made_once_read_and_changed_under_its_version(store: AgentStore) -> None:
    assert store.read("It's_a 1") is None
    fields: dict[str, Any] = {
        "userId": "ann",
        "deploymentStarted": TIME,
        "alpacaAccount": {"account_funding_status": "FUNDED", "list": [1, 2.5, None, True, "é", {"t": TIME}]},
    }
    made = store.create("It's_a 1", fields)
    with pytest.raises(AlreadyExistsError, match="is there already"):
        store.create("It's_a 1", {"userId": "ben"})
    read = store.read("It's_a 1")
    assert read == made
    assert read is not None
    assert dict(read.fields) == fields
    changed = store.update(read, {"status": "deploying", "deploymentStarted": None})
    assert store.read("It's_a 1") == changed
    assert changed.fields == {**fields, "status": "deploying", "deploymentStarted": None}
    with pytest.raises(ConflictError):
        store.update(read, {"status": "stopped"})
    again = store.update(changed, {"status": "deployed"})
    assert again.version != changed.version
    with pytest.raises(ConflictError):
        store.update(AgentDocument(agent_id="gone", version=again.version), {"status": "stopped"})
    assert store.read("gone") is None


def test_of_many_writers_of_one_version_one_wins(store: AgentStore) -> None:
    document = store.create("a", {"userId": "ann"})
    barrier = threading.Barrier(5)

    def write(number: int) -> bool:
        barrier.wait(DEADLINE_S)
        try:
            store.update(document, {"writer": number})
        except (ConflictError, UnavailableError):
            return False
        return True

    with ThreadPoolExecutor(5) as pool:
        assert sum(pool.map(write, range(5))) == 1


def test_a_name_has_one_owner(store: AgentStore) -> None:
    name = f"n{uuid.uuid4().hex[:8]}"
    assert store.name_owner(name) == ""
    with ThreadPoolExecutor(5) as pool:
        owners = set(pool.map(lambda number: store.claim_name(name, f"agent {number}"), range(5)))
    assert owners == {store.name_owner(name)}
    owner = owners.pop()
    assert store.claim_name(name, owner) == owner
    assert store.claim_name(name, "late") == owner


def test_documents_are_listed_by_user_by_deployment_and_when_not_settled(store: AgentStore) -> None:
    store.create("c", {"userId": "ann", "status": "deployed", "kubernetesDeployment": "trading-agent-c"})
    store.create("a", {"userId": "ann", "status": "deploying"})
    store.create("b", {"userId": "ben", "status": "stopped", "unsettled": True})
    store.create("d", {"status": "stopped", "unsettled": False})
    assert [found.agent_id for found in store.list_user("ann")] == ["a", "c"]
    assert store.list_user("nobody") == []
    assert [found.agent_id for found in store.list_unsettled()] == ["a", "b"]
    assert [found.agent_id for found in store.list_deployment("trading-agent-c")] == ["c"]
    found = store.list_user("ben")[0]
    store.update(found, {"unsettled": False})
    assert [found.agent_id for found in store.list_unsettled()] == ["a"]


def test_records_of_sources_survive_being_stored(store: AgentStore) -> None:
    record = SourceRecord(
        digest="d" * 64, generation="12", size_bytes=5, uploaded=TIME, agent="a.py:A", symbols=("SPY", "BTC/USD")
    )
    store.create("a", {"userId": "ann", "sources": [record.to_fields()]})
    read = store.read("a")
    assert read is not None
    assert read.sources == (record,)


def test_sqlite_keeps_documents_for_the_next_process_and_tells_of_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "agents.sqlite"
    first = SqliteAgentStore(path)
    made = first.create("a", {"userId": "ann", "time": TIME})
    second = SqliteAgentStore(path)
    assert second.read("a") == made
    changed = second.update(made, {"x": 1})
    with pytest.raises(ConflictError):
        first.update(made, {"x": 2})
    first.close()
    second.close()
    assert SqliteAgentStore(path).read("a") == changed
    (tmp_path / "bad.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match=r"bad\.sqlite: the agents' file cannot be used"):
        SqliteAgentStore(tmp_path / "bad.sqlite")


def test_a_firestore_that_is_down_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    store = FirestoreAgentStore("my-project", timeout_s=1.0)
    document = AgentDocument(agent_id="a", version="2026-01-02T15:04:05.678901Z")
    calls = (
        lambda: store.read("a"),
        lambda: store.list_user("ann"),
        lambda: store.create("a", {}),
        lambda: store.update(document, {"x": 1}),
        lambda: store.claim_name("a", "a"),
    )
    for call in calls:
        with pytest.raises(UnavailableError, match="Firestore"):
            call()
    store.close()


# Sources


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_gcs_server(tmp_path_factory.mktemp("gcs")) as address:
        yield address


@pytest.fixture(params=["folder", "gcs"])
def sources(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceStore]:
    found: SourceStore
    if request.param == "folder":
        found = FolderSourceStore(tmp_path / "sources")
    else:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("gcs"))
        found = GcsSourceStore("my-project", BUCKET, now=lambda: TIME)
    yield found
    found.close()
    found.close()


def test_an_archive_is_stored_under_a_precondition_and_older_ones_stay(sources: SourceStore) -> None:
    agent_id = f'It\'s "1" {uuid.uuid4().hex}'
    assert sources.generation("ann", agent_id) == ""
    one = sources.write("ann", agent_id, b"one", expected_generation="")
    with pytest.raises(ConflictError, match="another archive was uploaded meanwhile"):
        sources.write("ann", agent_id, b"other", expected_generation="")
    two = sources.write("ann", agent_id, b"second", expected_generation=one)
    assert sources.generation("ann", agent_id) == two != one
    assert sources.read("ann", agent_id, one) == b"one"
    assert sources.read("ann", agent_id, two) == b"second"
    assert sources.size_bytes("ann", agent_id, two) == 6
    assert sources.generation("ben", agent_id) == ""
    for generation in ("999", "", "../1", "x"):
        for call in (sources.read, sources.size_bytes):
            with pytest.raises(NotFoundError):
                call("ann", agent_id, generation)


def test_ids_that_look_alike_have_places_of_their_own(sources: SourceStore) -> None:
    mark = uuid.uuid4().hex
    ids = [f"a {mark}", f"a_{mark}", f"A {mark}", f"é{mark}", mark * 7]
    for agent_id in ids:
        sources.write("ann", agent_id, agent_id.encode(), expected_generation="")
    for agent_id in ids:
        assert sources.read("ann", agent_id, sources.generation("ann", agent_id)) == agent_id.encode()


def test_a_repeated_upload_whose_first_answer_was_lost_is_no_conflict(
    gcs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
    store = GcsSourceStore("my-project", BUCKET, now=lambda: TIME)
    agent_id = uuid.uuid4().hex
    first = store.write("ann", agent_id, b"same", expected_generation="")
    assert store.write("ann", agent_id, b"same", expected_generation="") == first
    store.close()


def test_an_upload_address_takes_an_archive_where_the_build_looks_for_it(
    gcs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
    maker = TokenMaker()
    info = {"client_email": "a@b.iam.gserviceaccount.com", "private_key": maker.pem, "token_uri": "http://127.0.0.1:1"}
    signer: Any = google.oauth2.service_account.Credentials.from_service_account_info(info)  # type: ignore[no-untyped-call]
    store = GcsSourceStore("my-project", BUCKET, now=lambda: TIME, signer=signer, expiry_s=60, max_bytes=1000)
    agent_id = f"it's {uuid.uuid4().hex}"
    signed = store.sign_upload("ann", agent_id, expected_generation="")
    assert signed is not None
    assert signed.expires == TIME + dt.timedelta(seconds=60)
    assert signed.headers == {
        "content-type": "application/zip",
        "x-goog-content-length-range": "1,1000",
        "x-goog-if-generation-match": "0",
    }
    for name in ("X-Goog-Signature=", "X-Goog-Expires=60", "x-goog-content-length-range", "x-goog-if-generation-match"):
        assert name in signed.url
    request = urllib.request.Request(signed.url, b"archive", dict(signed.headers), method=signed.method)
    urllib.request.urlopen(request, timeout=DEADLINE_S).close()
    generation = store.generation("ann", agent_id)
    bucket, _, rest = store.address("ann", agent_id, generation).removeprefix("gs://").partition("/")
    name, _, pinned = rest.rpartition("#")
    assert (bucket, name, pinned) == (BUCKET, f"ann/{agent_id}/agent-source.zip", generation)
    assert fetch_object(gcs, bucket, name, pinned) == b"archive"
    store.close()
    unsigned = GcsSourceStore("my-project", BUCKET, now=lambda: TIME)
    assert unsigned.sign_upload("ann", agent_id, expected_generation="") is None
    unsigned.close()


def test_a_missing_bucket_and_a_storage_that_is_down_are_told(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
    store = GcsSourceStore("my-project", "no-such-bucket", now=lambda: TIME)
    with pytest.raises(DeployError, match="there is no bucket no-such-bucket: `dry-work setup` makes it"):
        store.write("ann", "a", b"x", expected_generation="")
    store.close()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    store = GcsSourceStore("my-project", BUCKET, now=lambda: TIME, timeout_s=1.0)
    calls = (
        lambda: store.generation("ann", "a"),
        lambda: store.read("ann", "a", "1"),
        lambda: store.write("ann", "a", b"x", expected_generation=""),
    )
    for call in calls:
        with pytest.raises(UnavailableError, match="Cloud Storage"):
            call()
    store.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeployError, match="sources cannot be stored or read"):
        FolderSourceStore(tmp_path / "file").write("ann", "a", b"x", expected_generation="")
