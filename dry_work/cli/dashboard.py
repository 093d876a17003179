"""`dry-work dashboard`: show an agent, or a recorded session, in a browser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.cli.options import complete_files

if TYPE_CHECKING:
    from dry_work.dashboard.recorded import RecordedSession
    from dry_work.dashboard.settings import DashboardSettings

_PROGRESS_S = 2.0


@click.command("dashboard")
@click.argument("agent", required=False, metavar="[AGENT|STATE_DIR]")
@click.option(
    "--state-dir", type=click.Path(), metavar="DIR", help="The agent's state directory. Default: ./.dry-work."
)
@click.option(
    "--session",
    "recording",
    metavar="DIR|FILE",
    shell_complete=complete_files,
    help="Scrub through a recorded session: its folder, a state directory with one, or an exported file.",
)
@click.option(
    "--recorded-source", is_flag=True, help="With --session: the source in the record, not the file as it is."
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="",
    help="Where to serve. Default: 127.0.0.1:8070; on anything but loopback a token is asked for.",
)
@click.option("--open", "opens", is_flag=True, help="Open it in the browser of this machine.")
def command(
    agent: str | None,
    state_dir: str | None,
    recording: str | None,
    recorded_source: bool,
    listen: str,
    opens: bool,
) -> int:
    """Show a running agent of this machine in a browser, or scrub through a recorded session.

    An agent that runs with `dry-work run --dashboard` has a dashboard of its own: its address is printed. Of any other
    the files in its state directory are shown: orders, positions, risk state, health; no prices. Halt and flatten work
    in both. Without AGENT it is the one that is running.

    A session is run again first, as `dry-work replay` does; then each slice can be looked at: bars, indicators,
    decisions, what the risk gate said, orders and their legs, latencies, and why nothing was ordered.

    \b
    Examples:
      dry-work dashboard
      dry-work dashboard my-agent --open
      dry-work dashboard --session .dry-work/my-agent

    Exit codes: 0 done, 2 there is no such agent or session, 130 after Ctrl-C.
    """
    from dry_work.dashboard.settings import parse_dashboard
    from dry_work.errors import ConfigError
    from dry_work.settings import read_environment, read_variable

    token = read_variable(read_environment(Path.cwd()), "DRY_WORK_DASHBOARD_TOKEN")
    settings = parse_dashboard(listen, token=token, option="--listen")
    if recording is not None:
        if agent is not None or state_dir is not None:
            raise ConfigError("--session excludes AGENT and --state-dir: name the one that is to be shown")
        return _show_session(Path(recording), settings, recorded_source=recorded_source, opens=opens)
    if recorded_source:
        raise ConfigError("--recorded-source goes with --session")
    if agent is not None and state_dir is None and Path(agent).is_dir():
        agent, state_dir = None, agent
    return _show_agent(agent, state_dir, settings, opens=opens)


def _show_agent(agent: str | None, state_dir: str | None, settings: DashboardSettings, *, opens: bool) -> int:
    from functools import partial

    from dry_work.cli.halt import build_operator, find_place
    from dry_work.cli.signals import EXIT_DONE
    from dry_work.dashboard.access import Access
    from dry_work.dashboard.address import read_address
    from dry_work.dashboard.commands import act
    from dry_work.dashboard.files import FilesReader
    from dry_work.dashboard.server import start_server
    from dry_work.observability.logging import set_up_logging

    set_up_logging()
    place = find_place(agent, state_dir)
    link = read_address(place.path, pid=place.pid)
    if link:
        click.echo(f"{place.name} shows itself: {link}")
        _open(link, opens)
        return EXIT_DONE
    reader = FilesReader(place.path)
    with contextlib.closing(reader):
        reader.start()
        server = start_server(
            Access(settings.host, settings.token),
            settings,
            board=reader.board,
            watched=reader,
            mode="files",
            act=partial(act, partial(build_operator, place.agents[0] if place.agents else None, str(place.path))),
            note="Read from the agent's files, without prices: `dry-work run --dashboard` shows more.",
        )
        return _serve(server, f"{place.name}, by its files", opens=opens)


def _show_session(place: Path, settings: DashboardSettings, *, recorded_source: bool, opens: bool) -> int:
    from dry_work.dashboard.access import Access
    from dry_work.dashboard.server import start_server
    from dry_work.observability.logging import set_up_logging

    set_up_logging()
    session = _read(place, recorded_source=recorded_source)
    server = start_server(Access(settings.host, settings.token), settings, session=session)
    return _serve(server, f"session {session.name}, {len(session.slices):,} slices", opens=opens)


def _read(place: Path, *, recorded_source: bool) -> RecordedSession:
    import time

    from dry_work.cli.replay import quiet_log
    from dry_work.dashboard.recorded import read_session
    from dry_work.engine.replay import recorded_agent
    from dry_work.recording.flight_log import open_flight

    due_s = time.monotonic() + _PROGRESS_S

    def tell_progress(slices: int) -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + _PROGRESS_S
            click.echo(f"replayed {slices:,} slices")

    with (
        quiet_log(),
        open_flight(place) as reader,
        recorded_agent(reader.facts, recorded_source=recorded_source) as (agent, notes),
    ):
        for note in notes:
            click.echo(f"note: {note}")
        return read_session(reader, agent, on_progress=tell_progress)


def _serve(server: Any, what: str, *, opens: bool) -> int:
    from dry_work.cli.signals import StopWaiter

    with StopWaiter() as waiter, _stopping(server):
        click.echo(f"{what}: {server.link} (Ctrl-C ends it)")
        _open(server.link, opens)
        return waiter.wait_for_code()


@contextlib.contextmanager
def _stopping(server: Any) -> Iterator[None]:
    try:
        yield
    finally:
        server.stop()


def _open(link: str, opens: bool) -> None:
    if opens:
        click.launch(link)
