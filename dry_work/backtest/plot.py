"""One picture of a run: account value, drawdown, and prices with entries and exits. Needs matplotlib, the extra `plot`.

As in the report, the axis counts slices, so that hours without bars take no room, and long series are drawn by the
least and the greatest value of equally many slices, so that no extreme is lost.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dry_work.backtest.metrics import Metrics, build_metrics
from dry_work.backtest.report import make_buckets, write_whole
from dry_work.backtest.report_page import number, percent
from dry_work.backtest.series import Floats, Ints, RunSeries, build_series, period_rows
from dry_work.backtest.trades import Execution, Trade, build_trades
from dry_work.clock import DAY_NS, SECOND_NS
from dry_work.engine.result import RunResult
from dry_work.errors import ConfigError
from dry_work.feeds.recorded import Recording
from dry_work.market.symbols import contract_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_SYMBOLS = 4  # those traded most
_BUCKETS = 1600  # some two to a pixel column
_MARKS = 250  # of one symbol that can be told apart
_INK, _MUTED, _GRID = "#1d1c1a", "#676259", "#e8e4db"
_AGENT, _BASKET, _LOSS, _SELL = "#1c4f8f", "#8d8579", "#cf5c3a", "#8a3fa8"


def write_plot(path: str | os.PathLike[str], result: RunResult, recording: Recording) -> None:
    """Write the picture of a run as a PNG file, whole or not at all.

    Raises:
        ConfigError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    figure = _draw(result, recording)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_whole(Path(path), content.getvalue())


