"""Run a backtest on recorded feeds: the strategy, its feeds and a broker in one Cerebro, and what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, cast

import backtrader as bt
import msgspec
import numpy as np
import pytz

from dry_work.backtest.broker import BacktestBroker, SymbolBroker
from dry_work.backtest.costs import Costs, apply_costs
from dry_work.backtest.curve import trace_value
from dry_work.backtest.lean import LeanCerebro
from dry_work.backtest.order_log import OrderLog, symbol_of
from dry_work.backtest.verify import VerifyReport, verify
from dry_work.engine.agents import Agent, derive_session
from dry_work.engine.result import EquityCurve, RunResult, build_curve, days_a_year, measure_equity
from dry_work.errors import ConfigError, DryWorkError, StrategyError
from dry_work.feeds.base import line_time, line_time_ns, resampling
from dry_work.feeds.columnar import columnar_feed
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_files import TIME, Column
from dry_work.feeds.recorded_market import MarketSource, read_market
from dry_work.feeds.recorded_places import describe_length
from dry_work.settings import TimeFrame
from dry_work.wire.pubsub import encode_time

ENGINES = ("lean", "stock")
_FLAT = 1e-12  # a position below it is none
_ROUNDING = 1e-6  # relative; what sums in another order may differ by


class BacktestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a backtest runs with."""

    symbols: tuple[str, ...]
    agent: str
    params: dict[str, str]
    data: tuple[str, ...] = ()  # recordings; none: the synthetic day
    source: MarketSource = "auto"  # what bars are made of
    recorded: TimeFrame | None = None  # of the recorded bars; None: as the catalog says, else a minute
    cash: Decimal = Decimal(100_000)
    tz: str = "UTC"
    timeframe: TimeFrame | None = None  # None: that of the recording
    resample: tuple[TimeFrame, ...] = ()
    extra_fields: tuple[str, ...] = ()
    warmup: int = 0  # bars of each symbol that move feeds and indicators before the strategy hears of any
    forward_prenext: bool = False
    engine: str = "lean"
    guard: bool = True
    costs: Costs = Costs()
    start_ns: int | None = None  # bars that start before it are left out, but for the warm-up
    end_ns: int | None = None  # bars that end after it are left out


def load_recording(settings: BacktestSettings) -> Recording:
    """Read the bars that a backtest wants.

    Raises:
        ConfigError: there are none, or a file cannot be used.
    """
    if not settings.data:
        from dry_work.exchange.synthetic import synthetic_day

        return synthetic_day(settings.symbols)
    made_of_ticks = settings.source in ("trades", "quotes")
    return read_market(
        settings.data,
        settings.symbols,
        source=settings.source,
        length_ns=settings.timeframe.length_ns if made_of_ticks and settings.timeframe is not None else None,
        recorded_ns=None if settings.recorded is None else settings.recorded.length_ns,
        # The warm-up reaches back as far as it needs.
        start_ns=None if settings.warmup else settings.start_ns,
        end_ns=settings.end_ns,
        zone=pytz.timezone(settings.tz),
    )


def describe_data(settings: BacktestSettings, recording: Recording) -> str:
    """Return what is played, for people."""
    if not settings.data:
        return f"a synthetic day of {len(recording.symbols)} symbols (made-up prices; --data PATH plays recordings)"
    bars = sum(map(recording.count, recording.symbols))
    ends = recording.slice_ends()
    first, last = (encode_time(int(end_ns))[:16].replace("T", " ") for end_ns in (ends[0], ends[-1]))
    count = len(recording.symbols)
    return f"recordings: {bars:,} bars of {count} symbol{'s' * (count != 1)}, {first} to {last} UTC"


