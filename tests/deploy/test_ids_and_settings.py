"""Ids of agents, and settings of the service."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import ConfigurationError, DeployError, InvalidIdError, NotPermittedError
from deploy.factory import build_api
from deploy.ids import check_agent_id, check_user_id, label_value, normalise_agent_id
from deploy.settings import read_settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("agent_id", "normalised"),
    [
        ("abc", "abc"),
        ("My_Agent", "my-agent"),
        ("a.b c", "a-b-c"),
        ("--x--", "x"),
        ("_1", "1"),
        ("Ümlaut", "mlaut"),
        ('it\'s "quoted"', "it-s--quoted"),
        ("a" * 49, "a" * 49),
        ("-" * 20 + "a" * 49, "a" * 49),
        ("$(rm)`x`;&|<>", "rm--x"),
    ],
)
def test_ids_are_normalised(agent_id: str, normalised: str) -> None:
    assert check_agent_id(agent_id) == agent_id
    assert normalise_agent_id(agent_id) == normalised


@pytest.mark.parametrize(
    ("agent_id", "told"),
    [
        (None, "is missing"),
        ("", "is missing"),
        (5, "expected a text, not int"),
        (["x"], "expected a text, not list"),
        ("---", "at least one of a-z and 0-9"),
        ("日本", "at least one of a-z and 0-9"),
        ("a" * 50, "50 characters in Kubernetes names, allowed are 49"),
        ("x" * 100, "100 characters in Kubernetes names"),
        ("x" * 257, "257 characters, allowed are 256"),
        ("a/b", "has a slash"),
        ("a\\b", "has a slash"),
        ("..", "the form of a path"),
        ("a..b", "the form of a path"),
        ("a\nb", "control character"),
        ("a\x00", "control character"),
        ("a\u202eb", "control character"),
        ("a\u2028b", "control character"),
        ("a*", "patterns"),
        ("a?b", "patterns"),
        ("a[b]", "patterns"),
        ("a#1", "patterns"),
        ("__a__", "reserved"),
    ],
)
def test_ids_that_cannot_be_used_are_told(agent_id: object, told: str) -> None:
    with pytest.raises(InvalidIdError, match=told) as caught:
        normalise_agent_id(agent_id)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@given(st.text(max_size=80))
def test_every_id_is_refused_or_fits_kubernetes_names(text: str) -> None:
    try:
        normalised = normalise_agent_id(text)
    except InvalidIdError:
        return
    assert 1 <= len(normalised) <= 49
    assert normalised.strip("-") == normalised
    assert set(normalised) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(st.text(max_size=80))
def test_every_text_becomes_a_label(text: str) -> None:
    label = label_value(text)
    assert len(label) <= 63
    assert not label or (label[0].isalnum() and label[-1].isalnum() and label.isascii())


def test_users_that_cannot_be_folders_are_refused() -> None:
    assert check_user_id("aB3") == "aB3"
    for user_id in ("", "a/b", "..", "*", "a\n"):
        with pytest.raises(NotPermittedError):
            check_user_id(user_id)


def test_the_defaults_are_the_documented_ones() -> None:
    settings = read_settings({"GOOGLE_CLOUD_PROJECT": "my-project", "DEPLOY_NAMESPACE": ""})
    assert (settings.region, settings.cluster, settings.namespace) == (
        "us-central1",
        "trading-cluster",
        "trading-agents",
    )
    assert (settings.bucket, settings.build_timeout_s) == ("agent-source-code", 300)
    assert settings.agent_image("x") == "gcr.io/my-project/trading-agent-x"
    assert settings.base_image == "gcr.io/my-project/dry-work:latest"


def test_every_setting_is_read() -> None:
    environment = {
        "GCLOUD_PROJECT": "my-project",
        "CLOUDSDK_COMPUTE_REGION": "europe-west3",
        "CLOUDSDK_CONTAINER_CLUSTER": "c1",
        "DEPLOY_NAMESPACE": "n1",
        "DEPLOY_BUCKET": "b1-x",
        "DEPLOY_COLLECTION": "bots",
        "DEPLOY_DATABASE": "data1",
        "DEPLOY_IMAGE_PREFIX": "europe-docker.pkg.dev/my-project/agents",
        "DEPLOY_RUNTIME_IMAGE": "europe-docker.pkg.dev/p/r/dry-work@sha256:" + "0" * 64,
        "DEPLOY_SECRET_NAME": "s1",
        "MARKET_DATA_TOPIC": "stocks",
        "CRYPTO_DATA_TOPIC": "crypto",
        "DEPLOY_BUILD_ACCOUNT": "builder@my-project.iam.gserviceaccount.com",
        "DEPLOY_BUILD_TIMEOUT": "10m",
        "DEPLOY_ROLLOUT_TIMEOUT": "1h",
        "DEPLOY_CALL_TIMEOUT": "5",
        "DEPLOY_UPLOAD_EXPIRY": "60s",
        "DEPLOY_MAX_ARCHIVE_BYTES": "2048",
        "DEPLOY_MAX_SOURCES": "5",
        "DEPLOY_AUDIENCES": "https://a.example.com, 123.apps",
        "DEPLOY_CORS_ORIGINS": "https://a.example.com,http://localhost:3000",
    }
    settings = read_settings(environment)
    default = read_settings({"GOOGLE_CLOUD_PROJECT": "my-project"})
    assert [name for name, value in vars(settings).items() if value == vars(default)[name]] == ["project"]
    assert (settings.build_timeout_s, settings.rollout_timeout_s, settings.call_timeout_s) == (600, 3600, 5)
    assert settings.audiences == ("https://a.example.com", "123.apps")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CLOUDSDK_COMPUTE_REGION", "us-central1-a", "expected a region, such as us-central1 \\(not a zone\\)"),
        ("GOOGLE_CLOUD_PROJECT", "Not A Project", "expected the id of a project"),
        ("GCLOUD_PROJECT", "other-project", "name the same thing and differ"),
        ("DEPLOY_BUCKET", "gs://x", "without gs://"),
        ("DEPLOY_BUILD_TIMEOUT", "5 minutes", "expected 60s to 86400s"),
        ("DEPLOY_BUILD_TIMEOUT", "25h", "expected 60s to 86400s"),
        ("DEPLOY_MAX_ARCHIVE_BYTES", "99999999", "a whole number from 1024 to 10485760"),
        ("DEPLOY_CORS_ORIGINS", "example.com", "or origins such as https://example.com"),
        ("DEPLOY_BUKET", "x", "did you mean DEPLOY_BUCKET"),
        ("DEPLOY_SOMETHING_ELSE_ENTIRELY", "x", "is no setting of the deploy service"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_allowed(name: str, value: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        read_settings({"GOOGLE_CLOUD_PROJECT": "my-project", name: value})
    assert name in str(caught.value)


def test_without_a_project_nothing_starts() -> None:
    with pytest.raises(ConfigurationError, match="set GOOGLE_CLOUD_PROJECT"):
        build_api({})
    with pytest.raises(ConfigurationError, match="DEPLOY_SERVICE_FACTORY 'nowhere:x': expected module:function"):
        build_api({"DEPLOY_SERVICE_FACTORY": "nowhere:x"})


def test_the_package_stands_alone() -> None:
    for path in (*sorted((ROOT / "deploy").rglob("*.py")), ROOT / "functions/main.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in ("dry_work", "backtrader", "agents"), f"{path.name} imports {name}"


def test_the_service_loads_no_library_of_the_cloud_until_it_needs_one() -> None:
    code = (
        "import sys, deploy.http, deploy.factory, deploy.store_sqlite, deploy.source_folder\n"
        "heavy = ('google.cloud.firestore', 'google.cloud.storage', 'grpc', 'kubernetes', 'flask', 'dry_work')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_error_has_a_kind_that_an_answer_can_carry() -> None:
    def below(kind: type[DeployError]) -> list[type[DeployError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    assert {found.kind for found in below(DeployError)} == {
        "UNAUTHENTICATED",
        "INVALID_ARGUMENT",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "INTERNAL",
        "UNAVAILABLE",
    }
