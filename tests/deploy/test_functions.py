"""The functions over HTTP, served by functions-framework: every answer of both request forms."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import functions_framework
import grpc
import pytest

from deploy.http import FUNCTIONS, Api, Response
from deploy.http import Request as HttpRequest
from tests.deploy.cloud_build_server import CloudBuildServer
from tests.deploy.gcs_server import BUCKET, fetch_object, run_gcs_server
from tests.deploy.kubernetes_server import KubernetesServer
from tests.deploy.service_stack import ANN, Stack, agent_zip
from tests.deploy.tokens import TokenMaker
from tests.ports import find_free_port

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "functions" / "main.py"
DEADLINE_S = 60.0


class Served:
    """The functions on a port, with what stands behind them."""

    def __init__(
        self, address: str, cloud: CloudBuildServer, kubernetes: KubernetesServer, tokens: TokenMaker, log: Path
    ) -> None:
        self.address, self.cloud, self.kubernetes, self.tokens, self.log = address, cloud, kubernetes, tokens, log

    def call(
        self,
        function: str,
        body: object = None,
        *,
        user: str | None = "ann",
        token: str | None = None,
        method: str = "POST",
        raw: bytes | None = None,
        content_type: str = "application/json",
        query: str = "",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, JSON and headers of an answer."""
        sent = {"Content-Type": content_type, **(headers or {})}
        if token is None and user is not None:
            token = self.tokens.firebase(user)
        if token:
            sent["Authorization"] = f"Bearer {token}"
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/{function}{query}", data, sent, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=DEADLINE_S)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None, dict(answer.headers)

    def both(self, function: str, data: dict[str, Any], **how: Any) -> tuple[tuple[int, Any], tuple[int, Any]]:
        """Return the answers in callable and in plain form."""
        return self.call(function, {"data": data}, **how)[:2], self.call(function, data, **how)[:2]

    def make(self, agent_id: str, *, user: str = "ann") -> str:
        """Make an agent unless it is there, upload a source that it has not had yet, and return its digest."""
        assert self.call("createTradingAgent", {"agentId": agent_id, "name": "x"}, user=user)[0] == 200
        query = "?" + urllib.parse.urlencode({"agentId": agent_id})
        status, answer, _ = self.call(
            "uploadAgentSource",
            raw=agent_zip(secrets.token_hex(8)),
            content_type="application/zip",
            query=query,
            user=user,
        )
        assert status == 200, answer
        return str(answer["sourceDigest"])

    def settle(self, agent_id: str) -> dict[str, Any]:
        """Ask for the status until the agent is no longer deploying."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            status, answer, _ = self.call("getTradingAgentStatus", {"agentId": agent_id})
            assert status == 200, answer
            if answer["status"] != "deploying":
                return dict(answer)
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("functions")
    tokens = TokenMaker()
    with contextlib.ExitStack() as stack:
        gcs = stack.enter_context(run_gcs_server(folder))
        kubernetes = KubernetesServer()
        stack.callback(kubernetes.close)
        cloud = CloudBuildServer(
            folder / "builds",
            fetch=lambda bucket, name, generation: fetch_object(gcs, bucket, name, generation),
            apply=kubernetes.apply_text,
        )
        cloud.run_imports = False
        stack.callback(cloud.close)
        places = folder / "places.json"
        signer = {
            "type": "service_account",
            "client_email": "deploy@my-project.iam.gserviceaccount.com",
            "private_key": tokens.pem,
            "private_key_id": "1",
            "token_uri": "http://127.0.0.1:1/token",
        }
        places.write_text(
            json.dumps(
                {
                    "cloud_build_port": cloud.port,
                    "kubernetes": kubernetes.address,
                    "folder": str(folder),
                    "bucket": BUCKET,
                    "signer": signer,
                    "certificates": {tokens.key_id: tokens.certificate},
                }
            )
        )
        port = find_free_port()
        environment = {
            **os.environ,
            "GOOGLE_CLOUD_PROJECT": "my-project",
            "STORAGE_EMULATOR_HOST": gcs,
            "DEPLOY_SERVICE_FACTORY": "tests.deploy.served:build_api",
            "SERVED_BY_TEST": str(places),
            "PYTHONPATH": str(ROOT),
        }
        log = stack.enter_context((folder / "functions.log").open("wb"))
        command = [sys.executable, "-m", "functions_framework", "--source", str(MAIN), "--target", "tradingAgents"]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
        )
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                    break
                assert process.poll() is None, (folder / "functions.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield Served(address, cloud, kubernetes, tokens, folder / "functions.log")
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


@pytest.fixture(autouse=True)
def _healthy(served: Served) -> Iterator[None]:
    yield
    served.cloud.refuse.clear()
    served.cloud.failing.clear()
    served.cloud.go.set()
    served.kubernetes.fail = None


# Every row of the table


def test_200_in_both_forms_and_the_second_call_returns_the_same_build(served: Served) -> None:
    served.make("row_200")
    served.cloud.go.clear()
    status, answer, _ = served.call("deployTradingAgent", {"data": {"agentId": "row_200"}})
    build_id = answer["result"]["buildId"]
    expected = {
        "success": True,
        "agentId": "row_200",
        "deploymentName": "trading-agent-row-200",
        "buildId": build_id,
        "status": "deploying",
    }
    assert (status, answer) == (200, {"result": expected})
    assert build_id in served.cloud.builds
    for function in ("deployTradingAgent", "beginPaperTrading"):
        assert served.call(function, {"agentId": "row_200"})[:2] == (200, expected)
    served.cloud.go.set()
    assert served.settle("row_200")["status"] == "deployed"


@pytest.mark.parametrize("function", [*FUNCTIONS])
def test_401_without_a_token_or_with_a_bad_one(served: Served, function: str) -> None:
    stranger = TokenMaker(served.tokens.key_id)
    bad = [
        "",
        "x.y.z",
        stranger.firebase("ann"),
        served.tokens.firebase("ann", exp=int(time.time()) - 60),
        served.tokens.firebase("ann", aud="other"),
    ]
    for token in bad if function == "deployTradingAgent" else bad[:1]:
        callable_form, plain = served.both(function, {"agentId": "x"}, user=None, token=token)
        assert callable_form[0] == 401
        assert callable_form[1]["error"]["status"] == "UNAUTHENTICATED"
        assert plain == (401, {"error": "Unauthorized"})
        assert not token or token not in json.dumps(callable_form[1])


@pytest.mark.parametrize("agent_id", ["", None, 5, "a/b", "a\nb", "..", "x" * 100, "'\"`$(id)'" * 20, "*"])
def test_400_for_a_missing_or_invalid_id(served: Served, agent_id: Any) -> None:
    before = len(served.cloud.calls)
    for function in ("deployTradingAgent", "stopTradingAgent", "getTradingAgentStatus"):
        callable_form, plain = served.both(function, {"agentId": agent_id})
        assert callable_form[0] == 400
        assert callable_form[1]["error"]["status"] == "INVALID_ARGUMENT"
        assert callable_form[1]["error"]["message"].startswith("agentId")
        assert plain == (400, {"error": "Missing agentId"})
    assert len(served.cloud.calls) == before


def test_403_or_404_for_an_unknown_agent_and_for_another_users(served: Served) -> None:
    served.make("bens", user="ben")
    before = served.call("getTradingAgentStatus", {"agentId": "bens"}, user="ben")[1]
    for agent_id in ("bens", "nobodys"):
        for function in FUNCTIONS:
            if function in ("createTradingAgent", "listTradingAgents"):
                continue
            callable_form, plain = served.both(function, {"agentId": agent_id})
            assert callable_form[0] == 403
            assert callable_form[1] == {
                "error": {"status": "PERMISSION_DENIED", "message": f"there is no agent '{agent_id}' of yours"}
            }
            assert plain == (404, {"error": "Agent not found"})
    assert served.call("getTradingAgentStatus", {"agentId": "bens"}, user="ben")[1] == before


def test_400_for_a_source_that_is_deployed_already(served: Served) -> None:
    served.make("twice")
    served.call("deployTradingAgent", {"agentId": "twice"})
    assert served.settle("twice")["status"] == "deployed"
    callable_form, plain = served.both("deployTradingAgent", {"agentId": "twice"})
    assert callable_form[0] == 400
    assert callable_form[1]["error"]["status"] == "FAILED_PRECONDITION"
    assert plain[0] == 400
    assert plain[1]["status"] == "FAILED_PRECONDITION"
    assert plain[1]["error"] == callable_form[1]["error"]["message"]
    assert "deployed already" in plain[1]["error"]


def test_500_when_a_part_is_down(served: Served) -> None:
    served.make("down")
    served.cloud.refuse["CreateBuild"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    status, answer, headers = served.call("deployTradingAgent", {"data": {"agentId": "down"}})
    assert (status, answer["error"]["status"], headers["Retry-After"]) == (500, "INTERNAL", "5")
    assert "Cloud Build: a quota is used up" in answer["error"]["message"]
    status, answer, _ = served.call("deployTradingAgent", {"agentId": "down"})
    assert (status, answer["error"]) == (500, "Deployment failed")
    assert answer["message"].startswith("Cloud Build: a quota is used up")
    assert served.call("getTradingAgentStatus", {"agentId": "down"})[1]["status"] == ""


def test_409_for_an_id_that_is_taken(served: Served) -> None:
    served.make("taken", user="ben")
    callable_form, plain = served.both("createTradingAgent", {"agentId": "taken", "name": "x"})
    assert callable_form[0] == plain[0] == 409
    assert callable_form[1]["error"]["status"] == plain[1]["status"] == "ALREADY_EXISTS"
    assert plain[1]["error"] == "Agent exists already"


def test_ids_with_quotes_and_spaces_are_data_all_the_way_to_the_cluster(served: Served) -> None:
    agent_id = 'it\'s "$(touch x)" `$PROJECT_ID` ${_IMAGE}: &a'
    agent_id = agent_id.replace("{", "(").replace("}", ")")
    served.make(agent_id)
    status, answer, _ = served.call("deployTradingAgent", {"agentId": agent_id})
    assert (status, answer["agentId"]) == (200, agent_id)
    found = served.settle(agent_id)
    assert found["status"] == "deployed", found
    build = served.cloud.builds[answer["buildId"]]
    source = f"gs://{BUCKET}/ann/{agent_id}/agent-source.zip#"
    assert build.substitutions["_SOURCE"].startswith(source)
    name = answer["deploymentName"].removeprefix("trading-agent-")
    assert served.kubernetes.deployment(name) is not None
    for step in build.steps:
        for text in (step.script, *step.args, *step.env):
            assert "touch x" not in text


# The other functions


def test_an_agent_is_made_uploaded_deployed_read_stopped_and_listed(served: Served) -> None:
    cleo = f"cleo-{secrets.token_hex(4)}"  # has no agent yet
    status, made, _ = served.call("createTradingAgent", {"data": {"name": "Mean reversion"}}, user=cleo)
    assert status == 200
    agent_id = made["result"]["agentId"]
    asked = {"agentId": agent_id}
    status, offered, _ = served.call("uploadAgentSource", asked, user=cleo)
    assert (status, offered["method"]) == (200, "PUT")
    request = urllib.request.Request(offered["uploadUrl"], agent_zip("signed"), offered["headers"], method="PUT")
    urllib.request.urlopen(request, timeout=DEADLINE_S).close()
    status, accepted, _ = served.call("uploadAgentSource", {"data": {**asked, "uploaded": True}}, user=cleo)
    assert (status, accepted["result"]["symbols"]) == (200, ["AAPL", "BTC/USD"])
    digest = accepted["result"]["sourceDigest"]
    assert served.call("deployTradingAgent", {**asked, "sourceDigest": digest}, user=cleo)[0] == 200
    deadline = time.monotonic() + DEADLINE_S
    while served.call("getTradingAgentStatus", asked, user=cleo)[1]["status"] != "deployed":
        assert time.monotonic() < deadline
    status, logs, _ = served.call(
        "getTradingAgentLogs", {"data": {**asked, "since": "2026-01-01T00:00:00Z", "limit": 5}}, user=cleo
    )
    assert (status, [line["text"] for line in logs["result"]["lines"]]) == (200, ["started", "bar 1"])
    assert served.call("restartTradingAgent", asked, user=cleo)[1]["status"] == "deployed"
    status, answer, _ = served.call("rollbackTradingAgent", asked, user=cleo)
    assert (status, answer["status"]) == (400, "FAILED_PRECONDITION")
    assert served.call("stopPaperTrading", asked, user=cleo)[1]["status"] == "stopped"
    for body, unwrap in (({"data": None}, True), (None, False), ({}, False)):
        status, listed, _ = served.call("listTradingAgents", body, user=cleo)
        agents = (listed["result"] if unwrap else listed)["agents"]
        assert [(agent["agentId"], agent["name"], agent["status"]) for agent in agents] == [
            (agent_id, "Mean reversion", "stopped")
        ]


def test_a_bad_archive_is_refused_with_every_finding(served: Served) -> None:
    served.make("findings")
    for raw, told in ((b"PK no zip", "is no zip"), (b"", "is no zip"), (b"PK" + b"\0" * (10 << 20), "allowed are")):
        status, answer, _ = served.call(
            "uploadAgentSource", raw=raw, content_type="application/zip", query="?agentId=findings"
        )
        assert (status, answer["error"], answer["status"]) == (400, "Invalid source", "INVALID_ARGUMENT")
        assert told in answer["message"]


def test_bodies_that_are_not_understood_are_refused(served: Served) -> None:
    for raw in (b"{", b"[1]", b'"x"', b"\xff", b"[" * 5000, b'{"data": 5}', b"{" + b" " * 70_000):
        status, answer, _ = served.call("deployTradingAgent", raw=raw)
        assert status == 400
        error = answer["error"]
        assert error["status"] == "INVALID_ARGUMENT" if isinstance(error, dict) else error == "Invalid request"
    assert served.call("deployTradingAgent", method="GET")[0] == 405
    status, answer, _ = served.call("noFunction", {"agentId": "x"})
    assert (status, answer["message"]) == (400, "there is no function 'noFunction'")
    for field in ({"since": "yesterday"}, {"limit": "many"}):
        served.make("fields")
        assert served.call("getTradingAgentLogs", {"agentId": "fields", **field})[0] == 400


def test_cors_preflight_is_answered(served: Served) -> None:
    headers = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    status, _, answer = served.call("deployTradingAgent", method="OPTIONS", user=None, headers=headers)
    assert status == 204
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert answer["Access-Control-Allow-Methods"] == "POST"
    assert answer["Access-Control-Allow-Headers"] == "authorization, content-type"
    _, _, answer = served.call("deployTradingAgent", {"data": {}}, headers={"Origin": "https://app.example.com"})
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer


@pytest.mark.parametrize("target", [*FUNCTIONS, "tradingAgents"])
def test_every_function_is_a_target_of_functions_framework(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUNCTION_TARGET", "FUNCTION_SOURCE", "FUNCTION_SIGNATURE_TYPE"):
        monkeypatch.setenv(name, "")
    app = functions_framework.create_app(target, str(MAIN))
    monkeypatch.setitem(sys.modules["main"].__dict__, "_api", _Refusing())
    with app.test_client() as client:
        answer = client.post(f"/{target}" if target == "tradingAgents" else "/", json={"agentId": "x"})
    assert answer.headers["X-Function"] == target
    assert answer.data == b'{"agentId": "x"}'


def test_builds_are_followed_by_a_function_that_a_message_or_a_schedule_triggers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(tmp_path)
    monkeypatch.setenv("FUNCTION_SIGNATURE_TYPE", "cloudevent")
    app = functions_framework.create_app("followBuilds", str(MAIN), "cloudevent")
    monkeypatch.setitem(sys.modules["main"].__dict__, "_api", Api(stack.service, _NobodyVerifier()))
    try:
        agent = stack.create()
        stack.service.upload(ANN, agent, agent_zip())
        build_id = stack.service.deploy(ANN, agent)["buildId"]
        stack.until(lambda: stack.builds.status(build_id), lambda build: build.is_done)
        assert stack.fields()["status"] == "deploying"
        event = {"id": "1", "source": "//pubsub", "type": "google.cloud.pubsub.topic.v1.messagePublished"}
        headers = {"ce-specversion": "1.0", **{f"ce-{name}": value for name, value in event.items()}}
        with app.test_client() as client:
            assert client.post("/", json={"message": {"data": ""}}, headers=headers).status_code == 200
        assert stack.fields()["status"] == "deployed"
    finally:
        stack.close()


class _NobodyVerifier:
    """Fails in a way that nobody has thought of."""

    def verify(self, token: str) -> Any:
        raise RuntimeError(f"surprise with {token}")


def test_what_nobody_has_thought_of_is_answered_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack = Stack(tmp_path)
    try:
        api = Api(stack.service, _NobodyVerifier())
        headers = {"authorization": "Bearer secret-token"}
        plain = api.handle("deployTradingAgent", HttpRequest(method="POST", body=b"{}", headers=headers))
        wrapped = api.handle("deployTradingAgent", HttpRequest(method="POST", body=b'{"data":{}}', headers=headers))
    finally:
        stack.close()
    message = "the service failed; its operator finds the reason in its log"
    assert (plain.status, json.loads(plain.body)) == (500, {"error": "Deployment failed", "message": message})
    assert (wrapped.status, json.loads(wrapped.body)) == (500, {"error": {"status": "INTERNAL", "message": message}})
    assert "RuntimeError" in caplog.text


def test_allowed_origins_are_answered_one_by_one_when_they_are_set(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    try:
        stack.service.settings = dataclasses.replace(stack.settings, cors_origins=("https://app.example.com",))
        api = Api(stack.service, _NobodyVerifier())
        for origin, allowed in (("https://app.example.com", True), ("https://evil.example.com", False), ("", False)):
            answer = api.handle("deployTradingAgent", HttpRequest(method="OPTIONS", headers={"origin": origin}))
            assert (answer.headers.get("Access-Control-Allow-Origin") == origin) is (allowed and bool(origin))
            assert answer.headers["Vary"] == "Origin"
            assert ("Access-Control-Allow-Methods" in answer.headers) is allowed
    finally:
        stack.close()


def test_no_token_and_no_source_is_in_the_log(served: Served) -> None:
    served.make("logged")
    tokens = [served.tokens.firebase("ann"), TokenMaker().firebase("ann"), "not-a-token-at-all"]
    for token in tokens:
        served.call("getTradingAgentStatus", {"agentId": "logged"}, token=token)
    text = served.log.read_text()
    assert "Traceback" not in text
    for word in (*tokens, "eyJ", "class Agent", served.tokens.pem[30:60]):
        assert word not in text


class _Refusing:
    """Answers which function was called."""

    max_body_bytes = 100

    def handle(self, function: str, request: Any) -> Any:
        return Response(status=200, body=request.body, headers={"X-Function": function})
