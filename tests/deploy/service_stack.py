"""The deploy service with its real clients, on servers of this process."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.archive import zip_files
from deploy.build_cloud import CloudBuildService
from deploy.cluster_kubernetes import KubernetesCluster
from deploy.manifest import AgentManifest
from deploy.ports import Caller, SourceStore
from deploy.service import DeployService
from deploy.settings import DeploySettings
from deploy.source_folder import FolderSourceStore
from deploy.store_sqlite import SqliteAgentStore
from tests.deploy.cloud_build_server import CloudBuildServer, Fetch
from tests.deploy.kubernetes_server import KubernetesServer

DEADLINE_S = 60.0
ANN = Caller(user_id="ann")
BEN = Caller(user_id="ben")

AGENT = b"import backtrader as bt\n\n\nclass Agent(bt.Strategy):\n    params = (('period', 10),)\n"


def agent_files(comment: str = "", **more: bytes) -> dict[str, bytes]:
    """Return the files of a small agent; the comment makes it another one."""
    return {"agent/agent.py": AGENT + f"# {comment}\n".encode(), "symbols.txt": b"AAPL\nBTC/USD\n", **more}


def agent_zip(comment: str = "", **more: bytes) -> bytes:
    """Return a zip of a small agent."""
    return zip_files(agent_files(comment, **more))


class Clock:
    """The time, which a test may move forward."""

    def __init__(self) -> None:
        self.offset = dt.timedelta()

    def __call__(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + self.offset

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.offset += dt.timedelta(seconds=seconds)


class Stack:
    """A service and what it works with."""

    def __init__(self, folder: Path, *, sources: SourceStore | None = None, fetch: Fetch | None = None) -> None:
        self.clock = Clock()
        self.settings = DeploySettings(project="my-project", call_timeout_s=10.0)
        self.kubernetes = KubernetesServer()
        self.cloud = CloudBuildServer(folder / "builds", fetch=fetch or _no_bucket, apply=self.kubernetes.apply_text)
        self.cloud.run_imports = False
        self.agents = SqliteAgentStore(folder / "agents.sqlite")
        self.sources = sources or FolderSourceStore(folder / "sources")
        self.builds = CloudBuildService(
            "my-project", timeout_s=10.0, read_log=self.cloud.read_log, client=self.cloud.client()
        )
        self.cluster = KubernetesCluster(self.kubernetes.client(), "trading-agents", now=self.clock, timeout_s=10.0)
        numbers = itertools.count(1)
        self.service = DeployService(
            self.settings,
            agents=self.agents,
            sources=self.sources,
            builds=self.builds,
            cluster=self.cluster,
            render=AgentManifest(self.settings),
            now=self.clock,
            new_id=lambda: f"{next(numbers):020x}",
            sleep=lambda seconds: time.sleep(seconds / 20),
        )

    def close(self) -> None:
        """Stop everything."""
        self.service.close()
        self.cloud.close()
        self.kubernetes.close()

    def create(self, agent_id: str = "My_Agent", caller: Caller = ANN, **fields: Any) -> str:
        """Make an agent, with further fields as other programs write them."""
        self.service.create(caller, agent_id, "My agent")
        if fields:
            document = self.agents.read(agent_id)
            assert document is not None
            self.agents.update(document, fields)
        return agent_id

    def fields(self, agent_id: str = "My_Agent") -> Mapping[str, Any]:
        """Return the document's fields."""
        document = self.agents.read(agent_id)
        assert document is not None
        return document.fields

    def settle(self, agent_id: str = "My_Agent", caller: Caller = ANN) -> dict[str, Any]:
        """Ask for the status until the agent is no longer deploying."""
        return self.until(lambda: self.service.status(caller, agent_id), lambda found: found["status"] != "deploying")

    def deployed(self, agent_id: str = "My_Agent", comment: str = "", caller: Caller = ANN) -> dict[str, Any]:
        """Upload and deploy an agent, and wait for it to run."""
        self.service.upload(caller, agent_id, agent_zip(comment))
        self.service.deploy(caller, agent_id)
        found = self.settle(agent_id, caller)
        assert found["status"] == "deployed", found
        return found

    def until(self, ask: Callable[[], Any], holds: Callable[[Any], object]) -> Any:
        """Ask until it holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(found := ask()):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found


def _no_bucket(bucket: str, name: str, generation: str) -> bytes:
    raise FileNotFoundError(bucket, name, generation)