def cut_recording(settings: BacktestSettings, recording: Recording) -> tuple[Recording, int]:
    """Return the bars of the period with those of the warm-up before them, and the time up to which it lasts.

    The warm-up has the newest bars of each symbol before the period. Without a start the period begins when each symbol
    has had them.

    Raises:
        ConfigError: a symbol has no bars in the period.
    """
    begin_ns = 0
    columns = {}
    if settings.start_ns is not None:
        begin_ns = settings.start_ns
    elif settings.warmup:
        for symbol in settings.symbols:
            times = recording.columns(symbol)[TIME]
            if len(times) <= settings.warmup:
                raise ConfigError(
                    f"--warmup {settings.warmup}: {symbol} has {len(times):,} bars, so that none is left to trade on"
                )
            begin_ns = max(begin_ns, int(times[settings.warmup - 1]) + recording.length_ns)
    if settings.start_ns is None and settings.end_ns is None:
        return recording, begin_ns
    for symbol in settings.symbols:
        found = recording.columns(symbol)
        times = found[TIME]
        first = int(np.searchsorted(times, begin_ns))
        last = len(times)
        if settings.end_ns is not None:
            last = int(np.searchsorted(times, settings.end_ns - recording.length_ns, side="right"))
        if first >= last:
            have = " to ".join(encode_time(int(at)) for at in (times[0], times[-1] + recording.length_ns))
            raise ConfigError(f"{symbol} has no bars in the period asked for; it has them from {have}")
        if settings.start_ns is not None:
            first = max(0, first - settings.warmup)
        columns[symbol] = {name: column[first:last] for name, column in found.items()}
    return replace_columns(recording, columns), begin_ns


def replace_columns(recording: Recording, columns: Mapping[str, Mapping[str, Column]]) -> Recording:
    """Return a recording with other columns and all else as it is."""
    return Recording(
        columns, length_ns=recording.length_ns, repairs=recording.repairs, left_out=recording.left_out, copy=False
    )


def prepare_strategy(strategy: type[Any], *, begin_ns: int = 0, forward_prenext: bool = False) -> type[Any]:
    """Return the strategy class as this backtest calls it.

    Args:
        strategy: the user's.
        begin_ns: bars that end up to then move feeds and indicators, and the strategy is not called.
        forward_prenext: call `next` where Backtrader would call `prenext`.
    """
    if not begin_ns and not forward_prenext:
        return strategy
    begin = line_time(begin_ns)
    body: dict[str, Any] = {"__module__": strategy.__module__, "__doc__": strategy.__doc__}
    if forward_prenext:
        body["prenext"] = lambda self: self.next()
    derive: Any = type(strategy)  # Backtrader's metaclass
    called = derive(strategy.__name__, (strategy,), body)
    if not begin_ns:
        return cast("type[Any]", called)

    def is_warm(self: Any) -> bool:
        return bool(self.lines.datetime[0] > begin)

    def prenext(self: Any) -> None:
        if is_warm(self):
            called.prenext(self)

    def nextstart(self: Any) -> None:
        if is_warm(self):
            called.nextstart(self)
        else:
            self._dry_work_starts = True

    def next_(self: Any) -> None:
        if not is_warm(self):
            return
        # Its minimum period ended during the warm-up: the first call is the one Backtrader makes then.
        starts, self._dry_work_starts = getattr(self, "_dry_work_starts", False), False
        (called.nextstart if starts else called.next)(self)

    hooks = {"prenext": prenext, "nextstart": nextstart, "next": next_}
    return cast("type[Any]", derive(strategy.__name__, (called,), {**body, **hooks}))


