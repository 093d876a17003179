"""The commands of deployments: sources, targets, plans, and a service that is none."""

from __future__ import annotations

import base64
import datetime as dt
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from deploy.build_plan import BUILD_ID_MARK
from deploy.manifest import parse_yaml
from dry_work.cli import cli
from dry_work.cli.deploy_client import DeployClient, RefusedError
from dry_work.cli.deploy_source import read_source
from dry_work.cli.deploy_target import choose_target
from dry_work.cli.deploy_watch import describe_progress
from dry_work.cli.deployments import Deployment, choose_deployment
from dry_work.cli.logs import parse_since
from dry_work.errors import ConfigError, DryWorkError

CODE = "import backtrader as bt\n\n\nclass Cross(bt.Strategy):\n    params = (('fast', 1),)\n"


@pytest.fixture
def agent(clean_environment: Path) -> Path:
    folder = clean_environment / "my_agent"
    folder.mkdir()
    (folder / "agent.py").write_text(CODE)
    (folder / "symbols.txt").write_text("SPY\nBTC/USD\n")
    (folder / "dry-work.toml").write_text('[run]\nagent = "agent.py:Cross"\n')
    return folder


def run(*words: str) -> tuple[str, int]:
    """Return what a command says and its exit code."""
    result = CliRunner().invoke(cli, list(words), standalone_mode=False)
    if result.exception is None:
        return result.output, result.return_value
    return result.output + str(result.exception), 2 if isinstance(result.exception, ConfigError) else 1


# Sources


def test_a_folder_is_named_after_itself_or_by_its_settings(agent: Path) -> None:
    found = read_source(str(agent), symbols=None, params={})
    assert (found.name, found.summary.agent, found.summary.symbols) == (
        "my-agent",
        "agent.py:Cross",
        ("SPY", "BTC/USD"),
    )
    (agent / "dry-work.toml").write_text('[run]\nagent = "agent.py:Cross"\nagent_id = "other"\n')
    assert read_source(str(agent), symbols=None, params={}).name == "other"


def test_a_single_file_gets_symbols_and_settings(agent: Path) -> None:
    found = read_source(f"{agent / 'agent.py'}:Cross", symbols=None, params={"fast": "5"})
    assert found.name == "agent"
    assert dict(found.summary.params) == {"fast": "5"}
    assert sorted(found.archive.files) == ["agent.py", "dry-work.toml", "symbols.txt"]
    other = agent / "crypto.txt"
    other.write_text("ETH/USD\n")
    assert read_source(str(agent / "agent.py"), symbols=other, params={}).summary.symbols == ("ETH/USD",)


