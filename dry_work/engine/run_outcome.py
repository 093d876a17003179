"""What a run came to: its equity while it goes on, and its result. Main thread."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.engine.agents import Agent
from dry_work.engine.live import LiveCerebro
from dry_work.engine.result import RunResult, build_curve, days_a_year, measure_equity
from dry_work.recording.flight_frames import FinishRecord
from dry_work.settings import RunSettings

# What the market data went through, by the source's counters.
_TOLD = (
    "reconnects", "recreated_subscriptions", "publisher_restarts", "stale_symbols", "filled_bars", "fill_failures",
    "dropped_late_bars", "revised_bars",
)  # fmt: skip


class EquityRecord:
    """The account's value after each slice, sixteen bytes a slice."""

    def __init__(self) -> None:
        self._ends = array("q")
        self._values = array("d")

    def add(self, end_ns: int, value: float) -> None:
        """Take note of the value after the slice that ends at `end_ns`."""
        self._ends.append(end_ns)
        self._values.append(value)

    def points(self) -> list[tuple[int, float]]:
        """Return (end, value) of each slice."""
        return list(zip(self._ends, self._values, strict=True))


def describe_finish(
    cerebro: LiveCerebro, broker: AlpacaPaperTradingBroker, *, stopped_by_limit: str, is_stopped: bool
) -> FinishRecord:
    """Return how a run ended that did not fail, for its flight record."""
    orders, fills = broker.results()
    return FinishRecord(
        reason="limit" if stopped_by_limit else "stopped" if is_stopped else "done",
        detail=stopped_by_limit,
        orders=len(orders),
        fills=len(fills),
        start_value=broker.startingvalue,
        end_value=broker.getvalue(),
        bars=sum(cerebro.bars.values()),
    )


def build_result(
    settings: RunSettings,
    agent: Agent,
    cerebro: LiveCerebro,
    broker: AlpacaPaperTradingBroker,
    *,
    counters: Mapping[str, int],
    equity: EquityRecord,
    notes: Sequence[str],
    fingerprint: str,
    seconds: float,
) -> RunResult:
    """Return what a run did.

    Args:
        counters: of its market data.
        notes: what people have to know already.
        fingerprint: of what was played, empty when it is not known.
        seconds: that it took.
    """
    orders, fills = broker.results()
    curve = build_curve(equity.points())
    counted = {
        name: count for name, count in counters.items() if count and (name.startswith("dropped") or name in _TOLD)
    }
    if cerebro.late_bars:
        counted["late behind their symbol"] = cerebro.late_bars
    dropped = [f"{count} {name.replace('_', ' ')}" for name, count in sorted(counted.items())]
    dropped += [f"{count} {name}" for name, count in sorted(broker.counters.items()) if "by the risk limit" in name]
    # What a recording has is told when it is read.
    completeness = (
        {} if settings.mode == "local" else {each: cerebro.completeness.of(each) for each in settings.symbols}
    )
    positions = {
        feed: size for feed, size in ((s, broker.position_of(s)) for s in settings.symbols) if abs(size) > 1e-12
    }
    return RunResult(
        mode=settings.mode,
        engine="live",
        agent=agent.spec,
        params=agent.all_params,
        symbols=settings.symbols,
        bars={symbol: cerebro.bars[symbol] for symbol in settings.symbols},
        orders=orders,
        fills=fills,
        positions=positions,
        equity=measure_equity(broker.startingvalue, curve, days_in_year=days_a_year(settings.symbols)),
        curve=curve,
        fingerprint=fingerprint,
        seconds=seconds,
        notes=[*notes, *dropped],
        completeness=completeness,
    )
