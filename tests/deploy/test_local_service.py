"""The local target by the command line: real service, functions, builds, agents and exchange, each a process."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.errors import InternalError, PreconditionError
from deploy.follow import Follower
from deploy.local import local_settings
from deploy.local_build import LocalBuildService
from deploy.local_cluster import LocalCluster
from deploy.local_exchange import LocalExchange
from deploy.local_files import LocalFolder, TargetSettings, is_locked, read_json
from deploy.local_service import find_service, start_service, stop_service, stop_target
from deploy.local_spec import ProcessSpec
from deploy.manifest import AgentManifest
from deploy.store_sqlite import SqliteAgentStore
from dry_work.cli import cli
from dry_work.cli.deploy_client import DeployClient
from dry_work.errors import ConfigError
from tests.ports import find_free_port

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0
CROSSING = ("-p", "fast_period=3", "-p", "slow_period=8", "-p", "cash_share=0.1")
BROKEN = "import backtrader as bt\n\n\nclass Agent(bt.Strategy):\n    pass\n"
SLOW = "import time\n\nimport backtrader as bt\n\ntime.sleep(100)\n\n\nclass Agent(bt.Strategy):\n    pass\n"


class Terminal:
    """The command line in a folder, as one types into it."""

    def __init__(self, folder: Path) -> None:
        self.work = folder
        self.folder = LocalFolder(folder / "deploy")
        self.cluster = LocalCluster(self.folder)

    def run(self, *words: str, expect: int | None = 0) -> str:
        """Run a command; return what it says, with the sentence of its error."""
        result = CliRunner().invoke(cli, [*words, "--dir", str(self.folder.root)], standalone_mode=False)
        error, code = result.exception, result.return_value
        if error is not None:
            code = 2 if isinstance(error, ConfigError) else 1
        text = result.output + (str(error) if error else "")
        if expect is not None:
            assert code == expect, (text, error)
        return text

    def status(self, agent: str) -> Any:
        return json.loads(self.run("status", agent, "--json", "--no-venue", expect=None).splitlines()[-1])

    def client(self) -> DeployClient:
        url = start_service(self.folder)
        return DeployClient(url, self.folder.token.read_text().strip())

    def write(self, name: str, code: str) -> str:
        """Write an agent's folder and return its path."""
        place = self.work / name
        (place / "agent").mkdir(parents=True, exist_ok=True)
        (place / "agent" / "agent.py").write_text(code)
        (place / "symbols.txt").write_text("SPY\n")
        return str(place)


@pytest.fixture
def terminal(clean_environment: Path) -> Iterator[Terminal]:
    found = Terminal(clean_environment)
    (clean_environment / "symbols.txt").write_text("SPY\nBTC/USD\n")
    try:
        yield found
    finally:
        stop_target(found.folder)
    # Nothing is left behind.
    assert not any(is_locked(path) for path in found.folder.root.rglob("*.lock"))


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def processes(folder: LocalFolder) -> dict[str, int]:
    """Return the agents that run, and their processes."""
    cluster = LocalCluster(folder)
    return {path.name: cluster.kept(path.name).read_state().pid for path in folder.agents.iterdir()}