def _draw(result: RunResult, recording: Recording) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib: pip install 'dry-work[plot]'") from error
    series = build_series(result, recording)
    trades = build_trades(result.fills, series.last_prices)
    metrics = build_metrics(result, recording, series=series, trades=trades)
    shown = _most_traded(trades, [symbol for symbol in result.symbols if symbol in series.last_prices])
    heights = [2.4, 1.0, *[1.8] * len(shown)]
    figure = Figure(figsize=(12, 1.6 + 1.75 * sum(heights) / 1.8), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no window, and nothing that outlives the figure
    # A name that holds a dollar sign is no formula.
    figure.suptitle(_heading(result, metrics).replace("$", r"\$"), x=0.012, ha="left", fontsize=12, color=_INK)
    panels: list[Axes] = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[
        :, 0
    ].tolist()
    equity, drawdown, *prices = panels
    for panel in panels:
        _dress(panel)
    if len(series):
        _line(equity, series.basket, _BASKET, "buy and hold")
        _line(equity, series.equity, _AGENT, "agent")
        _explain(equity)
        falls = make_buckets(-100 * series.drawdown, _BUCKETS)
        at = _places(len(series), falls.step)
        drawdown.fill_between(at, falls.low, 0, color=_LOSS, alpha=0.35, linewidth=0)
        drawdown.plot(at, falls.low, color=_LOSS, linewidth=0.8)
        for panel, symbol in zip(prices, shown, strict=True):
            _draw_prices(panel, recording, symbol, series, [trade for trade in trades if trade.symbol == symbol])
        _label_times(panels[-1], series.end_ns - recording.length_ns)
        panels[-1].set_xlim(0, len(series))
    else:
        equity.text(0.5, 0.5, "no bars were run", transform=equity.transAxes, ha="center", color=_MUTED)
    _name(equity, "account value")
    _name(drawdown, "drawdown, %")
    for panel, symbol in zip(prices, shown, strict=True):
        _name(panel, symbol)
    return figure


def _heading(result: RunResult, metrics: Metrics) -> str:
    figures = [
        f"return {percent(metrics.returns.total, signed=True)}",
        f"buy and hold {percent(metrics.benchmark.basket.total, signed=True)}",
        f"drawdown {percent(metrics.drawdown.depth)}",
        f"Sharpe {number(metrics.returns.sharpe)}",
        f"{metrics.trades.closed:,} trades, {percent(metrics.trades.win_rate, 0)} won",
    ]
    return f"{result.agent.rpartition(':')[2]} · " + " · ".join(figures)


def _most_traded(trades: Sequence[Trade], symbols: Sequence[str]) -> list[str]:
    value = dict.fromkeys(symbols, 0.0)
    for trade in trades:
        if trade.symbol in value:
            value[trade.symbol] += trade.qty * trade.entry_price * contract_size(trade.symbol)
    kept = set(sorted(symbols, key=lambda symbol: -value[symbol])[:SHOWN_SYMBOLS])
    return [symbol for symbol in symbols if symbol in kept]


def _dress(panel: Axes) -> None:
    panel.grid(color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.yaxis.tick_right()
    panel.tick_params(length=0, labelsize=9, colors=_MUTED)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace("-", "−"))
    for spine in panel.spines.values():
        spine.set_visible(False)


def _name(panel: Axes, text: str) -> None:
    panel.set_title(text.replace("$", r"\$"), loc="left", fontsize=10, color=_INK, pad=4)


def _places(count: int, step: int) -> Floats:
    return np.asarray(np.minimum(np.arange(0, count, step) + step / 2, count), dtype=np.float64)


def _line(panel: Axes, values: Floats, colour: str, label: str) -> None:
    buckets = make_buckets(values, _BUCKETS)
    at = _places(len(values), buckets.step)
    if buckets.step > 1:
        panel.fill_between(at, buckets.low, buckets.high, color=colour, alpha=0.3, linewidth=0)
    panel.plot(at, buckets.last, color=colour, linewidth=1.2, label=label)


def _draw_prices(panel: Axes, recording: Recording, symbol: str, series: RunSeries, trades: Sequence[Trade]) -> None:
    rows = period_rows(recording, symbol, series.end_ns)
    assert rows is not None  # a symbol with prices has bars
    columns = recording.columns(symbol)
    ends = columns["ts_event_ns"][rows] + recording.length_ns
    # The last bar at each slice; what stands before the first one is not drawn.
    last = np.searchsorted(ends, series.end_ns, side="right") - 1
    spread = {
        name: np.where(last >= 0, columns[name][rows][np.maximum(last, 0)], np.nan) for name in ("low", "high", "close")
    }
    close = make_buckets(spread["close"], _BUCKETS)
    at = _places(len(series), close.step)
    low, high = make_buckets(spread["low"], _BUCKETS).low, make_buckets(spread["high"], _BUCKETS).high
    panel.fill_between(at, low, high, color=_BASKET, alpha=0.3, linewidth=0)
    panel.plot(at, close.last, color=_INK, linewidth=0.9)
    executions = [each for trade in trades for each in trade.executions]
    if len(executions) > _MARKS:
        _draw_crowd(panel, executions, series.end_ns)
        return
    size = 40 if len(executions) <= 40 else 22 if len(executions) <= 200 else 8
    for side, marker, colour in (("buy", "^", _AGENT), ("sell", "v", _SELL)):
        for is_entry in (True, False):
            fills = [each for each in executions if each.side == side and each.is_entry == is_entry]
            if fills:
                places = np.searchsorted(series.end_ns, [each.time_ns for each in fills]) + 0.5
                panel.scatter(
                    places,
                    [each.price for each in fills],
                    s=size,
                    marker=marker,
                    facecolors=colour if is_entry else "white",
                    edgecolors=colour,
                    linewidths=0.8,
                    zorder=3,
                    label=f"{side} to {'open' if is_entry else 'close'}",
                )
    if executions:
        _explain(panel)


def _draw_crowd(panel: Axes, executions: Sequence[Execution], end_ns: Ints) -> None:
    """Draw when there were fills, along the foot of the panel: too many to be told apart on the line."""
    low, high = panel.get_ylim()
    panel.set_ylim(low - 0.12 * (high - low), high)
    for side, colour, height in (("buy", _AGENT, 0.075), ("sell", _SELL, 0.025)):
        places = np.searchsorted(end_ns, [each.time_ns for each in executions if each.side == side]) + 0.5
        panel.plot(
            places,
            np.full(len(places), height),
            "|",
            color=colour,
            alpha=0.35,
            markersize=5,
            transform=panel.get_xaxis_transform(),
            label=f"{len(places):,} {'purchases' if side == 'buy' else 'sales'}",
        )
    _explain(panel)


def _explain(panel: Axes) -> None:
    """Put the legend beside the panel's name, where it hides nothing."""
    panel.legend(
        loc="lower right",
        bbox_to_anchor=(1, 0.98),
        frameon=False,
        fontsize=8,
        ncols=4,
        handletextpad=0.3,
        columnspacing=1.2,
        borderaxespad=0.1,
    )


def _label_times(panel: Axes, starts_ns: Ints) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    span_ns = int(starts_ns[-1] - starts_ns[0])
    is_long = span_ns > 20 * DAY_NS

    def describe(place: Any, _: Any) -> str:
        at = min(max(int(place), 0), len(starts_ns) - 1)
        time = datetime.fromtimestamp(int(starts_ns[at]) // SECOND_NS, UTC)
        day = f"{time.day} {time:%b %Y}"
        return day if is_long else f"{day}\n{time:%H:%M}"

    panel.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    panel.xaxis.set_major_formatter(FuncFormatter(describe))