def test_values_of_parameters_are_data_in_the_settings(agent: Path) -> None:
    value = 'a "quoted"\n[run]\nagent = "x.py"'
    found = read_source(str(agent / "agent.py"), symbols=None, params={"fast": value})
    assert found.summary.params["fast"] == value
    assert found.summary.agent == "agent.py"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("deploy", "not-there"), "not-there: expected a folder with an agent"),
        (("deploy", "not-there.py"), "not-there.py: no such file"),
        (("deploy", "my_agent", "-p", "fast=2"), "--symbols and -p go with a single file"),
        (("deploy", "my_agent/agent.py", "-p", "slow=2"), "Cross has no parameter 'slow'; its parameters: fast"),
        (("deploy", "my_agent", "--agent-id", "a/b"), "has a slash"),
        (("deploy", "my_agent", "--plan", "--follow"), "--plan changes nothing"),
        (("deploy", "my_agent", "--no-wait", "--follow"), "--follow waits"),
        (("deploy", "my_agent", "--target", "cluster"), "needs the address of the deploy service"),
        (("deploy", "my_agent", "--target", "local", "--url", "https://x.example"), "--url names a service elsewhere"),
        (("deploy", "my_agent", "--url", "http://x.example"), "expected https, since a token is sent"),
        (("deploy", "my_agent", "--url", "https://x.example", "--speed", "5"), "--speed goes with the local target"),
        (("deploy", "my_agent", "--url", "https://x.example", "--dir", "x"), "--dir is of the local target"),
        (("deploy", "my_agent", "--dir", "x", "--speed", "max"), "give a number"),
        (("deploy", "my_agent", "--dir", "x", "--speed", "-1"), "speed"),
        (("deploy", "my_agent", "--dir", "x", "--env-file", "no.env"), "no.env: cannot be read"),
        (("deploy", "my_agent", "--dir", "x", "--env-file", "keys.env"), "has no ALPACA_SECRET_KEY"),
        (("deploy", "my_agent", "--dir", "x", "--env-file", "keys.env", "--cash", "5"), "leave out --data, --speed"),
        (("logs", "mine", "--dir", "x"), "nothing was deployed to this machine yet"),
        (("stop", "mine", "--dir", "x"), "nothing was deployed to this machine yet"),
        (("restart", "mine", "--dir", "x"), "nothing was deployed to this machine yet"),
        (("rollback", "mine", "--dir", "x"), "nothing was deployed to this machine yet"),
        (("stop", "--dir", "x"), "name an agent, or give --service"),
        (("stop", "mine", "--service", "--dir", "x"), "name an agent, or give --service"),
        (("stop", "--service", "--url", "https://x.example"), "--service is of the local target"),
        (("logs", "mine", "--since", "yesterday", "--dir", "x"), "--since 'yesterday': expected a length"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(agent: Path, words: tuple[str, ...], said: str) -> None:
    (agent.parent / "keys.env").write_text("ALPACA_API_KEY=PKTEST\n")
    output, code = run(*words)
    assert said in output
    assert code == 2
    assert not (agent.parent / "x").exists()


def test_every_finding_in_the_sources_is_told_in_a_line(agent: Path) -> None:
    (agent / "agent.py").write_text("def broken(:\n")
    (agent / "symbols.txt").write_text("not a symbol\n")
    output, code = run("deploy", str(agent), "--plan")
    assert code == 2
    assert "agent.py, line 1: " in output
    assert "symbols.txt, line 1: " in output


# Plans


def test_the_plan_of_the_local_target_says_what_would_be_started_and_makes_nothing(agent: Path) -> None:
    output, code = run("deploy", str(agent), "--plan", "--dir", "x", "--json")
    assert code == 0
    assert "+ start   exchange the simulated exchange (synthetic prices, 60 data seconds a second)" in output
    assert "+ create  agent my-agent (my-agent)" in output
    found = json.loads(output.splitlines()[-1])
    assert (found["action"], found["undo"]) == ("create", ["dry-work stop my-agent"])
    assert not (agent.parent / "x").exists()


def kubectl(folder: Path, answers: str) -> None:
    """Put a kubectl on the path that answers what it is asked for with a file of that kind."""
    script = (
        '#!/bin/sh\nbody=$(cat)\ncase "$1" in\n'
        f'get) case "$body" in *\'"kind": "Deployment"\'*) cat {answers};; esac;;\nesac\n'
    )
    (folder / "kubectl").write_text(script)
    (folder / "kubectl").chmod(0o755)


def test_the_plan_of_a_cluster_is_compared_with_what_it_has_and_the_way_back_is_written(
    agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    monkeypatch.setenv("PATH", "/not-there")
    output, code = run("deploy", str(agent), "--plan", "--target", "cluster")
    assert code == 0, output
    assert "? apply   Deployment trading-agent-my-agent in trading-agents" in output
    assert "not compared with a cluster" in output

    from deploy.manifest import render_agent

    before = render_agent(
        agent_id="my-agent",
        creator_id="ann",
        project_id="my-project",
        image="gcr.io/my-project/trading-agent-my-agent:old",
    )
    answers = agent.parent / "live.json"
    answers.write_text(json.dumps(before[-1]))
    kubectl(agent.parent, str(answers))
    monkeypatch.setenv("PATH", f"{agent.parent}:/usr/bin:/bin")
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "ann"}).encode()).rstrip(b"=").decode()
    (agent.parent / "token").write_text(f"x.{claims}.x\n")
    output, code = run("deploy", str(agent), "--plan", "--target", "cluster", "--token-file", "token", "--json")
    assert code == 0, output
    assert "~ change  Deployment trading-agent-my-agent" in output
    assert f"trading-agent-my-agent:old → gcr.io/my-project/trading-agent-my-agent:{BUILD_ID_MARK}" in output
    assert "+ create  PersistentVolumeClaim agent-state-my-agent" in output
    assert parse_yaml((agent.parent / "before.yaml").read_text()) == [before[-1]]
    changes = {entry["kind"]: entry for entry in json.loads(output.splitlines()[-1])["changes"]}
    assert len(changes["Deployment"]["differences"]) == 1  # the image alone: the owner is that of the token


