"""The metrics of a run, made of its counts whenever somebody asks for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dry_work.market.completeness import Completeness
from dry_work.market.market_state import DataHealth
from dry_work.observability.metrics import COUNTER, GAUGE, HISTOGRAM, HistogramCounts, Metric
from dry_work.orders.risk import RiskState

# In the order in which a bar and its order go through them.
STAGES = {
    "arrival": "from a slice's end until its last bar is here: venue, hub and transport",
    "venue": "the first part of it: until the hub has that bar",
    "transport": "the second: from the hub until it is here",
    "barrier": "until the engine takes the slice",
    "next": "until the strategies have returned",
    "queue": "from the strategy's order until the worker has it",
    "request": "until the venue has answered",
    "acknowledgement": "from there until the strategy hears that the order is accepted",
    "fill": "from there until the strategy hears of the first fill",
}
_PREFIX = "dry_work_"


class RunCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the metrics are made of."""

    agent: str
    mode: str
    is_ready: bool = False
    is_connected: bool = False
    turn_age_s: float = 0.0
    ages_s: Mapping[str, float] = {}  # of the newest bar, by symbol
    oldest_s: float = 0.0
    stages: Mapping[str, HistogramCounts] = {}
    slices: int = 0
    late_bars: int = 0
    data: DataHealth = DataHealth()
    source: Mapping[str, int] = {}  # the market source's counters
    order_states: Mapping[str, int] = {}  # notifications by status
    orders: int = 0
    open_orders: int = 0
    broker: Mapping[str, int] = {}  # the broker's counters
    risk_state: str = ""  # empty without a gate
    limits_used: Mapping[str, float] = {}  # 1 is the limit
    halted_symbols: int = 0
    equity: float = 0.0
    memory_bytes: int = 0
    journal_bytes: int = 0
    alerts: Mapping[str, int] = {}
    heartbeats: Mapping[str, int] = {}


def build_run_metrics(counts: RunCounts) -> list[Metric]:
    """Return the metrics in the order in which they are documented."""

    def gauge(name: str, text: str, value: float) -> Metric:
        return Metric(_PREFIX + name, GAUGE, text).add(value)

    def counter(name: str, text: str, value: float) -> Metric:
        return Metric(_PREFIX + name, COUNTER, text).add(value)

    def by(name: str, kind: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        metric = Metric(_PREFIX + name, kind, text)
        for key, value in sorted(values.items()):
            metric.add(value, **{label: key})
        return metric

    stages = Metric(f"{_PREFIX}stage_seconds", HISTOGRAM, "Time that a slice or an order spends in a stage.")
    for name in STAGES:
        if name in counts.stages:
            stages.add_histogram(counts.stages[name], stage=name)
    states = {state.value: float(state.value == counts.risk_state) for state in RiskState} if counts.risk_state else {}
    return [
        Metric(f"{_PREFIX}run_info", GAUGE, "The run: always 1.").add(1, agent=counts.agent, mode=counts.mode),
        gauge("ready", "1 while slices may come.", counts.is_ready),
        gauge("connected", "1 while market data are connected.", counts.is_connected),
        gauge("turn_age_seconds", "Since the engine's loop turned; it does every 15 seconds.", counts.turn_age_s),
        by("data_age_seconds", GAUGE, "Since the end of a symbol's newest bar.", "symbol", counts.ages_s),
        gauge("data_oldest_age_seconds", "The highest age of all symbols' data.", counts.oldest_s),
        stages,
        counter("slices_total", "Slices delivered to the strategies.", counts.slices),
        counter("late_bars_total", "Bars left out behind their symbol's last one.", counts.late_bars),
        *_build_data_metrics(counts.data),
        by("feed_events_total", COUNTER, "What the market data went through.", "event", counts.source),
        by("order_notifications_total", COUNTER, "Notifications of orders.", "status", counts.order_states),
        counter("orders_total", "Orders of the run.", counts.orders),
        gauge("open_orders", "Orders that can still be filled.", counts.open_orders),
        by("broker_events_total", COUNTER, "What the broker went through.", "event", counts.broker),
        by("risk_state", GAUGE, "1 for the state that the risk gate is in.", "state", states),
        by("risk_limit_used_ratio", GAUGE, "How much of a limit of losses is used.", "limit", counts.limits_used),
        gauge("halted_symbols", "Symbols that take no orders.", counts.halted_symbols),
        gauge("equity", "Value of the account after the last slice.", counts.equity),
        gauge("memory_bytes", "Resident memory of the process.", counts.memory_bytes),
        gauge("journal_bytes", "Size of the orders journal.", counts.journal_bytes),
        by("alerts_total", COUNTER, "Alerts by what became of them.", "result", counts.alerts),
        by("heartbeats_total", COUNTER, "Heartbeats by what became of them.", "result", counts.heartbeats),
    ]


def _build_data_metrics(data: DataHealth) -> list[Metric]:
    """Return how complete the bars are, and which symbols have none."""
    bars = Metric(f"{_PREFIX}bars", GAUGE, "Bars from the first slice on, by what became of them.")
    for name in Completeness.__struct_fields__:
        bars.add(getattr(data.bars, name), arrival=name)
    worst = Metric(
        f"{_PREFIX}symbol_complete_ratio", GAUGE, "Part of the expected bars that is there, of symbols that lack some."
    )
    for each in data.symbols:
        worst.add(each.bars.share, symbol=each.symbol)
    return [
        bars,
        Metric(f"{_PREFIX}complete_ratio", GAUGE, "Part of the expected bars of all symbols that is there.").add(
            data.bars.share
        ),
        worst,
        Metric(f"{_PREFIX}silent_symbols", GAUGE, "Symbols without a bar while their market is open.").add(
            len(data.silent)
        ),
        Metric(f"{_PREFIX}exchange_halted_symbols", GAUGE, "Symbols that the exchange has halted.").add(
            len(data.halted)
        ),
    ]
