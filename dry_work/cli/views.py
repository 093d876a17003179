"""What commands write of a result beside the text: a report and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from dry_work.engine.result import RunResult
    from dry_work.feeds.recorded import Recording

_Command = TypeVar("_Command", bound=Callable[..., Any])


def view_options(command: _Command) -> _Command:
    """Add --report and --plot."""
    report = click.option(
        "--report", type=click.Path(dir_okay=False), metavar="FILE.html", help="Write a report, one HTML file."
    )
    plot = click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE.png", help="Write a picture.")
    return report(plot(command))


def check_views(*paths: str | None) -> None:
    """Check, before a long run, that files can be written.

    Raises:
        ConfigError: there is no such folder, or it cannot be written to.
    """
    for path in paths:
        if path is None:
            continue
        folder = Path(path).parent
        if not folder.is_dir():
            raise ConfigError(f"{path}: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"{path}: the folder {folder} cannot be written to")


def print_json(result: RunResult, recording: Recording | None) -> None:
    """Print the result as one JSON object, with the report's figures where there is a recording to take them from."""
    content = result.to_json()
    if recording is not None:
        from dry_work.backtest.metrics import build_metrics

        content["metrics"] = build_metrics(result, recording).to_json()
    click.echo(json.dumps(content, allow_nan=False))


def write_views(result: RunResult, recording: Recording, *, report: str | None, plot: str | None) -> None:
    """Write the report and the picture that were asked for, and say so."""
    if report is not None:
        from dry_work.backtest.report import write_report
        from dry_work.clock import SystemClock

        write_report(report, result, recording, created_ns=SystemClock().time_ns())
        click.echo(f"report: {report}")
    if plot is not None:
        from dry_work.backtest.plot import write_plot

        write_plot(plot, result, recording)
        click.echo(f"picture: {plot}")
