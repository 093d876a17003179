"""The dashboard's server: a thread of its own with pages, JSON, server-sent events and the brake. HTTP only.

Nothing here holds up the run: what is shown is read from a `Board`, which its writer never waits for. A reader that is
slow gets the newest state when it takes it, and none of those in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import mimetypes
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import web

from dry_work.clock import Clock, SystemClock
from dry_work.dashboard.access import SECURITY_HEADERS, Access
from dry_work.dashboard.board import Board
from dry_work.dashboard.commands import ACTIONS, ActionResult
from dry_work.dashboard.sessions import SessionSource
from dry_work.dashboard.settings import DashboardSettings
from dry_work.dashboard.snapshot import RiskView, encode_json
from dry_work.errors import ConfigError, DryWorkError
from dry_work.market.calendar import shared_calendar

PUSH_S = 0.25  # between two looks for changes while somebody reads
PULSE_S = 2.0  # between two signs of life
READERS = 32  # at once
WRITE_TIMEOUT_S = 20.0  # after which a reader that takes nothing is left
START_TIMEOUT_S = 10.0
_BODY_BYTES = 4096
_JSON = "application/json"

PAGE = Path(__file__).with_name("page")
CHARTS = "lightweight_charts"  # the package whose script draws
CHARTS_SCRIPT = Path("js") / "lightweight-charts.js"

_log = structlog.get_logger(__name__)

Act = Callable[[str, str], ActionResult]


class Watched(Protocol):
    """Who looks at a board, as its writer wants to know it."""

    readers: int


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the page has to know before anything else."""

    mode: str  # live, files, session
    charts: bool  # whether the package that draws is installed
    actions: tuple[str, ...] = ()
    note: str = ""


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life."""

    now_ms: int
    engine_age_ms: float | None = None  # since the engine's loop turned last
    stocks_open_ms: int | None = None  # when the session that is open now began; None: closed
    risk: RiskView | None = None


class DashboardServer:
    """Serves a board, or a recorded session, until it is stopped.

    Args:
        access: who may do what.
        host, port: to listen on; port 0 takes any free one.
        board: what is shown of a run.
        watched: is told how many look at it.
        session: what is shown of a recorded session instead.
        act: carries out what the page asks for; None: nothing can be asked for.
        note: shown on the page, on how it came about.
        clock: the machine's.
    """

    def __init__(
        self,
        access: Access,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        board: Board | None = None,
        watched: Watched | None = None,
        session: SessionSource | None = None,
        act: Act | None = None,
        note: str = "",
        mode: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._access = access
        self._host = host
        self._port = port
        self._board = board
        self._watched = watched
        self._session = session
        self._act = act
        self._note = note
        self._mode = mode or ("session" if session is not None else "live")
        self._clock = clock or SystemClock()
        self._calendar = shared_calendar()
        self._readers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._problem: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._charts = find_charts()

    @property
    def url(self) -> str:
        """Address of the page, without the token."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/"

    @property
    def link(self) -> str:
        """Address of the page with what it needs to be opened."""
        return f"{self.url}#token={self._access.token}" if self._access.token else self.url

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._port

    def start(self) -> None:
        """Begin to serve.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._thread = threading.Thread(target=self._run_thread, name="dashboard", daemon=True)
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise DryWorkError(f"the dashboard did not start within {START_TIMEOUT_S:g} s")
        if self._problem is not None:
            self._thread.join(START_TIMEOUT_S)
            reason = getattr(self._problem, "strerror", None) or self._problem
            raise ConfigError(f"dashboard {self._host}:{self._port}: cannot be listened on: {reason}")

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the server and its thread. May be called twice, and before `start`."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # it is closed already
                loop.call_soon_threadsafe(stopping.set)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    # The thread

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._problem = error
            if self._started.is_set():
                _log.error("the dashboard has ended", error=repr(error))  # the run goes on without it
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=_BODY_BYTES, middlewares=[self._guard])
        app.router.add_get("/api/about", self._tell_about)
        app.router.add_get("/api/snapshot", self._tell_snapshot)
        app.router.add_get("/api/events", self._stream)
        app.router.add_get("/api/session", self._tell_session)
        app.router.add_get("/api/session/at", self._tell_moment)
        app.router.add_post("/api/{action}", self._take_action)
        app.router.add_get("/library.js", self._send_charts)
        app.router.add_get("/{name:[a-z_.-]*}", self._send_page)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handle_signals=False)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            self._port = runner.addresses[0][1]
            self._started.set()
            await self._stopping.wait()
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        refusal = self._access.check(request.method, request.path, request.headers)
        if refusal is not None:
            response: web.StreamResponse = _answer({"error": refusal.text}, status=refusal.status)
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = _answer({"error": error.reason}, status=error.status)
            except DryWorkError as error:
                response = _answer({"error": str(error)}, status=400)
        if not response.prepared:
            response.headers.update(SECURITY_HEADERS)
        return response

    # Pages

    async def _send_page(self, request: web.Request) -> web.StreamResponse:
        path = PAGE / (request.match_info["name"] or "index.html")
        kind, _ = mimetypes.guess_type(path.name)
        try:
            body = await asyncio.to_thread(path.read_bytes)
        except OSError:
            raise web.HTTPNotFound(reason="there is no such page") from None
        return web.Response(body=body, headers={"Content-Type": _TYPES.get(path.suffix, kind or "text/plain")})

    async def _send_charts(self, _request: web.Request) -> web.StreamResponse:
        if self._charts is None:
            raise web.HTTPNotFound(reason=f"charts need the package {CHARTS.replace('_', '-')}")
        body = await asyncio.to_thread(self._charts.read_bytes)
        return web.Response(body=body, headers={"Content-Type": _TYPES[".js"]})

    # What is shown

    async def _tell_about(self, _request: web.Request) -> web.StreamResponse:
        actions = ACTIONS if self._act is not None else ()
        return _answer(About(mode=self._mode, charts=self._charts is not None, actions=actions, note=self._note))

    def _the_board(self) -> Board:
        if self._board is None:
            raise web.HTTPNotFound(reason="this is a recorded session, not a run")
        return self._board

    async def _tell_snapshot(self, request: web.Request) -> web.StreamResponse:
        board = self._the_board()
        board.refresh()
        return _answer(board.changes(None, request.query.get("symbol", "")))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        board = self._the_board()
        if self._readers >= READERS:
            raise web.HTTPServiceUnavailable(reason=f"{READERS} readers are there already")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **SECURITY_HEADERS})
        response.headers["X-Accel-Buffering"] = "no"
        self._count(1)
        try:
            await response.prepare(request)
            await self._write_events(
                request, response, board, request.headers.get("Last-Event-ID", ""), request.query.get("symbol", "")
            )
        except (ConnectionResetError, TimeoutError):
            pass  # it is gone, or takes nothing
        finally:
            self._count(-1)
        return response

    def _count(self, change: int) -> None:
        self._readers += change
        if self._watched is not None:
            self._watched.readers = self._readers

    async def _write_events(
        self, request: web.Request, response: web.StreamResponse, board: Board, cursor: str, symbol: str
    ) -> None:
        assert self._stopping is not None
        assert self._loop is not None
        pulse_due = self._loop.time()
        while not self._stopping.is_set() and request.transport is not None:
            board.refresh()
            delta = board.changes(cursor, symbol)
            if not delta.is_empty:
                cursor = delta.cursor
                await _send(response, f"id: {cursor}\nevent: delta\ndata: ".encode() + encode_json(delta) + b"\n\n")
            if self._loop.time() >= pulse_due:
                pulse_due = self._loop.time() + PULSE_S
                pulse = await self._take_pulse(board)
                await _send(response, b"event: pulse\ndata: " + encode_json(pulse) + b"\n\n")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), PUSH_S)

    async def _take_pulse(self, board: Board) -> Pulse:
        now_ns = self._clock.time_ns()
        head = board.head
        market_ns = head.market_ms * 1_000_000 if head.run.own_time else now_ns
        age = board.engine_age_s
        opened_ns = None
        if market_ns and any(not row.crypto for row in tuple(board.rows.values())):
            # The first time a calendar is loaded, which takes a while.
            opened_ns = await asyncio.to_thread(self._session_open, market_ns - 1)
        return Pulse(
            now_ms=now_ns // 1_000_000,
            engine_age_ms=None if age is None else age() * 1000,
            stocks_open_ms=None if opened_ns is None else opened_ns // 1_000_000,
            risk=board.risk(),
        )

    def _session_open(self, now_ns: int) -> int | None:
        try:
            session = self._calendar.session_at(now_ns)
        except ConfigError:  # a time that the calendar does not know
            return None
        return None if session is None else session.open_ns

    # A recorded session

    def _the_session(self) -> SessionSource:
        if self._session is None:
            raise web.HTTPNotFound(reason="this is a run, not a recorded session")
        return self._session

    async def _tell_session(self, _request: web.Request) -> web.StreamResponse:
        session = self._the_session()
        return _answer(await asyncio.to_thread(session.outline))

    async def _tell_moment(self, request: web.Request) -> web.StreamResponse:
        session = self._the_session()
        text, symbol = request.query.get("turn", ""), request.query.get("symbol", "")
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise web.HTTPBadRequest(reason="turn: expected a whole number")
        return _answer(await asyncio.to_thread(session.at, int(text), symbol))

    # The brake

    async def _take_action(self, request: web.Request) -> web.StreamResponse:
        action = request.match_info["action"]
        if action not in ACTIONS:
            raise web.HTTPNotFound(reason=f"there is no action {action!r}")
        if self._act is None:
            raise web.HTTPConflict(reason="nothing can be done here: it is only looked at")
        if request.content_type != _JSON:
            raise web.HTTPUnsupportedMediaType(reason=f"expected {_JSON}")
        try:
            asked = msgspec.json.decode(await request.read(), type=_Asked)
        except msgspec.MsgspecError as error:
            raise web.HTTPBadRequest(reason=f"expected an object with `reason`: {error}") from None
        # A thread of its own: those of the pool may all be busy.
        result = await _run_apart(self._act, action, asked.reason)
        _log.warning("asked by the dashboard", action=action, done=result.done, answer=" | ".join(result.lines))
        return _answer(result)


def start_server(access: Access, settings: DashboardSettings, **given: Any) -> DashboardServer:
    """Return a server that serves, where the settings say; the arguments are those of `DashboardServer`.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    server = DashboardServer(access, host=settings.host, port=settings.port, **given)
    try:
        server.start()
    except ConfigError:
        if not settings.may_move or settings.port == 0:
            raise
        server = DashboardServer(access, host=settings.host, port=0, **given)
        server.start()
    return server


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


async def _run_apart(act: Act, action: str, reason: str) -> ActionResult:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[ActionResult] = loop.create_future()

    def settle(found: ActionResult | BaseException) -> None:
        if outcome.done():
            return
        if isinstance(found, BaseException):
            outcome.set_exception(found)
        else:
            outcome.set_result(found)

    def work() -> None:
        try:
            found: ActionResult | BaseException = act(action, reason)
        except BaseException as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=work, name=f"dashboard {action}", daemon=True).start()
    return await outcome


async def _send(response: web.StreamResponse, data: bytes) -> None:
    # `write` waits until the kernel takes it; one that never does is left.
    await asyncio.wait_for(response.write(data), WRITE_TIMEOUT_S)


def _answer(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=encode_json(value), status=status, headers={"Content-Type": _JSON})


def find_charts() -> Path | None:
    """Return the script of the package that draws charts, None when it is not installed. It is not imported."""
    try:
        found = importlib.util.find_spec(CHARTS)
    except (ImportError, ValueError):
        return None
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder) / CHARTS_SCRIPT
        if path.is_file():
            return path
    return None


_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
}