def build_cerebro(
    settings: BacktestSettings,
    recording: Recording,
    agent: Agent,
    *,
    kind: type[bt.Cerebro] | None = None,
    begin_ns: int = 0,
) -> Any:
    """Return a Cerebro that is ready to run.

    Args:
        settings: as asked for.
        recording: the bars of the period, as `cut_recording` returns them.
        agent: the strategy.
        kind: the class of the Cerebro; None: that of `settings.engine`.
        begin_ns: the warm-up lasts up to then.
    """
    _check_frames(settings, recording)
    cerebro_class: Any = kind or {"lean": LeanCerebro, "stock": bt.Cerebro}[settings.engine]
    cerebro = cerebro_class(stdstats=False, tz=settings.tz)
    broker: Any = SymbolBroker if settings.resample and settings.guard else BacktestBroker
    cerebro.setbroker(broker(guard=settings.guard, cash=float(settings.cash)))
    feeds = [
        columnar_feed(recording, symbol, tz=settings.tz, extra_fields=settings.extra_fields)
        for symbol in settings.symbols
    ]
    names: dict[str, str] = {}
    for feed in feeds:
        names[feed.symbol] = feed.symbol
        if settings.timeframe is None or settings.timeframe.length_ns == recording.length_ns:
            cerebro.adddata(feed, name=feed.symbol)
        else:
            cerebro.resampledata(feed, name=feed.symbol, **resampling(settings.timeframe))
    for frame in settings.resample:
        for feed in feeds:
            name = f"{feed.symbol}@{frame.text}"
            names[name] = feed.symbol
            cerebro.resampledata(feed, name=name, **resampling(frame))
    apply_costs(cerebro.broker, settings.costs, names)
    strategy = prepare_strategy(agent.strategy, begin_ns=begin_ns, forward_prenext=settings.forward_prenext)
    cerebro.addstrategy(strategy, **agent.params)
    return cerebro


def run_backtest(
    settings: BacktestSettings,
    recording: Recording,
    agent: Agent,
    *,
    watch: Callable[[Any], None] | None = None,
) -> RunResult:
    """Run a backtest to its end.

    Args:
        settings: as asked for; `engine` says on which engine.
        recording: the bars, with those of the symbols in `settings`.
        agent: the strategy with its parameters.
        watch: is given the Cerebro before it runs, for example to stop it from a signal handler.

    Raises:
        StrategyError: the strategy raised; its own exception is the cause.
        ConfigError: nothing is left to trade on.
    """
    begun = time.monotonic()
    period, begin_ns = cut_recording(settings, recording)
    cerebro = build_cerebro(settings, period, agent, begin_ns=begin_ns)
    cerebro.addanalyzer(OrderLog, _name="dry_work_orders", session=derive_session(agent, period.fingerprint))
    if watch is not None:
        watch(cerebro)
    strategy = _run(cerebro)
    _check_reached(strategy, settings)
    orders, fills = strategy.analyzers.getbyname("dry_work_orders").records()
    last_ns = line_time_ns(strategy.lines.datetime[0])
    start, end = float(cerebro.broker.startingcash), float(cerebro.broker.getvalue())
    notes = [*recording.describe_repairs(), *_describe_short(strategy)]
    curve = trace_value(period, fills, cash=start, begin_ns=begin_ns, last_ns=last_ns)
    if len(curve) and abs(curve.value[-1] - end) > _ROUNDING * max(1.0, abs(end)):
        curve = _log_value(settings, period, agent, begin_ns=begin_ns)
        notes.append("the equity curve comes from a second run: the strategy changes cash or commissions itself")
    return RunResult(
        mode="backtest",
        engine=settings.engine,
        agent=agent.spec,
        params=agent.all_params,
        symbols=settings.symbols,
        bars={symbol: _count_bars(period, symbol, begin_ns, last_ns) for symbol in settings.symbols},
        orders=orders,
        fills=fills,
        positions=_sum_positions(cerebro),
        equity=measure_equity(start, curve, days_in_year=days_a_year(settings.symbols)),
        seconds=time.monotonic() - begun,
        notes=notes,
        curve=curve,
        fingerprint=period.fingerprint,
        assumptions=_describe_assumptions(settings, cerebro),
    )


def verify_backtest(settings: BacktestSettings, recording: Recording, agent: Agent) -> VerifyReport:
    """Run a backtest on both engines and compare every record.

    Raises:
        ConfigError: nothing is left to trade on.
    """
    period, begin_ns = cut_recording(settings, recording)
    return verify(lambda kind: build_cerebro(settings, period, agent, kind=kind, begin_ns=begin_ns))


