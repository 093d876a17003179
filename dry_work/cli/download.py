"""`dry-work download`: history from Alpaca into the catalog."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dry_work.alpaca.download import DownloadProgress, DownloadResult
    from dry_work.alpaca.download_plan import Series, Span, Unit
    from dry_work.alpaca.download_record import DownloadRecord
    from dry_work.recording.catalog import CatalogWriter
    from dry_work.recording.tables import Kind
    from dry_work.settings import Credentials

_LINE_S = 5.0
_SHOWN_UNITS = 20
_KEYS = ("ALPACA_API_KEY", "PAPER_ALPACA_API_KEY_ID")


@click.command("download")
@click.option(
    "--symbols",
    type=click.Path(),
    metavar="FILE|LIST",
    help="File with one symbol a line, or a comma list.  [default: symbols.txt]",
)
@click.option("--start", metavar="TIME", help="First date or time, UTC unless it has a zone: 2024-01-02.")
@click.option("--end", metavar="TIME", help="Last date, included, or a time.  [default: as late as there is data]")
@click.option("--days", type=int, metavar="N", help="So many days up to the end, instead of --start.")
@click.option(
    "--kind",
    type=click.Choice(("bars", "trades", "quotes")),
    default="bars",
    show_default=True,
    help="What to download.",
)
@click.option(
    "--timeframe", type=click.Choice(("1m", "5m", "1h", "1d")), default="1m", show_default=True, help="Length of bars."
)
@click.option(
    "--feed",
    type=click.Choice(("sip", "iex", "delayed_sip")),
    default="sip",
    show_default=True,
    help="Feed of stocks.",
)
@click.option(
    "--adjustment",
    type=click.Choice(("raw", "split", "all")),
    default="raw",
    show_default=True,
    help="Adjustment of the bars of stocks.",
)
@click.option("--out", default="data", show_default=True, metavar="DIR|gs://…", help="Where the catalog is.")
@click.option("--dry-run", is_flag=True, help="Tell what would be downloaded, and do nothing.")
@click.pass_context
def command(
    context: click.Context,
    *,
    symbols: str | None,
    start: str | None,
    end: str | None,
    days: int | None,
    kind: Kind,
    timeframe: str,
    feed: str,
    adjustment: str,
    out: str,
    dry_run: bool,
) -> None:
    """Download history from Alpaca: bars, trades or quotes of stocks, crypto pairs and options (OCC symbols).

    What is there already is not downloaded again, so the same command goes on after a stop, a kill or a failure. Days
    that are not over are fetched again the next time. Credentials come from ALPACA_API_KEY and ALPACA_SECRET_KEY;
    crypto needs none. Without a subscription, stocks of the SIP and options are given up to 15 minutes ago, which is
    the default end.

    \b
    Examples:
      dry-work download --symbols SPY,BTC/USD --start 2024-01-02 --end 2024-01-31
      dry-work download --days 5 --kind trades --feed iex --out gs://my-bucket/catalog
      dry-work download --symbols SPY --start 2023-01-01 --timeframe 1d --adjustment all --out data-adjusted
    """
    from dry_work.alpaca.download import plan_units
    from dry_work.alpaca.download_plan import build_series, choose_span
    from dry_work.alpaca.download_record import DownloadRecord
    from dry_work.cli.publish import parse_symbol_list
    from dry_work.cli.signals import EXIT_DONE, EXIT_USAGE, StopWaiter
    from dry_work.clock import SystemClock
    from dry_work.market.symbols import is_crypto
    from dry_work.observability.logging import set_up_logging
    from dry_work.recording.catalog import CatalogWriter
    from dry_work.settings import DEFAULT_SYMBOLS, read_credentials, read_environment
    from dry_work.storage import open_storage

    environment = read_environment(Path.cwd())
    set_up_logging(environment.get("LOG_LEVEL"))
    names = parse_symbol_list(symbols or str(DEFAULT_SYMBOLS))
    series = build_series(names, kind=kind, timeframe=timeframe, feed=feed, adjustment=adjustment)
    now_ns = SystemClock().time_ns()
    spans = {one: choose_span(one, start=start, end=end, days=days, now_ns=now_ns) for one in series}
    data_url = _choose_url(environment)
    storage = open_storage(out)
    with contextlib.closing(storage):
        record = DownloadRecord(storage)
        catalog = CatalogWriter(storage, prefer="new")
        units, there = plan_units(spans, catalog=catalog, record=record)
        click.echo(describe_plan(spans, units, there, out=out))
        if dry_run:
            for line in list_units(units):
                click.echo(line)
            return
        if not units:
            return
        # A key that is there is used for crypto too: its budget is larger than that of an address.
        credentials: Credentials | None = None
        if not all(map(is_crypto, names)) or any(environment.get(name) for name in _KEYS):
            credentials = read_credentials(environment)
        with StopWaiter() as waiter, _show_progress(len(units)) as show:
            begun_s = time.monotonic()
            result = _run(
                units,
                credentials=credentials,
                data_url=data_url,
                catalog=catalog,
                record=record,
                work_dir=_choose_work_dir(out),
                pause=lambda seconds: waiter.wait(seconds) is not None,
                show=show,
            )
            seconds = time.monotonic() - begun_s
            code = waiter.wait(0.0)
    report = catalog.report
    click.echo(describe_end(result, units=len(units), seconds=seconds, files=report.files_written, out=out))
    if result.refused:
        told = "\n  ".join(result.refused.values())
        click.echo(f"dry-work: Alpaca refused {len(result.refused)} of {len(series)} symbols:\n  {told}", err=True)
    if result.stopped:
        context.exit(code or EXIT_DONE)
    context.exit(EXIT_USAGE if result.refused else EXIT_DONE)


def describe_plan(spans: Mapping[Series, Span], units: Sequence[Unit], there: Sequence[Unit], *, out: str) -> str:
    """Return what will be downloaded, in one line."""
    from dry_work.alpaca.download_plan import estimate_requests

    first = next(iter(spans))
    what = f"{first.timeframe} {first.kind}".strip()
    symbols = f"{len(spans)} symbol{'s' if len(spans) != 1 else ''}"
    if not units:
        empty = not there
        return f"{what} of {symbols}: " + ("the period holds no time yet" if empty else f"all there in {out}")
    about = "about" if first.kind == "bars" else "at least"
    known = f", {len(there):,} there" if there else ""
    requests = f"{about} {estimate_requests(units):,} requests"
    return f"{what} of {symbols} into {out}: {len(units):,} units to download{known}, {requests}"


def list_units(units: Sequence[Unit]) -> list[str]:
    """Return the units of a dry run as lines, the first ones and how many there are besides."""
    lines = [f"  {unit.describe()}" for unit in units[:_SHOWN_UNITS]]
    return [*lines, f"  and {len(units) - _SHOWN_UNITS:,} more"] if len(units) > _SHOWN_UNITS else lines


def describe_end(result: DownloadResult, *, units: int, seconds: float, files: int, out: str) -> str:
    """Return what was done, in one line; after a stop also how to go on."""
    done = f"{result.rows:,} rows in {seconds:.1f} s, {files:,} files written in {out}"
    if result.stopped:
        return f"stopped: {result.units_done:,} of {units:,} units done, {done}; the same command goes on from here"
    return f"downloaded: {done}"


def describe_progress(progress: DownloadProgress, *, seconds: float) -> str:
    """Return how far it is, in one line."""
    rate = f", {progress.rows / seconds:,.0f} rows/s" if seconds > 0 and progress.rows else ""
    left = ""
    if progress.units_done and progress.units_done < progress.units:
        left_s = seconds / progress.units_done * (progress.units - progress.units_done)
        left = f", about {describe_duration(left_s)} left"
    waits = f"; waiting for {progress.waiting_for}" if progress.waiting_for else ""
    return (
        f"{progress.units_done:,} of {progress.units:,} units, {progress.rows:,} rows{rate}{left}; "
        f"{progress.working_on}{waits}"
    )


def describe_duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as 2 h 5 min."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _choose_url(environment: Mapping[str, str]) -> str:
    """Return the market-data address: that of a simulated exchange when the trading address is one."""
    from dry_work.alpaca.simulated import is_alpaca
    from dry_work.settings import DATA_URL, parse_url, read_variable

    trading = read_variable(environment, "ALPACA_URL")
    beside = trading if trading and not is_alpaca(trading) else DATA_URL
    return parse_url(read_variable(environment, "ALPACA_DATA_URL") or beside, name="ALPACA_DATA_URL")


def _choose_work_dir(out: str) -> Path:
    """Return the local folder for pages of units in work."""
    import hashlib

    from dry_work.alpaca.download_record import FOLDER
    from dry_work.settings import DEFAULT_STATE_DIR
    from dry_work.storage import is_remote

    if is_remote(out):
        return DEFAULT_STATE_DIR / "downloads" / hashlib.sha256(out.encode()).hexdigest()[:16]
    return Path(out).expanduser() / FOLDER


def _run(
    units: Sequence[Unit],
    *,
    credentials: Credentials | None,
    data_url: str,
    catalog: CatalogWriter,
    record: DownloadRecord,
    work_dir: Path,
    pause: Callable[[float], bool],
    show: Callable[[DownloadProgress], None],
) -> DownloadResult:
    from dry_work.alpaca.download import Downloader
    from dry_work.alpaca.download_api import HistoryApi
    from dry_work.alpaca.download_record import WorkFolder
    from dry_work.alpaca.limits import UNSHARED, RateLimit, RateLimiter

    with WorkFolder(work_dir) as work:
        api = HistoryApi(
            credentials,
            data_url=data_url,
            limiter=RateLimiter(RateLimit(shares=UNSHARED)),
            pause=pause,
        )
        with contextlib.closing(api):
            return Downloader(api, catalog=catalog, record=record, work=work, on_change=show).run(units)


@contextlib.contextmanager
def _show_progress(units: int) -> Iterator[Callable[[DownloadProgress], None]]:
    """Give a function that shows the progress: as a bar on a terminal, otherwise as a line now and then."""
    begun_s = time.monotonic()
    if not sys.stdout.isatty():
        due_s = begun_s + _LINE_S

        def print_line(progress: DownloadProgress) -> None:
            nonlocal due_s
            now_s = time.monotonic()
            if now_s >= due_s:
                due_s = now_s + _LINE_S
                click.echo(describe_progress(progress, seconds=now_s - begun_s))

        yield print_line
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rows]}"), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stdout)) as bar:
        task = bar.add_task("", total=units, rows="")

        def draw(progress: DownloadProgress) -> None:
            seconds = time.monotonic() - begun_s
            rows = f"{progress.rows:,} rows, {progress.rows / max(seconds, 1e-3):,.0f}/s"
            text = f"waiting for {progress.waiting_for}" if progress.waiting_for else progress.working_on
            bar.update(task, completed=progress.units_done, rows=rows, description=text)

        yield draw