# The service


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers by what the path says."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        status, body = {
            "/html": (200, b"<html>"),
            "/list": (200, b"[]"),
            "/no-result": (200, b"{}"),
            "/fine": (200, b'{"result": {"success": true}}'),
            "/away": (302, b""),
            "/missing": (404, b"<html>not found"),
            "/denied": (403, b'{"error": {"status": "PERMISSION_DENIED", "message": "there is no agent"}}'),
            "/down": (500, b'{"error": {"status": "INTERNAL", "message": "Cloud Build is down"}}'),
            "/uploadAgentSource?agentId=a+b%26c": (400, b'{"error": "Invalid source", "message": "no zip"}'),
        }[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "/fine")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    Answers.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("function", "said", "kind"),
    [
        ("html", "this is no deploy service: its answer is no JSON object", None),
        ("list", "its answer is no JSON object", None),
        ("no-result", "is not that of a deploy service", None),
        ("away", "this is no deploy service: HTTP 302", None),
        ("missing", "this is no deploy service: HTTP 404", None),
        ("denied", "there is no agent", "PERMISSION_DENIED"),
        ("down", "Cloud Build is down", None),
    ],
)
def test_what_a_service_answers_is_told_and_the_token_goes_nowhere_else(
    service: str, function: str, said: str, kind: str | None
) -> None:
    client = DeployClient(service, "the-token")
    with pytest.raises(DryWorkError, match=said) as caught:
        client.call(function)
    assert (caught.value.kind if isinstance(caught.value, RefusedError) else None) == kind
    assert Answers.seen == [(f"/{function}", "Bearer the-token")]
    assert "the-token" not in str(caught.value)


def test_ids_are_data_in_addresses_and_a_service_that_is_not_there_is_told(service: str) -> None:
    client = DeployClient(service + "/", "t")
    assert client.call("fine") == {"success": True}
    with pytest.raises(RefusedError, match="no zip"):
        client.upload("a b&c", b"PK")
    with pytest.raises(DryWorkError, match="cannot be reached"):
        DeployClient("http://127.0.0.1:9", "t").call("fine")


def test_a_token_comes_from_the_file_then_from_the_environment(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    monkeypatch.setenv("PATH", "/not-there")
    monkeypatch.setenv("DRY_WORK_DEPLOY_URL", service)
    with pytest.raises(ConfigError, match="no identity token: give --token-file"):
        choose_target(None, None, None, None).open()
    monkeypatch.setenv("DRY_WORK_DEPLOY_TOKEN", "from-the-environment")
    choose_target(None, None, None, None).open().call("fine")
    path = clean_environment / "token"
    path.write_text("from-the-file\n")
    choose_target(None, None, path, None).open().call("fine")
    assert [token for _, token in Answers.seen] == ["Bearer from-the-environment", "Bearer from-the-file"]
    assert choose_target("local", None, None, None).is_local
    path.write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        choose_target(None, None, path, None).open()


# What is told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", "2026-01-02T11:50:00Z"),
        ("2h", "2026-01-02T10:00:00Z"),
        ("1d", "2026-01-01T12:00:00Z"),
        ("2026-01-01T05:00:00+02:00", "2026-01-01T03:00:00Z"),
        ("2026-01-01", "2026-01-01T00:00:00Z"),
    ],
)
def test_a_time_is_a_length_or_a_time(text: str, expected: str) -> None:
    assert parse_since(text, now=dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"status": "deployed"}, ""),
        ({"status": "deploying"}, ""),
        ({"status": "deploying", "build": {"status": "queued", "step": ""}}, "          queued"),
        ({"status": "deploying", "build": {"status": "working", "step": "build"}}, "          build"),
        ({"status": "deploying", "build": {"status": "success"}, "rollout": {"reason": "a"}}, "rollout   a"),
    ],
)
def test_progress_is_the_step_and_then_the_rollout(status: dict[str, Any], expected: str) -> None:
    assert describe_progress(status) == expected


def test_an_agent_is_found_by_its_id_before_its_normalised_id() -> None:
    rows = [
        Deployment(agent_id="My_Agent", normalised="my-agent", status="deployed"),
        Deployment(agent_id="my-agent", normalised="other", status="deployed"),
    ]
    assert choose_deployment("my-agent", rows) is rows[1]
    assert choose_deployment("My_Agent", rows) is rows[0]
    assert choose_deployment("other", rows) is rows[1]
    assert choose_deployment("none", rows) is None