def _check_frames(settings: BacktestSettings, recording: Recording) -> None:
    named = (("--timeframe", settings.timeframe), *(("--resample", frame) for frame in settings.resample))
    for option, frame in named:
        if frame is not None and frame.length_ns % recording.length_ns:
            raise ConfigError(
                f"{option} {frame.text}: the recorded bars are {describe_length(recording.length_ns)} long; "
                "expected a multiple of that"
            )


def _run(cerebro: Any) -> Any:
    try:
        [strategy] = cerebro.run()
    except DryWorkError:
        raise
    except Exception as error:
        # Backtrader's indicators fail where the bars are fewer than their period.
        if isinstance(error, IndexError) and cerebro.runningstrats:
            _check_length(cerebro.runningstrats[0])
        raise StrategyError(f"the strategy raised {type(error).__name__}: {error}") from error
    return strategy


def _check_reached(strategy: Any, settings: BacktestSettings) -> None:
    """Refuse a run in which the strategy was never called, since its indicators never had the bars they need."""
    is_called_before = settings.forward_prenext or type(strategy).prenext is not bt.Strategy.prenext
    if strategy._getminperstatus() > 0 and not is_called_before:
        _check_length(strategy)


def _check_length(strategy: Any) -> None:
    for data, needed in zip(strategy.datas, strategy._minperiods, strict=True):
        if data.buflen() < needed:
            raise ConfigError(
                f"the strategy was never called: its indicators need {needed:,} bars of {data._name}, and there are "
                f"{data.buflen():,}; choose shorter periods, more data, or --prenext"
            )


def _describe_short(strategy: Any) -> list[str]:
    """Return a sentence for each data whose indicators never had the bars they need."""
    return [
        f"the indicators of {data._name} never had a value: they need {needed:,} bars, and there are {data.buflen():,}"
        for data, needed in zip(strategy.datas, strategy._minperiods, strict=True)
        if data.buflen() < needed
    ]


def _log_value(settings: BacktestSettings, period: Recording, agent: Agent, *, begin_ns: int) -> EquityCurve:
    cerebro = build_cerebro(settings, period, agent, begin_ns=begin_ns)
    cerebro.addanalyzer(_ValueLog, _name="dry_work_value")
    rows = _run(cerebro).analyzers.getbyname("dry_work_value").rows
    return build_curve([row for row in rows if row[0] > begin_ns])


class _ValueLog(bt.Analyzer):
    def start(self) -> None:
        self.rows: list[tuple[int, float]] = []

    def next(self) -> None:
        at_ns = line_time_ns(self.strategy.lines.datetime[0])
        self.rows.append((at_ns, float(self.strategy.broker.getvalue())))


def _count_bars(recording: Recording, symbol: str, begin_ns: int, last_ns: int) -> int:
    ends = recording.columns(symbol)[TIME] + recording.length_ns
    return int(np.count_nonzero((ends > begin_ns) & (ends <= last_ns)))


def _sum_positions(cerebro: Any) -> dict[str, float]:
    """Return what is held of each symbol; BackBroker keeps a position for each data."""
    held: dict[str, float] = {}
    for data in list(cerebro.broker.positions):
        size = cerebro.broker.positions[data].size
        if abs(size) > _FLAT:
            held[symbol_of(data)] = held.get(symbol_of(data), 0.0) + size
    return held


def _describe_assumptions(settings: BacktestSettings, cerebro: Any) -> dict[str, str]:
    fallback = getattr(cerebro, "fallback", "")
    return {
        "engine": settings.engine + (f", on Backtrader's own path: {fallback}" if fallback else ""),
        "matching": "orders at market at the next bar's open; limits and stops "
        + ("in bars after they were made" if settings.guard else "as BackBroker does"),
        **settings.costs.describe(),
    }
