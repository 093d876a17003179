"""The deploy service of the local target: the real functions on the loopback, with files and processes behind them.

`python -m deploy.local FOLDER` serves until SIGTERM. Agents and builds are processes of their own and go on without it;
the next service finds them by their files.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import logging.handlers
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.errors import ConfigurationError, DeployError
from deploy.factory import new_id, utc_now
from deploy.http import Api, Response
from deploy.identity import LocalTokenVerifier, write_token_file
from deploy.local_build import LocalBuildService
from deploy.local_cluster import LocalCluster
from deploy.local_exchange import PROJECT
from deploy.local_files import LocalFolder, read_json, take_lock, write_json
from deploy.local_spec import detach
from deploy.manifest import AgentManifest
from deploy.page import PageSettings, page_response
from deploy.service import DeployService
from deploy.settings import DeploySettings
from deploy.source_folder import FolderSourceStore
from deploy.store_sqlite import SqliteAgentStore

FOLDER_VARIABLE = "LOCAL_DEPLOY_FOLDER"
DEFAULT_PORT = 8190
ROLLOUT_TIMEOUT_S = 120
_FOLLOW_S = 0.5
_BUSY = 3  # exit code: another service runs
_HERE = Path(__file__).parent
# In the package where it is installed, beside it in a checkout.
_FUNCTIONS = (_HERE / "functions_main.py", _HERE.parent / "functions" / "main.py")

_log = logging.getLogger("deploy.local")


def local_settings() -> DeploySettings:
    """Return the settings of a local service. The image is a name; nothing is pushed."""
    return DeploySettings(project=PROJECT, rollout_timeout_s=ROLLOUT_TIMEOUT_S, cors_origins=())


def build_api(environment: Mapping[str, str]) -> Api:
    """Return the functions on the local target whose folder `LOCAL_DEPLOY_FOLDER` names; see `deploy.factory`."""
    return _build(Path(environment[FOLDER_VARIABLE]))


@functools.cache
def _build(root: Path) -> Api:
    folder = LocalFolder(root)
    settings = local_settings()
    service = DeployService(
        settings,
        agents=SqliteAgentStore(folder.documents),
        sources=FolderSourceStore(folder.sources),
        builds=LocalBuildService(folder, now=utc_now),
        cluster=LocalCluster(folder),
        render=AgentManifest(settings),
        now=utc_now,
        new_id=new_id,
        sleep=time.sleep,
    )
    return Api(service, LocalTokenVerifier(folder.token))


class LocalServer:
    """Serves the functions and the page on a port of the loopback.

    Args:
        port: 0 takes any; None the one it had the last time, or the usual one, or any.
    """

    def __init__(self, folder: LocalFolder, *, port: int | None) -> None:
        import functions_framework
        from werkzeug.serving import make_server

        os.environ["DEPLOY_SERVICE_FACTORY"] = "deploy.local:build_api"
        os.environ[FOLDER_VARIABLE] = str(folder.root)
        self._api = _build(folder.root)
        source = next((path for path in _FUNCTIONS if path.is_file()), None)
        if source is None:
            raise ConfigurationError("functions/main.py is not there: it was not installed with the package")
        functions: Wsgi = functions_framework.create_app("tradingAgents", str(source))
        page = PageSettings(
            token_file=str(folder.token), max_archive_bytes=self._api.service.settings.max_archive_bytes
        )
        self._folder = folder
        for candidate in _ports(folder, port):
            try:
                self._server = make_server("127.0.0.1", candidate, Gate(functions, page), threaded=True)
                break
            except (OSError, SystemExit) as error:  # werkzeug prints and exits where a port is taken
                if candidate == 0 or port is not None:
                    raise ConfigurationError(f"port {candidate} cannot be taken: {_explain(error)}") from None
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._stopping = threading.Event()

    def serve(self) -> None:
        """Serve until `stop`; writes where it is."""
        cluster = LocalCluster(self._folder)
        follower = threading.Thread(target=self._follow, args=(cluster,), name="follower")
        follower.start()
        facts = {"url": self.url, "port": self._server.server_port, "pid": os.getpid(), "started": time.time()}
        write_json(self._folder.service, facts)
        _log.info("serves on %s", self.url)
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._stopping.set()
            follower.join(30.0)
            self._server.server_close()
            self._api.service.close()
            _build.cache_clear()

    def stop(self) -> None:
        """End `serve`; from any thread but the one that serves."""
        self._server.shutdown()

    def _follow(self, cluster: LocalCluster) -> None:
        while True:
            try:
                cluster.reconcile()
                self._api.service.follow()
            except DeployError as error:
                _log.warning("%s", error)
            except Exception:
                _log.exception("following failed")  # and goes on: nobody else does it
            if self._stopping.wait(_FOLLOW_S):
                return


Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]
_HOSTS = ("127.0.0.1", "localhost")


class Gate:
    """Answers the page, and hands everything else to the functions.

    A request that names another host comes from a page of that host whose name was bent to this address: refused.
    """

    def __init__(self, functions: Wsgi, page: PageSettings) -> None:
        self._functions, self._page = functions, page

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
        if host not in _HOSTS:
            return _answer(start_response, _refusal())
        found = page_response(
            str(environ.get("PATH_INFO", "")),
            method=str(environ.get("REQUEST_METHOD", "")),
            headers={
                name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
                for name, value in environ.items()
                if name.startswith("HTTP_")
            },
            settings=self._page,
        )
        return self._functions(environ, start_response) if found is None else _answer(start_response, found)


def _refusal() -> Response:
    body = json.dumps({"error": "Invalid host", "message": "the local service answers as 127.0.0.1 or localhost"})
    return Response(status=421, body=body.encode(), headers={"Content-Type": "application/json"})


def _answer(start_response: Any, response: Response) -> Iterable[bytes]:
    headers = [*response.headers.items(), ("Content-Length", str(len(response.body)))]
    start_response(f"{response.status} {_PHRASES.get(response.status, 'Answer')}", headers)
    return [response.body]


_PHRASES = {200: "OK", 304: "Not Modified", 404: "Not Found", 421: "Misdirected Request"}


def _ports(folder: LocalFolder, port: int | None) -> tuple[int, ...]:
    if port is not None:
        return (port,)
    before = (read_json(folder.service) or {}).get("port")
    return tuple(dict.fromkeys((*((before,) if isinstance(before, int) else ()), DEFAULT_PORT, 0)))


def _explain(error: BaseException) -> str:
    in_use = isinstance(error, SystemExit) or getattr(error, "errno", None) == errno.EADDRINUSE
    return "another program has it" if in_use else str(error)


def _set_up_logging(folder: LocalFolder) -> None:
    handler = logging.handlers.RotatingFileHandler(folder.service_log, maxBytes=1 << 20, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # the functions have lines of their own


def main(arguments: list[str]) -> int:
    """Serve a folder: its path, a port or `-`, and the descriptor of the service's lock, if somebody took it."""
    folder = LocalFolder(Path(arguments[0]))
    folder.make()
    if len(arguments) < 3 and take_lock(folder.service_lock) is None:
        return _BUSY
    write_token_file(folder.token, secrets.token_urlsafe(32))
    _set_up_logging(folder)
    try:
        server = LocalServer(folder, port=None if arguments[1:2] in ([], ["-"]) else int(arguments[1]))
    except DeployError as error:
        write_json(folder.service, {"error": str(error)})
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.stop).start())
    server.serve()
    return 0


if __name__ == "__main__":
    detach()
    sys.exit(main(sys.argv[1:]))
