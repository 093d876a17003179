"""What the dashboard shows: immutable values. Pure.

Times are milliseconds since 1970 UTC, which a browser can hold exactly. A field that is not known is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

_CURSOR = re.compile(r"([0-9a-f]{8})\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.([^\s]{0,32})")


class LineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an indicator that is drawn with the bars of a symbol."""

    label: str
    below: bool = False  # it has a scale of its own, below the prices


class BarCounts(msgspec.Struct, frozen=True, array_like=True):
    """What came of the bars of a symbol that were to come, in the words and order of `Completeness`."""

    expected: int = 0
    arrived: int = 0
    late: int = 0
    filled: int = 0
    missing: int = 0
    outside: int = 0
    revised: int = 0
    halted: int = 0


class SymbolRow(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol as it is now."""

    seq: int
    symbol: str
    crypto: bool = False  # it trades around the clock
    bar_ms: int = 0  # end of its last bar, 0 before the first
    length_ms: int = 60_000  # of a bar
    close: float | None = None
    bars: int = 0  # of this run, and of its warm-up
    position: float = 0.0  # signed
    price: float = 0.0  # at which it was entered, on average
    profit: float = 0.0  # of the position at the last close
    realised: float = 0.0  # by the fills of this run, before what the venue charges
    open_orders: int = 0
    fills: int = 0
    arrival_ms: float | None = None  # from the last bar's end to its arrival here; None where the market has own time
    delay_ms: float | None = None  # from its arrival to the end of `next`
    halted: str = ""  # why it takes only orders that shrink its position
    paused: str = ""  # why the exchange does not trade it
    counts: BarCounts | None = None  # None: not known


class OrderRow(msgspec.Struct, frozen=True, kw_only=True):
    """One order as it is now."""

    seq: int
    id: str  # client order id
    symbol: str
    side: str
    type: str
    qty: float
    status: str
    is_open: bool
    filled: float = 0.0
    price: float | None = None  # of what is filled, on average
    limit: float | None = None
    stop: float | None = None
    parent: str = ""  # id of the entry that it is a leg of
    reason: str = ""  # of a refusal
    placed_ms: int = 0  # the market's time
    changed_ms: int = 0
    ack_ms: float | None = None  # from `buy` or `sell` to the venue's word, as the strategy is told
    fill_ms: float | None = None  # to the last fill


class FillMark(msgspec.Struct, frozen=True, array_like=True):
    """A fill on the chart of its symbol."""

    time_ms: int
    side: str
    qty: float
    price: float
    closes: bool  # it shrank or ended a position
    order: str


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """A line of the log."""

    time_ms: int
    level: str  # info, warning, error
    text: str


class StageLatency(msgspec.Struct, frozen=True, kw_only=True):
    """How long a stage took, of the last some hundred times."""

    stage: str
    last_ms: float
    p50_ms: float
    p99_ms: float
    count: int


class LimitUse(msgspec.Struct, frozen=True, kw_only=True):
    """A risk limit and how much of it is used."""

    name: str
    used: float
    allowed: float
    unit: str = "money"  # or count


class RiskView(msgspec.Struct, frozen=True, kw_only=True):
    """State of the risk gate."""

    state: str = "off"  # active, reducing, flattening, halted; off: no gate
    reason: str = ""
    who: str = ""
    at_ms: int = 0
    trouble: str = ""  # why no orders are taken, whatever the gate says
    limits: tuple[LimitUse, ...] = ()


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """Money."""

    cash: float = 0.0
    equity: float = 0.0
    start_equity: float = 0.0  # of the run
    day_equity: float = 0.0  # at the day's beginning, New York
    gross: float = 0.0  # value of all positions, long and short added up
    realised: float = 0.0


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What runs. It does not change."""

    agent: str
    mode: str  # local, paper, live
    symbols: int
    agent_id: str = ""
    session: str = ""
    params: tuple[tuple[str, str], ...] = ()
    started_ms: int = 0
    restarts: int = 0  # of this agent, by its lease
    own_time: bool = False  # the market's time is that of a simulated exchange
    lockstep: bool = False


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """All that belongs to no symbol."""

    seq: int
    run: RunFacts
    phase: str = "starting"  # running, ended; files: seen from outside
    detail: str = ""  # of the phase
    feed: str = ""  # last status of the market data
    feed_detail: str = ""
    market_ms: int = 0  # end of the newest slice
    at_ms: int = 0  # the machine's time
    slices: int = 0
    bars: int = 0
    late_bars: int = 0
    orders: int = 0
    fills: int = 0
    open_orders: int = 0
    memory_bytes: int = 0
    account: AccountView | None = AccountView()  # None: not known
    risk: RiskView = RiskView()
    latency: tuple[StageLatency, ...] = ()


class ChartPart(msgspec.Struct, frozen=True, kw_only=True):
    """Bars of one symbol from number `first` on: end in ms, open, high, low, close, volume, then the lines."""

    symbol: str
    first: int
    total: int  # bars so far; what is older than the first one kept is gone
    lines: tuple[LineFacts, ...]
    bars: Sequence[Sequence[float]]
    marks: tuple[FillMark, ...] = ()
    first_mark: int = 0
    minutes: str = ""  # what became of the newest bars, the last one at the head's `market_ms`; see `minutes`


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has changed since a cursor; with `whole` all that there is."""

    cursor: str
    whole: bool = False
    head: Head | None = None
    symbols: tuple[SymbolRow, ...] = ()
    orders: tuple[OrderRow, ...] = ()
    log: tuple[LogLine, ...] = ()
    equity: Sequence[Sequence[float]] = ()  # end of a slice in ms, account value
    chart: ChartPart | None = None

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing has changed."""
        chart = self.chart
        news = self.head or self.symbols or self.orders or self.log or self.equity
        return not (self.whole or news or (chart is not None and (chart.bars or chart.marks)))


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """How far a reader has got. `epoch` names the run: that of another one says nothing."""

    epoch: str
    seq: int = 0
    log: int = 0  # lines so far
    equity_ms: int = 0
    bars: int = 0  # of `symbol`
    marks: int = 0
    symbol: str = ""

    def encode(self) -> str:
        """Return the text that stands in an event's `id`."""
        return f"{self.epoch}.{self.seq}.{self.log}.{self.equity_ms}.{self.bars}.{self.marks}.{self.symbol}"


def parse_cursor(text: str) -> Cursor | None:
    """Return the cursor that `Cursor.encode` wrote, None for any other text."""
    found = _CURSOR.fullmatch(text)
    if found is None or any(len(part) > 18 for part in found.groups()[1:6]):
        return None
    epoch, seq, log, equity_ms, bars, marks, symbol = found.groups()
    return Cursor(
        epoch=epoch,
        seq=int(seq),
        log=int(log),
        equity_ms=int(equity_ms),
        bars=int(bars),
        marks=int(marks),
        symbol=symbol,
    )


def encode_json(value: object) -> bytes:
    """Return a value as JSON; what is not a number is null."""
    return msgspec.json.encode(value)