@pytest.mark.timeout(600)
def test_an_agent_is_deployed_trades_is_upgraded_rolled_back_and_stopped(terminal: Terminal) -> None:
    deploy = ("deploy", str(ROOT / "agents" / "sma_cross.py"), *CROSSING)
    planned = terminal.run(*deploy, "--plan")
    assert "+ create  agent sma-cross" in planned
    assert not terminal.folder.root.exists()

    said = terminal.run(*deploy, "--speed", "600")
    assert "check-agent-import" in said or "deploy-to-gke" in said or "rollout" in said
    assert "deployed  in" in said
    first = until(lambda: terminal.status("sma-cross")["last_fills"], "no trade")
    assert {"SPY", "BTC/USD"} >= {fill["symbol"] for fill in first}
    found = terminal.status("sma-cross")
    assert found["deployment"]["status"] == "deployed"
    assert found["agent"]["process"] == processes(terminal.folder)["sma-cross"]
    address = LocalExchange(terminal.folder).address()
    assert address is not None
    assert found["account"]["url"] == address.url
    assert "deployment: deployed" in terminal.run("status", "sma-cross", expect=None)
    assert "bars" in terminal.run("logs", "sma-cross", "--since", "1h")
    assert "unchanged" in terminal.run(*deploy)

    # The service is killed: agent and exchange go on, and the next service takes them as they are.
    before = processes(terminal.folder)
    os.kill((read_json(terminal.folder.service) or {})["pid"], signal.SIGKILL)
    until(lambda: not find_service(terminal.folder), "the service was killed")
    alone = terminal.status("sma-cross")
    assert (alone["deployment"]["status"], alone["deployment"]["phase"]) == ("not known", "complete")
    assert alone["agent"]["process"] == before["sma-cross"]
    assert terminal.client().call("getTradingAgentStatus", agentId="sma-cross")["rollout"]["phase"] == "complete"
    assert processes(terminal.folder) == before

    # Another source: same journal, same account, a new process after the old one has ended.
    assert "~ change  agent sma-cross" in terminal.run(*deploy, "-p", "crypto_decimals=4", "--plan")
    assert "deployed  in" in terminal.run(*deploy, "-p", "crypto_decimals=4")
    upgraded = terminal.status("sma-cross")
    assert upgraded["deployment"]["digest"] != found["deployment"]["digest"]
    assert upgraded["agent"]["process"] != before["sma-cross"]
    assert upgraded["account"] == found["account"]
    orders = {fill["client_order_id"].rpartition("-")[0] for fill in [*first, *upgraded["last_fills"]]}
    assert len(orders) == 1  # one session of one journal

    # Back to what it was.
    assert f"to the source {found['deployment']['digest'][:12]}" in terminal.run("rollback", "sma-cross")
    assert terminal.status("sma-cross")["deployment"]["digest"] == found["deployment"]["digest"]

    # All ends, as when the machine is switched off; what was not stopped comes back with the service.
    assert "stopped" in terminal.run("stop", "--service")
    assert processes(terminal.folder) == {"sma-cross": 0}
    assert "running   sma-cross" in terminal.run("restart", "sma-cross")
    assert terminal.status("sma-cross")["account"] == found["account"]

    assert "stopped   sma-cross" in terminal.run("stop", "sma-cross")
    stopped = terminal.status("sma-cross")
    assert (stopped["deployment"]["status"], stopped["agent"]["state"]) == ("stopped", "stopped")
    assert terminal.folder.state_dir("sma-cross").is_dir()
    with pytest.raises(PreconditionError, match=r"opened without ZZZ; .* `dry-work stop --service --delete-state`"):
        LocalExchange(terminal.folder).open(("SPY", "ZZZ"), TargetSettings())
    assert "stopped" in terminal.run("stop", "--service", "--delete-state")
    assert not terminal.folder.exchange.exists()


def test_agents_that_do_not_import_or_do_not_run_fail_with_the_reason_and_builds_can_be_stopped(
    terminal: Terminal,
) -> None:
    # With keys for nowhere: the agent itself is what has to be told of.
    keys = terminal.work / "keys.env"
    keys.write_text("ALPACA_API_KEY=PKTEST\nALPACA_SECRET_KEY=x\nALPACA_URL=http://127.0.0.1:9\n")
    broken = terminal.write("broken", BROKEN.replace("import backtrader", "import no_such_module, backtrader"))
    said = terminal.run("deploy", broken, "--env-file", str(keys), expect=1)
    assert "deployment failed: the agent cannot be imported" in said
    assert "No module named 'no_such_module'" in said
    assert "no_such_module" in terminal.run("logs", "broken", "--build")
    assert terminal.run("status", expect=1)

    terminal.write("broken", BROKEN)
    (terminal.work / "broken" / "dry-work.toml").write_text("[run]\nwarmup = 'many'\n")
    said = terminal.run("deploy", broken, expect=1)
    assert "deployment failed: the agent ended" in said
    terminal.run("stop", "broken", "--delete-state")
    assert not terminal.folder.state_dir("broken").exists()

    # Two calls at once for one source are one build, which is then stopped.
    slow = terminal.write("slow", SLOW)
    client = terminal.client()
    said = terminal.run("deploy", slow, "--no-wait")
    digest = client.call("getTradingAgentStatus", agentId="slow")["sources"][0]["digest"]
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                client.call("deployTradingAgent", agentId="slow", sourceDigest=digest)["buildId"]
            )
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(set(found)) == 1
    assert found[0] in said
    terminal.write("slow", SLOW + "# another one\n")
    assert "another source is being deployed" in terminal.run("deploy", slow, expect=1)
    terminal.run("stop", "slow")
    until(
        lambda: (
            client.call("getTradingAgentStatus", agentId="slow")["status"] == "stopped"
            and not is_locked(terminal.folder.builds / found[0] / "build.lock")
        ),
        "the build was stopped",
    )

    # Somebody else's agent looks like none.
    store = SqliteAgentStore(terminal.folder.documents)
    store.create("theirs", {"userId": "somebody-else", "name": "theirs"})
    store.close()
    for words in (("stop", "theirs"), ("logs", "theirs"), ("restart", "theirs"), ("rollback", "theirs")):
        assert "there is no agent 'theirs' of yours" in terminal.run(*words, expect=2)
    assert "is taken" in terminal.run("deploy", slow, "--agent-id", "theirs", expect=2)
    with pytest.raises(ConfigError, match="not that of the token file"):
        DeployClient(client.url, "x" * 30).call("listTradingAgents")


