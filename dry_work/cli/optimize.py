"""`dry-work optimize`: a strategy's parameters on recorded feeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.cli.backtest import backtest_options, build_backtest_settings
from dry_work.cli.options import strategy_options
from dry_work.cli.views import check_views
from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from dry_work.backtest.grid import ParamSet, Space
    from dry_work.backtest.optimize import Executor, Sweep, SweepResult
    from dry_work.backtest.sweep_data import SharedRecording
    from dry_work.backtest.sweep_store import SweepStore
    from dry_work.backtest.sweep_task import SweepRow

_LINE_S = 10.0
_METRICS = ("sharpe", "sortino", "calmar", "return", "drawdown")


@click.command("optimize")
@strategy_options
@backtest_options
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="CONDITION",
    help="Leave out sets that do not meet it, for example 'fast<slow'. May be repeated.",
)
@click.option("--random", "random_sets", type=click.IntRange(1), metavar="N", help="Try N sets at random.")
@click.option("--seed", type=int, default=0, metavar="S", help="Of --random: the same seed, the same sets. Default: 0.")
@click.option("--max-sets", type=click.IntRange(1), metavar="N", help="Refuse more sets than this. Default: 10000.")
@click.option("--split", metavar="PART", help="Choose on this part of the time, judge on the rest. Default: 0.7; none.")
@click.option("--metric", type=click.Choice(_METRICS), help="Ranks sets. Default: sharpe; return for few days.")
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Worker processes. Default: one for each core.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="S", help="Give a set up after S seconds.")
@click.option("--scheduler", metavar="ADDRESS", help="Run on a Dask cluster, for example tcp://host:8786.")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    default="optimize",
    metavar="DIR",
    help="Where results are kept; the same command goes on from there. Default: ./optimize.",
)
@click.option("--fresh", is_flag=True, help="Run sets again whose results are there.")
@click.option("--axes", metavar="A,B", help="Parameters of the heat map. Default: the two with most values.")
@click.option(
    "--plot", type=click.Path(dir_okay=False), metavar="FILE.png", help="Write the heat map as a picture, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Run a strategy with many parameter sets, and see which of them hold on data that did not choose them.

    A parameter is a range (-p fast=5:50:5, both ends included), a list (-p kind=a,b,c), or one value. Sets are ranked
    by what they did in the first part of the time (--split); the rest of it tells what that is worth.

    \b
    Examples:
      dry-work optimize --data recordings/ -p fast_period=5:50:5 -p slow_period=20:200:10
      dry-work optimize --data recordings/ -p fast_period=2:60 -p slow_period=10:240 --random 200 \\
          --constraint 'fast_period < slow_period'
      dry-work optimize --data recordings/ -p fast_period=5,10,20 --scheduler tcp://10.0.0.5:8786

    After Ctrl-C or a crash the same command goes on where it was. DIR then has results.parquet and heatmap.html.
    """
    from dry_work.cli.signals import stop_signals

    with stop_signals(sys.exit):
        context.exit(_optimize(options))


def _optimize(options: Mapping[str, Any]) -> int:
    from dry_work.observability.logging import set_up_logging
    from dry_work.settings import read_environment, read_toml

    folder = Path.cwd()
    set_up_logging(read_environment(folder).get("LOG_LEVEL"))
    toml = folder / "dry-work.toml"
    settings = build_backtest_settings(options, read_toml(toml, "backtest"), read_toml(toml))
    out, axes = Path(options["out"]), [name.strip() for name in (options["axes"] or "").split(",") if name.strip()]
    _check_options(options)

    from dry_work.backtest.grid import Space, parse_axes
    from dry_work.backtest.optimize import Sweep, open_sweep_data, parse_split
    from dry_work.backtest.run import describe_data, load_recording
    from dry_work.backtest.sweep_store import SweepStore
    from dry_work.engine.agents import load_agent

    split = parse_split("0.7" if options["split"] is None else options["split"])
    agent = load_agent(settings.agent, {})
    space = Space(agent.strategy, parse_axes(agent.strategy, settings.params), options["constraints"])
    swept = [axis.name for axis in space.swept]
    for name in axes:
        if name not in swept:
            raise ConfigError(f"--axes {name}: expected swept parameters: {', '.join(swept) or 'there are none'}")
    sets, notes = _make_sets(space, options)
    recording = load_recording(settings)
    click.echo(f"data: {describe_data(settings, recording)}")
    sweep = Sweep(settings, recording, agent, sets, swept=swept, split=split)
    del recording  # the workers' copy is the one that stays
    store = SweepStore(out, sweep.identity, fresh=options["fresh"])
    try:
        if store.note:
            click.echo(f"results in {store.path}: {store.note}")
        with open_sweep_data(sweep) as data:
            return _run(sweep, store, data, options, notes=notes, axes=axes)
    finally:
        store.close()


def _check_options(options: Mapping[str, Any]) -> None:
    check_views(options["plot"])
    if options["plot"] is not None:
        from dry_work.backtest.heatmap import check_plot

        check_plot()
    if options["scheduler"] is not None and (options["jobs"] is not None or options["timeout"] is not None):
        raise ConfigError("--jobs and --timeout are for this machine's cores: leave them out with --scheduler")


def _make_sets(space: Space, options: Mapping[str, Any]) -> tuple[list[ParamSet], list[str]]:
    from dry_work.backtest.grid import MOST_SETS

    most = options["max_sets"] or MOST_SETS
    if options["random_sets"] is None:
        return space.list_sets(most=most), []
    sets, note = space.draw_sets(options["random_sets"], seed=options["seed"], most=most)
    return sets, [note] if note else []


