"""HTTP entry points of the deploy service for Cloud Functions, and the one that follows builds.

Each function of the service is a target of its own name: `functions-framework --target deployTradingAgent`. The target
`tradingAgents` serves all of them in one place, by the last part of the path, and the web page.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import flask
import functions_framework
from cloudevents.http import CloudEvent

# In a checkout the package stands beside this folder; a staged function has it in its own.
if not (Path(__file__).parent / "deploy").is_dir():
    sys.path.append(str(Path(__file__).parents[1]))

from deploy.factory import build_api
from deploy.http import FUNCTIONS, Api, Request, Response
from deploy.page import page_response, page_settings

_lock = threading.Lock()
_api: Api | None = None


def api() -> Api:
    """Return the service of this process, made by its first call."""
    global _api
    with _lock:
        if _api is None:
            _api = build_api(os.environ)
        return _api


def serve(name: str, request: flask.Request) -> flask.Response:
    """Answer a request of a function."""
    served = api()
    # One byte more tells that a body is too long; the rest of it is not read.
    body = request.stream.read(served.max_body_bytes + 1)
    response = served.handle(
        name,
        Request(
            method=request.method,
            body=body,
            headers={key.lower(): value for key, value in request.headers.items()},
            query=request.args.to_dict(),
        ),
    )
    return _answer(response)


def serve_page(request: flask.Request) -> flask.Response | None:
    """Answer a request of a file of the page; None when it is for none."""
    response = page_response(
        request.path,
        method=request.method,
        headers={key.lower(): value for key, value in request.headers.items()},
        settings=page_settings(api().service.settings),
    )
    return None if response is None else _answer(response)


def _answer(response: Response) -> flask.Response:
    return flask.Response(response.body, response.status, dict(response.headers))


def _entry(name: str) -> Callable[[flask.Request], flask.Response]:
    def entry(request: flask.Request) -> flask.Response:
        return serve(name, request)

    entry.__name__ = name
    return functions_framework.http(entry)  # type: ignore[no-any-return]


globals().update({name: _entry(name) for name in FUNCTIONS})


@functions_framework.http  # type: ignore[untyped-decorator]
def tradingAgents(request: flask.Request) -> flask.Response:  # noqa: N802 - the name is the target
    """Serve every function in one place, `POST /deployTradingAgent`, and the page: `GET /`."""
    page = serve_page(request) if request.method in ("GET", "HEAD") else None
    return page or serve(request.path.rstrip("/").rpartition("/")[2], request)


@functions_framework.cloud_event  # type: ignore[untyped-decorator]
def followBuilds(event: CloudEvent) -> None:  # noqa: N802 - the name is the target
    """Follow every agent that is being deployed or stopped.

    Triggered by Cloud Build's messages on the topic `cloud-builds`, and every minute by a schedule, since a rollout
    ends after its build.
    """
    del event  # it says only that something has happened
    for problem in api().service.follow():
        logging.getLogger(__name__).warning("not followed: %s", problem)
