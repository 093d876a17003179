"""The page of a report: figures into HTML. Pure but for its own assets, which lie beside it in the package.

All text that comes from a run is escaped here, and a content-security policy with the digests of the page's own style
and script lets nothing else run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from string import Template
from typing import Any

import msgspec

from dry_work.backtest.metrics import Metrics, MonthReturn, describe_annualisation
from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.engine.result import RunResult

NOT_DEFINED = "–"
_FEW_DAYS = 20
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SHOWN_SYMBOLS = 12
_SHOWN_CHARACTERS = 200
_COLUMNS = ("#", "symbol", "side", "entered", "exited", "held", "quantity", "entry", "exit", "costs", "P&L", "return")
_MINOR_COLUMNS = ("held", "costs")

Rows = Iterable[tuple[str, str]]  # name and value, both HTML


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What a page is made of."""

    result: RunResult
    metrics: Metrics
    trade_count: int
    title: str | None
    created_ns: int
    notes: Sequence[str]
    data: Mapping[str, Any]  # for the script
    slices_a_point: int  # of the charts at their finest


def render_page(page: Page) -> str:
    """Return the page as HTML."""
    style, script = _asset("report_page.css"), _asset("report_page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    result = page.result
    return Template(_asset("report_page.html")).substitute(
        policy=policy,
        style=style,
        script=script,
        data=encode_data(page.data),
        title=_text(page.title or result.agent.rpartition(":")[2] or result.agent),
        kind=_text("Backtest" if result.mode == "backtest" else f"{result.mode.capitalize()} run"),
        lede=_lede(page),
        facts=_facts(page),
        tiles=_tiles(page.metrics),
        charts=_charts(page),
        months=_months(page.metrics),
        groups=_groups(page.metrics),
        trades=_trades(page),
        run=_run(page),
        annualisation=describe_annualisation(page.metrics.period),
        few_days=str(_FEW_DAYS),
        footer=f"Made by Dry Work on {_time(page.created_ns)} UTC. All times are UTC.",
    )


def encode_data(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand inside a script element, whatever its texts say."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# Numbers and times as text


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number with separators and a true minus sign."""
    if value is None:
        return NOT_DEFINED
    text = f"{value:,.{decimals}f}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.,") else f"−{text[1:]}"
    return text


def percent(value: float | None, decimals: int = 2, *, signed: bool = False) -> str:
    """Return a fraction as a percentage."""
    if value is None:
        return NOT_DEFINED
    text = number(value * 100, decimals)
    return ("+" if signed and value > 0 and text.strip("0.,") else "") + text + " %"


def duration(value_ns: int | None) -> str:
    """Return a length of time in its two largest units."""
    if value_ns is None:
        return NOT_DEFINED
    if value_ns < MINUTE_NS:
        return f"{value_ns / SECOND_NS:.0f} s"
    if value_ns < HOUR_NS:
        return f"{value_ns / MINUTE_NS:.0f} min"
    if value_ns < DAY_NS:
        return f"{value_ns // HOUR_NS} h {value_ns % HOUR_NS // MINUTE_NS} min"
    return f"{number(value_ns / DAY_NS, 1 if value_ns < 100 * DAY_NS else 0)} days"


def _time(time_ns: int | None) -> str:
    if time_ns is None:
        return NOT_DEFINED
    at = datetime.fromtimestamp(time_ns // SECOND_NS, UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M}"


def _text(value: object) -> str:
    return html.escape(str(value))


def _toned(text: str, value: float | None) -> str:
    tone = "" if not value else "gain" if value > 0 else "loss"
    return f'<span class="{tone}">{text}</span>' if tone else text


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# Parts of the page


def _lede(page: Page) -> str:
    result, metrics = page.result, page.metrics
    start, end, total = result.equity.start, result.equity.end, metrics.returns.total
    sentence = f"{number(start)} became {number(end)}"
    if total is not None:
        sentence += f", {_toned(percent(total, signed=True), total)}"
    basket = metrics.benchmark.basket.total
    if metrics.period.slices and basket is not None:
        what = _text(result.symbols[0]) if len(result.symbols) == 1 else "equal parts of all symbols"
        sentence += f"; buying and holding {what} returned {percent(basket, signed=True)}"
    return f"{sentence}. {_plural(page.trade_count, 'trade')} in {_plural(metrics.period.slices, 'slice')} of bars."


def _facts(page: Page) -> str:
    result, period = page.result, page.metrics.period
    symbols = ", ".join(result.symbols[:_SHOWN_SYMBOLS])
    if len(result.symbols) > _SHOWN_SYMBOLS:
        symbols += f" and {len(result.symbols) - _SHOWN_SYMBOLS} more"
    parameters = ", ".join(f"{name} {value}" for name, value in result.params.items())
    if len(parameters) > _SHOWN_CHARACTERS:
        parameters = f"{len(result.params)}, listed below"
    facts = [
        ("agent", result.agent),
        ("period", f"{_time(period.start_ns)} – {_time(period.end_ns)} UTC" if period.slices else "no bars"),
        ("symbols", symbols),
        ("bars", f"{sum(result.bars.values()):,}"),
        ("parameters", parameters),
        ("engine", result.engine),
        ("data", f"sha256 {result.fingerprint[:16]}…" if result.fingerprint else ""),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in facts if value)


def _tiles(metrics: Metrics) -> str:
    returns, drawdown, trades = metrics.returns, metrics.drawdown, metrics.trades
    period, basket = metrics.period, metrics.benchmark.basket
    few = f"annualised from {_plural(period.days, 'day')}" if 2 <= period.days < _FEW_DAYS else "annualised"
    tiles = [
        (
            "Return",
            _toned(percent(returns.total, signed=True), returns.total),
            f"buy and hold {percent(basket.total, signed=True)}",
        ),
        (
            "Deepest drawdown",
            percent(drawdown.depth),
            f"{duration(drawdown.length_ns)}" + ("" if drawdown.recovery_ns else ", not recovered")
            if drawdown.length_ns is not None
            else "never below its peak",
        ),
        ("Sharpe ratio", number(returns.sharpe), "needs two days" if period.days < 2 else few),
        ("Volatility", percent(returns.volatility, 1), "needs two days" if period.days < 2 else few),
        (
            "Closed trades",
            f"{trades.closed:,}",
            f"{percent(trades.win_rate, 1)} won" + (f", {trades.open} open" if trades.open else ""),
        ),
        ("Profit factor", number(trades.profit_factor), f"expectancy {number(trades.expectancy)} a trade"),
        (
            "Time in market",
            percent(metrics.exposure.time_in_market, 1),
            f"{percent(metrics.exposure.gross, 1)} exposed",
        ),
        (
            "Commission",
            number(metrics.costs.commission),
            f"{percent(metrics.costs.of_traded_value, 3)} of value traded",
        ),
    ]
    return "".join(
        f'<div><dt>{name}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>' for name, value, note in tiles
    )


_TOOLS = "".join(
    f'<button type="button" data-zoom="{action}" aria-label="{label}">{sign}</button>'
    for action, label, sign in (
        ("back", "Earlier", "‹"),
        ("on", "Later", "›"),
        ("out", "Zoom out", "−"),
        ("in", "Zoom in", "+"),
        ("all", "Whole period", "All"),
    )
)


def _charts(page: Page) -> str:
    metrics = page.metrics
    if not metrics.period.slices:
        nothing = "No slice of bars was run, so there is nothing to draw."
        return f'<section><h2>Account</h2><p class="muted">{nothing}</p></section>'
    returns, drawdown, exposure = metrics.returns, metrics.drawdown, metrics.exposure
    equity = page.result.equity
    labels = {
        "equity": f"Account value from {number(equity.start)} to {number(equity.end)}, against buying and holding, "
        f"which returned {percent(metrics.benchmark.basket.total)}",
        "drawdown": f"Drawdown, at most {percent(returns.max_drawdown)} on {_time(drawdown.trough_ns)}",
        "exposure": f"Exposure, {percent(exposure.gross)} of the account on average, "
        f"{percent(exposure.gross_max)} at most",
    }
    panels = "".join(
        f'<div class="panel"><div class="caption"><h3>{title}</h3>'
        f'<span class="readout" id="chart-{name}-readout" aria-hidden="true"></span></div>'
        f'<div class="chart {size}" id="chart-{name}" role="img" tabindex="0" '
        f'aria-label="{_text(labels[name])}"></div></div>'
        for name, title, size in (
            ("equity", "Account value", "chart-tall"),
            ("drawdown", "Drawdown", "chart-low"),
            ("exposure", "Exposure", "chart-low"),
        )
    )
    points = "" if page.slices_a_point == 1 else (
        f" A point stands for {page.slices_a_point} slices and keeps their least and greatest value; "
        "prices are bars of as many slices or more."
    )  # fmt: skip
    account = (
        f'<section aria-labelledby="h-account"><div class="bar"><h2 id="h-account">Account</h2>'
        f'<div class="tools">{_TOOLS}</div></div>{panels}'
        "<noscript><p>The charts and the table of trades need JavaScript; all figures are below.</p></noscript>"
        '<p class="hint">Drag to zoom, double-click for the whole period; two fingers on a phone; arrow keys, + and − '
        "on the keyboard. All charts move together. Hours without bars take no room; the time told is the end of a bar."
        f"{points}</p></section>"
    )
    return account + _prices(page.data["prices"])


def _prices(prices: Sequence[Mapping[str, Any]]) -> str:
    if not prices:
        return ""
    options = "".join(
        f'<option value="{number}">{_text(price["symbol"])}</option>' for number, price in enumerate(prices)
    )
    return (
        '<section aria-labelledby="h-prices" id="prices"><div class="bar"><h2 id="h-prices">Entries and exits</h2>'
        f'<label class="unseen" for="symbol">Symbol</label><select id="symbol" autocomplete="off">{options}</select>'
        f'<div class="tools">{_TOOLS}</div></div><div class="caption"><h3 id="price-title">{_text(prices[0]["symbol"])}'
        '</h3><span class="readout" id="chart-price-readout" aria-hidden="true"></span></div>'
        '<div class="chart chart-price" id="chart-price" role="img" tabindex="0" aria-label="Prices"></div></section>'
    )


def _months(metrics: Metrics) -> str:
    if not metrics.months:
        return '<p class="muted">No month to show.</p>'
    largest = max((abs(each.value) for each in metrics.months if each.value is not None), default=0.0)
    by_year: dict[int, dict[int, MonthReturn]] = {}
    for each in metrics.months:
        by_year.setdefault(each.year, {})[each.month] = each
    rows = []
    for year, months in by_year.items():
        cells = [
            _month_cell(name, months[month].value, largest)
            if month in months
            else f'<td data-label="{name}" class="muted">·</td>'
            for month, name in enumerate(_MONTHS, start=1)
        ]
        total = metrics.years.get(year)
        cells.append(
            f'<td class="total" data-label="Year">{_toned(percent(total, signed=True).removesuffix(" %"), total)}</td>'
        )
        rows.append(f'<tr><th scope="row">{year}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">{name}</th>' for name in (*_MONTHS, "Year"))
    return (
        '<table class="months"><caption class="unseen">Return of each month in per cent</caption><thead><tr>'
        f'<th scope="col"><span class="unseen">Year</span></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        '<p class="hint">Per cent, after costs. The first and the last month may be parts of months.</p>'
    )


def _month_cell(name: str, value: float | None, largest: float) -> str:
    tint = ""
    if value and largest > 0:
        tint = f' class="{"g" if value > 0 else "l"}{min(4, 1 + int(4 * abs(value) / largest))}"'
    text = percent(value, signed=True).removesuffix(" %")
    return f'<td data-label="{name}"{tint}>{text}</td>'


def _group(title: str, rows: Rows, *, style: str = "") -> str:
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f'<div class="{style}"><h3>{title}</h3><dl>{listed}</dl></div>'


def _groups(metrics: Metrics) -> str:
    returns, basket, drawdown = metrics.returns, metrics.benchmark.basket, metrics.drawdown
    exposure, trades, costs = metrics.exposure, metrics.trades, metrics.costs
    held = [(f"{_text(symbol)}", percent(value)) for symbol, value in metrics.benchmark.symbols.items()]
    more = [(f"{len(held) - _SHOWN_SYMBOLS} more symbols", "in the JSON")] if len(held) > _SHOWN_SYMBOLS else []
    return "".join(
        [
            _group(
                "Returns",
                [
                    ("total", percent(returns.total)),
                    ("a year", percent(returns.annual)),
                    ("best day", percent(returns.best_day)),
                    ("worst day", percent(returns.worst_day)),
                    ("alpha against the basket, a year", percent(metrics.benchmark.alpha)),
                    ("beta against the basket", number(metrics.benchmark.beta)),
                ],
            ),
            _group(
                "Risk",
                [
                    ("volatility a year", percent(returns.volatility)),
                    ("Sharpe ratio", number(returns.sharpe)),
                    ("Sortino ratio", number(returns.sortino)),
                    ("Calmar ratio", number(returns.calmar)),
                    ("deepest drawdown", percent(drawdown.depth)),
                    ("– from its peak", _time(drawdown.peak_ns)),
                    ("– to its trough", _time(drawdown.trough_ns)),
                    ("– recovered", _time(drawdown.recovery_ns) if drawdown.recovery_ns else "not in this run"),
                    ("– length", duration(drawdown.length_ns)),
                ],
            ),
            _group(
                "Trades, after costs",
                [
                    ("closed", f"{trades.closed:,} ({trades.long:,} long, {trades.short:,} short)"),
                    ("still open", f"{trades.open:,}"),
                    ("won", percent(trades.win_rate)),
                    ("profit factor", number(trades.profit_factor)),
                    ("expectancy of a trade", number(trades.expectancy)),
                    ("average return of a trade", percent(trades.average_return, 3)),
                    ("average gain", number(trades.average_win)),
                    ("average loss", number(trades.average_loss)),
                    ("best", number(trades.best)),
                    ("worst", number(trades.worst)),
                    ("average time held", duration(trades.average_holding_ns)),
                    ("realised", number(trades.realised)),
                    ("unrealised", number(trades.unrealised)),
                ],
            ),
            _group(
                "Exposure",
                [
                    ("time in market", percent(exposure.time_in_market)),
                    ("gross, average", percent(exposure.gross)),
                    ("gross, highest", percent(exposure.gross_max)),
                    ("net, average", percent(exposure.net)),
                    ("value traded", number(exposure.traded_value)),
                    (
                        "turnover",
                        f"{number(exposure.turnover)} × equity" if exposure.turnover is not None else NOT_DEFINED,
                    ),
                    ("turnover a year", number(exposure.turnover_a_year, 0)),
                ],
            ),
            _group(
                "Costs",
                [
                    ("commission", number(costs.commission)),
                    ("– of value traded", percent(costs.of_traded_value, 4)),
                    ("– of the first account value", percent(costs.of_start)),
                    ("orders", f"{costs.orders:,}"),
                    ("fills", f"{costs.fills:,}"),
                ],
            ),
            _group(
                "Buying and holding",
                [
                    *held[:_SHOWN_SYMBOLS],
                    *more,
                    ("basket of equal parts", percent(basket.total)),
                    ("– volatility a year", percent(basket.volatility)),
                    ("– Sharpe ratio", number(basket.sharpe)),
                    ("– deepest drawdown", percent(basket.max_drawdown)),
                ],
            ),
        ]
    )


def _trades(page: Page) -> str:
    if not page.trade_count or not page.metrics.period.slices:
        return (
            '<section aria-labelledby="h-trades"><h2 id="h-trades">Trades</h2>'
            '<p class="muted">Nothing was traded.</p></section>'
        )
    heads = "".join(
        f'<th scope="col"{" class=minor" if name in _MINOR_COLUMNS else ""}>'
        f'<button type="button">{_text(name)}</button></th>'
        for name in _COLUMNS
    )
    orders = "".join(
        f'<option value="{column}{sign}">{_text(name)} {arrow}</option>'
        for column, name in enumerate(_COLUMNS)
        for sign, arrow in (("+", "↑"), ("-", "↓"))
    )
    symbols = "".join(f'<option value="{_text(symbol)}">{_text(symbol)}</option>' for symbol in page.result.symbols)
    kinds = "".join(f'<option value="{kind}">{kind}</option>' for kind in ("won", "lost", "long", "short", "open"))
    return (
        '<section aria-labelledby="h-trades" class="list"><div class="bar"><h2 id="h-trades">Trades</h2>'
        '<label class="unseen" for="trade-symbol">Only of symbol</label>'
        f'<select id="trade-symbol" autocomplete="off"><option value="">every symbol</option>{symbols}</select>'
        '<label class="unseen" for="trade-kind">Only of kind</label>'
        f'<select id="trade-kind" autocomplete="off"><option value="all">all trades</option>{kinds}</select>'
        '<label class="unseen" for="trade-sort">Order</label>'
        f'<select id="trade-sort" class="sort-by" autocomplete="off">{orders}</select></div>'
        '<div class="scroll"><table class="trades" id="trades">'
        '<caption class="unseen">Trades; choose one to see it in the chart</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody></tbody></table></div>"
        '<div class="pager"><output id="trade-count"></output>'
        '<button type="button" id="trade-back">Previous</button><button type="button" id="trade-on">Next</button></div>'
        "</section>"
    )


def _run(page: Page) -> str:
    result, period = page.result, page.metrics.period
    parameters = [(_text(name), _text(value)) for name, value in result.params.items()] or [("none", "")]
    data = [
        ("period", f"{_time(period.start_ns)} – {_time(period.end_ns)}" if period.slices else "no bars"),
        ("symbols", f"{len(result.symbols):,}"),
        ("bars", f"{sum(result.bars.values()):,}"),
        ("sha256", _text(result.fingerprint) or "not known"),
    ]
    engine = [
        ("mode", _text(result.mode)),
        ("engine", _text(result.engine)),
        ("agent", _text(result.agent)),
        ("took", f"{number(result.seconds, 1)} s"),
    ]
    parts = [_group("Parameters", parameters), _group("Engine", engine), _group("Data", data)]
    if result.assumptions:
        rows = [(_text(name), _text(value)) for name, value in result.assumptions.items()]
        parts.append(_group("What is taken for granted", rows, style="wide prose"))
    if page.notes:
        listed = "".join(f"<li>{_text(note)}</li>" for note in page.notes)
        parts.append(f'<div class="wide"><h3>Notes</h3><ul>{listed}</ul></div>')
    return "".join(parts)


def _asset(name: str) -> str:
    return resources.files("dry_work.backtest").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