def _run(
    sweep: Sweep,
    store: SweepStore,
    data: SharedRecording,
    options: Mapping[str, Any],
    *,
    notes: list[str],
    axes: list[str],
) -> int:
    from dry_work.backtest.optimize import Stopwatch
    from dry_work.cli.signals import EXIT_DONE, EXIT_FAILED, stop_signals

    codes: list[int] = []
    running: list[Executor] = []

    def stop(code: int) -> None:
        codes.append(code)
        if len(codes) > 1 or not running:
            sys.exit(code)
        running[0].request_stop()

    with stop_signals(stop):
        executor = _make_executor(sweep, data, options)
        running.append(executor)
        missing = len(sweep.missing(store))
        watch = Stopwatch(len(sweep.sets), len(sweep.sets) - missing)
        try:
            click.echo(f"sets: {len(sweep.sets):,}, {missing:,} to run on {executor.describe()}")
            with _Progress(sweep, store, watch) as progress:
                sweep.run(store, executor, show=progress.show)
        finally:
            executor.close()
    result = sweep.collect(store, metric=options["metric"], seconds=watch.seconds, notes=[*notes, *executor.notes])
    if codes:
        click.echo(f"stopped: {len(result.outcomes):,} of {result.asked:,} sets are done; the same command goes on")
    _tell(result, options, out=Path(options["out"]), axes=axes)
    if codes:
        return codes[0]
    return EXIT_FAILED if result.failed == len(result.outcomes) else EXIT_DONE


def _make_executor(sweep: Sweep, data: SharedRecording, options: Mapping[str, Any]) -> Executor:
    from dry_work.backtest.sweep_local import LocalExecutor, count_cores

    if options["scheduler"] is None:
        jobs = min(options["jobs"] or count_cores(), len(sweep.sets))
        return LocalExecutor(sweep.job, data, jobs=jobs, timeout_s=options["timeout"])
    from dry_work.backtest.optimize import list_files
    from dry_work.backtest.sweep_cluster import ClusterExecutor, read_sources

    files = list_files(sweep.agent)
    sources = read_sources(sweep.agent.spec, files[0].parent, files) if files else {}
    return ClusterExecutor(
        sweep.job, data, address=options["scheduler"], sources=sources, name=sweep.identity.digest[:16]
    )


def _tell(result: SweepResult, options: Mapping[str, Any], *, out: Path, axes: list[str]) -> None:
    from rich.console import Console

    from dry_work.backtest.optimize_report import build_json, build_tables, write_results

    console = Console(soft_wrap=False, highlight=False)
    width = console.width if console.is_terminal else 120
    console = Console(soft_wrap=False, highlight=False, width=width)
    for part in build_tables(result, width=width):
        if isinstance(part, str):
            click.echo(part)
        else:
            console.print(part)
    files = {"results": out / "results.parquet"}
    write_results(files["results"], result)
    if result.best is not None:
        from dry_work.backtest.heatmap import build_heatmap, write_html, write_picture

        heatmap = build_heatmap(result, axes)
        files["heat map"] = out / "heatmap.html"
        write_html(files["heat map"], heatmap, note=_describe(result))
        if options["plot"] is not None:
            files["picture"] = Path(options["plot"])
            write_picture(files["picture"], heatmap)
    for name, path in files.items():
        click.echo(f"{name}: {path}")
    if options["as_json"]:
        shown = {**build_json(result), **{name.replace(" ", "_"): str(path) for name, path in files.items()}}
        click.echo(json.dumps(shown, allow_nan=False))


def _describe(result: SweepResult) -> str:
    if result.rank_correlation is None:
        return f"{len(result.outcomes):,} sets."
    return (
        f"{len(result.outcomes):,} sets; rank correlation of {result.metric} in and out of sample "
        f"{result.rank_correlation:+.2f}."
    )


class _Progress:
    """Shows how far a sweep is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, sweep: Sweep, store: SweepStore, watch: Any) -> None:
        from dry_work.cli.live_view import can_draw

        self._sweep = sweep
        self._watch = watch
        self._done = len(sweep.sets) - len(sweep.missing(store))
        self._failed = sum(
            (row := store.rows.get(one.key)) is not None and bool(row.error) and not row.died for one in sweep.sets
        )
        self._asked = len(sweep.sets)
        self._told_s = 0.0
        self._bar: Any = _make_bar() if can_draw(sys.stdout) else None
        self._task = None if self._bar is None else self._bar.add_task("", total=self._asked, state="")

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, row: SweepRow | None) -> None:
        """Take note of a row; None: some time has passed."""
        if row is not None:
            self._done += 1
            self._failed += bool(row.error)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, state=self._describe(), refresh=row is None)
        elif self._watch.seconds - self._told_s >= _LINE_S:
            self._told_s = self._watch.seconds
            click.echo(f"{self._done:,} of {self._asked:,} sets{self._describe()}")

    def _describe(self) -> str:
        left_s = self._watch.left_s(self._done)
        failed = f", {self._failed:,} failed" if self._failed else ""
        return failed + ("" if left_s is None else f", {_format_time(left_s)} left")


def _make_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    # Without a thread of its own: it is drawn when the sweep says so.
    return Progress(
        BarColumn(40), MofNCompleteColumn(), TextColumn("sets{task.fields[state]}"), auto_refresh=False, transient=True
    )


def _format_time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