def test_the_service_answers_its_own_host_only_and_serves_the_page(terminal: Terminal) -> None:
    # Not the usual port, which another test may take while nobody has it.
    url = start_service(terminal.folder, port=find_free_port())
    assert start_service(terminal.folder) == url
    assert terminal.folder.root.stat().st_mode & 0o077 == 0
    host, port = url.removeprefix("http://").split(":")
    for name, status in ((f"{host}:{port}", 200), (f"localhost:{port}", 200), (f"evil.example:{port}", 421)):
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/config.json", headers={"Host": name})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == status, text
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/listTradingAgents", b"{}", method="POST"), timeout=30)
    with refused.value as answer:
        assert (answer.status, json.loads(answer.read())) == (401, {"error": "Unauthorized"})
    assert stop_service(terminal.folder)
    assert not stop_service(terminal.folder)
    assert start_service(terminal.folder) == url  # on the port that it had


def test_a_port_that_is_taken_is_told(terminal: Terminal) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        agent = terminal.write("any", BROKEN)
        said = terminal.run("deploy", agent, "--port", str(port), expect=2)
    assert said.endswith(
        f"the local deploy service cannot be started: port {port} cannot be taken: another program has it"
    )


def test_several_callers_start_one_service(terminal: Terminal) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(start_service(terminal.folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(found) == 4
    assert len(set(found)) == 1


def test_what_the_target_is_set_to_cannot_change_while_it_runs(terminal: Terminal) -> None:
    agent = terminal.write("any", BROKEN)
    start_service(terminal.folder)
    said = terminal.run("deploy", agent, "--speed", "10", expect=2)
    assert "runs with the simulated exchange (synthetic prices, 60 data seconds a second)" in said
    assert "`dry-work stop --service`" in said


def test_an_agent_that_does_not_become_ready_in_time_has_failed(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "deploy")
    folder.make()
    cluster = LocalCluster(folder)
    image = "gcr.io/dry-work-local/trading-agent-mine:20260101-000000-abcdef"
    argv = ("/bin/sh", "-c", "exec sleep 100")
    spec = ProcessSpec(argv=argv, cwd=str(tmp_path), image=image, ready_file=str(tmp_path / "never"))
    cluster.kept("mine").change(lambda _: spec)
    try:
        until(lambda: cluster.rollout("mine").reason == "the process is starting", "the process did not start")
        store = SqliteAgentStore(folder.documents)
        begun = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        fields = {"status": "deploying", "buildId": "20260101-000000-abcdef", "attempt": "restart-1"}
        document = store.create("mine", {**fields, "userId": "local", "rolloutStarted": begun})
        now = begun
        builds = LocalBuildService(folder, now=lambda: now)
        follower = Follower(local_settings(), agents=store, builds=builds, cluster=cluster, now=lambda: now)
        assert follower.follow(document).status == "deploying"
        now = begun + dt.timedelta(seconds=121)
        found = follower.follow(document)
        assert (found.status, found.error) == (
            "deployment_failed",
            "the agent was not ready within 120 s: the process is starting",
        )
        store.close()
    finally:
        assert cluster.stop_all()


def test_the_cluster_takes_what_a_manifest_says_and_nothing_else(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "deploy")
    folder.make()
    cluster = LocalCluster(folder)
    documents, _ = AgentManifest(local_settings())(
        normalised="mine", user_id="local", image="gcr.io/dry-work-local/trading-agent-mine:20260101-000000-abcdef"
    )
    with pytest.raises(PreconditionError, match="are not there any more: deploy again"):
        cluster.apply(documents)
    with pytest.raises(InternalError, match="no objects of the kind Secret"):
        cluster.apply([{"kind": "Secret"}])
    assert cluster.rollout("mine").phase == "missing"
    assert cluster.delete("mine") is False
    assert cluster.logs("mine") == []
    assert cluster.secret_exists("alpaca-credentials")
