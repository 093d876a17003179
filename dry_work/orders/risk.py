"""The risk gate: limits before an order leaves, and the brake when too much is lost. Pure.

| State | orders that are taken |
|---|---|
| `active` | all within the limits |
| `reducing` | those that only shrink a position |
| `flattening` | none of the strategy; all orders are canceled and all positions closed, then `halted` |
| `halted` | none |

A breach of a limit per order refuses that order. A breach of a loss limit changes the state (`RiskLimits.loss_action`).
Quantities and money are `Decimal`, times are nanoseconds and passed in.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from types import MappingProxyType
from zoneinfo import ZoneInfo

import msgspec

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.orders.exposure import Portfolio, RiskOrder, units_of
from dry_work.orders.model import Side
from dry_work.orders.risk_limits import Bound, RiskLimits

CODE_PREFIX = "risk_"

_NEW_YORK = ZoneInfo("America/New_York")
_EPOCH_DAY = datetime(1970, 1, 1, tzinfo=UTC).toordinal()


class RiskState(StrEnum):
    """Which orders are taken."""

    ACTIVE = "active"
    REDUCING = "reducing"
    FLATTENING = "flattening"
    HALTED = "halted"

    @property
    def takes_orders(self) -> bool:
        """Tell whether any order of a strategy may leave."""
        return self in (RiskState.ACTIVE, RiskState.REDUCING)


class RiskCommand(StrEnum):
    """What changes the state."""

    REDUCE = "reduce"
    HALT = "halt"
    FLATTEN = "flatten"
    FLATTENED = "flattened"  # nothing is left to cancel or to close
    RELEASE = "release"


_S, _C = RiskState, RiskCommand
TRANSITIONS: Mapping[RiskState, Mapping[RiskCommand, RiskState]] = MappingProxyType(
    {
        _S.ACTIVE: {_C.REDUCE: _S.REDUCING, _C.HALT: _S.HALTED, _C.FLATTEN: _S.FLATTENING},
        _S.REDUCING: {_C.HALT: _S.HALTED, _C.FLATTEN: _S.FLATTENING, _C.RELEASE: _S.ACTIVE},
        _S.FLATTENING: {_C.FLATTENED: _S.HALTED, _C.RELEASE: _S.ACTIVE},
        _S.HALTED: {_C.FLATTEN: _S.FLATTENING, _C.RELEASE: _S.ACTIVE},
    }
)


def next_state(state: RiskState, command: RiskCommand) -> RiskState | None:
    """Return the state that the command leads to, None when it changes nothing."""
    return TRANSITIONS[state].get(command)


class LimitName(StrEnum):
    """Every limit by its name; an order that it refuses has the code `risk_<name>`."""

    ORDER_VALUE = "order_value"
    POSITION_VALUE = "position_value"
    GROSS_EXPOSURE = "gross_exposure"
    ORDERS_PER_MINUTE = "orders_per_minute"
    REPEATED_ORDERS = "repeated_orders"
    PRICE_COLLAR = "price_collar"
    STALE_BARS = "stale_bars"
    DAY_LOSS = "day_loss"
    DRAWDOWN = "drawdown"
    NO_PRICE = "no_price"  # nothing to judge the order by
    REDUCING = "reducing"
    FLATTENING = "flattening"
    HALTED = "halted"


class Breach(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that was reached: which, what was found, what is allowed."""

    limit: LimitName
    found: str
    allowed: str

    @property
    def code(self) -> str:
        """What stands in an order's `reject_code`."""
        return f"{CODE_PREFIX}{self.limit.value}"

    def __str__(self) -> str:
        return f"risk limit {self.limit.value}: {self.found}; allowed: {self.allowed}"


# The gate


class Quote(msgspec.Struct, frozen=True):
    """What is known of a symbol's market when an order is made."""

    price: Decimal | None  # the last one
    age_ns: int | None = None  # of the last bar while the market is open; None: not to be judged
    bar_ns: int = MINUTE_NS  # length of a bar


class LossMarks(msgspec.Struct, frozen=True, kw_only=True):
    """What losses are measured from."""

    day: int  # days since 1970, in New York
    day_equity: Decimal  # at the day's beginning
    peak: Decimal  # the highest equity


class RiskGate:
    """Judges orders and losses. One thread at a time.

    Args:
        limits: in force.
        state: to begin with.
        marks: what losses are measured from, None: from the first equity that is observed.
    """

    def __init__(
        self, limits: RiskLimits, *, state: RiskState = RiskState.ACTIVE, marks: LossMarks | None = None
    ) -> None:
        self.limits = limits
        self.state = state
        self.marks = marks
        self._sent: deque[int] = deque()
        self._recent: deque[tuple[int, tuple[object, ...]]] = deque()
        self._equal: Counter[tuple[object, ...]] = Counter()
        self._now_ns = 0

    def check(
        self, order: RiskOrder, portfolio: Portfolio, quote: Quote, now_ns: int, *, legs: Sequence[RiskOrder] = ()
    ) -> Breach | None:
        """Return the limit that refuses an order; None takes it, and counts it in here and in the portfolio.

        Args:
            order: about to be sent.
            portfolio: of the account; a replacement and everything else that is sent comes through here as well.
            quote: of the order's symbol.
            now_ns: the market's time.
            legs: exits that are sent with the order.
        """
        now_ns = self._advance(now_ns)
        portfolio.note_price(order.symbol, quote.price)
        breach = self._find_breach(order, portfolio, quote, now_ns)
        entry = Quote(order.limit_price or order.stop_price or quote.price)
        for leg in legs:
            # The exits of an entry begin to live at its price, a pair of exits lives now.
            breach = breach or self._check_price(leg, entry if leg.entry else quote)
        if breach is None:
            self._sent.append(now_ns)
            self._recent.append((now_ns, _likeness(order)))
            self._equal[_likeness(order)] += 1
            for sent in (order, *legs):
                portfolio.add(sent)
        return breach

    def observe(self, equity: Decimal, now_ns: int) -> Breach | None:
        """Take note of the account's equity; return the loss limit that it breaks."""
        day = trading_day(now_ns)
        marks = self.marks
        if marks is None:
            marks = LossMarks(day=day, day_equity=equity, peak=equity)
        elif day > marks.day or equity > marks.peak:
            is_new = day > marks.day
            marks = LossMarks(
                day=max(day, marks.day),
                day_equity=equity if is_new else marks.day_equity,
                peak=max(marks.peak, equity),
            )
        self.marks = marks
        for name, bound, since in (
            (LimitName.DAY_LOSS, self.limits.day_loss, marks.day_equity),
            (LimitName.DRAWDOWN, self.limits.drawdown, marks.peak),
        ):
            if bound is not None and since - equity > bound.amount(since):
                what = "since the day began" if name is LimitName.DAY_LOSS else "below the highest equity"
                return Breach(
                    limit=name,
                    found=f"{_money(since - equity)} lost {what}, {_money(since)}",
                    allowed=_describe_bound(bound, bound.amount(since)),
                )
        return None

    def release(self) -> None:
        """Measure losses anew, from the equity that is observed next."""
        self.marks = None

    def _find_breach(self, order: RiskOrder, portfolio: Portfolio, quote: Quote, now_ns: int) -> Breach | None:
        shrinks = portfolio.shrinks(order)
        breach = judge_state(self.state, shrinks=shrinks)
        if breach is not None:
            return breach
        for check in (self._check_rate, self._check_repeats):
            breach = check(order, now_ns)
            if breach is not None:
                return breach
        breach = self._check_price(order, quote)
        if breach is not None or shrinks:
            # What only shrinks a position lowers every value, and is not held up by missing data.
            return breach
        return self._check_age(quote) or self._check_values(order, portfolio, quote)

    def _check_rate(self, _order: RiskOrder, now_ns: int) -> Breach | None:
        _drop_before(self._sent, now_ns - MINUTE_NS)
        allowed = self.limits.orders_per_minute
        if not allowed or len(self._sent) < allowed:
            return None
        return Breach(
            limit=LimitName.ORDERS_PER_MINUTE,
            found=f"{len(self._sent) + 1} orders in a minute",
            allowed=f"{allowed}",
        )

    def _check_repeats(self, order: RiskOrder, now_ns: int) -> Breach | None:
        allowed = self.limits.repeated_orders
        if not allowed:
            return None
        window_ns = self.limits.repeated_seconds * SECOND_NS
        while self._recent and self._recent[0][0] <= now_ns - window_ns:
            _, likeness = self._recent.popleft()
            self._equal[likeness] -= 1
            if not self._equal[likeness]:
                del self._equal[likeness]
        count = self._equal[_likeness(order)]
        if count < allowed:
            return None
        return Breach(
            limit=LimitName.REPEATED_ORDERS,
            found=f"{count + 1} equal orders for {order.symbol} within {self.limits.repeated_seconds} s",
            allowed=f"{allowed}",
        )

    def _check_price(self, order: RiskOrder, quote: Quote) -> Breach | None:
        collar = self.limits.price_collar
        if collar is None or (order.limit_price is None and order.stop_price is None):
            return None
        if not quote.price:
            return Breach(
                limit=LimitName.NO_PRICE, found=f"no price of {order.symbol} is known", allowed="a last price"
            )
        sign = 1 if order.side is Side.BUY else -1
        # A stop that is behind the market goes off at once; a limit is worse the further it reaches beyond the price
        # at which the order begins to live.
        worse: list[tuple[str, Decimal, Decimal, Decimal]] = []  # what, price, compared with, how much worse
        begins = quote.price
        if order.stop_price is not None:
            part = (quote.price - order.stop_price) * sign / quote.price
            worse.append(("stop price", order.stop_price, quote.price, part))
            begins = order.stop_price
        if order.limit_price is not None:
            worse.append(("limit price", order.limit_price, begins, (order.limit_price - begins) * sign / begins))
        for what, price, compared, part in worse:
            if part > collar:
                return Breach(
                    limit=LimitName.PRICE_COLLAR,
                    found=f"{what} {price:f} is {_percent(part)} worse than {compared:f}",
                    allowed=f"{Bound(collar, is_share=True)}",
                )
        return None

    def _check_age(self, quote: Quote) -> Breach | None:
        allowed = self.limits.stale_bars
        if not allowed or quote.age_ns is None or quote.age_ns <= allowed * quote.bar_ns:
            return None
        return Breach(
            limit=LimitName.STALE_BARS,
            found=f"the last bar ended {quote.age_ns // SECOND_NS} s ago",
            allowed=f"{allowed} bars of {quote.bar_ns // SECOND_NS} s",
        )

    def _check_values(self, order: RiskOrder, portfolio: Portfolio, quote: Quote) -> Breach | None:
        limits, equity = self.limits, portfolio.equity
        if limits.order_value is None and limits.position_value is None and limits.gross_exposure is None:
            return None
        qty, price = order.quantity(quote.price), order.worth(quote.price)
        if qty is None or not price:
            return Breach(
                limit=LimitName.NO_PRICE, found=f"no price of {order.symbol} is known", allowed="a last price"
            )
        price *= units_of(order.symbol)
        before, after = portfolio.worst_case(order.symbol).value, portfolio.worst_case(order.symbol, order).value
        for name, bound, found, grows in (
            (LimitName.ORDER_VALUE, limits.order_value, qty * price, True),
            (LimitName.POSITION_VALUE, limits.position_value, after, after > before),
            (LimitName.GROSS_EXPOSURE, limits.gross_exposure, portfolio.gross - before + after, after > before),
        ):
            if bound is not None and grows and found > bound.amount(equity):
                return Breach(limit=name, found=_money(found), allowed=_describe_bound(bound, bound.amount(equity)))
        return None

    def _advance(self, now_ns: int) -> int:
        """Return the time, which does not go back by a little. By much, it is another clock: counting begins anew."""
        if now_ns < self._now_ns - MINUTE_NS:
            self._sent.clear()
            self._recent.clear()
            self._equal.clear()
        elif now_ns < self._now_ns:
            return self._now_ns
        self._now_ns = now_ns
        return now_ns


def trading_day(now_ns: int) -> int:
    """Return the day in New York, as days since 1970: no session of the exchanges goes through its midnight.

    A bar that ends at midnight belongs to the day before.
    """
    return datetime.fromtimestamp((now_ns - 1) // SECOND_NS, _NEW_YORK).toordinal() - _EPOCH_DAY


def judge_state(state: RiskState, *, shrinks: bool) -> Breach | None:
    """Return why the state refuses an order; `shrinks` says that it can only shrink a position."""
    if state is RiskState.ACTIVE or (state is RiskState.REDUCING and shrinks):
        return None
    if state is RiskState.REDUCING:
        return Breach(limit=LimitName.REDUCING, found="the order may open or turn a position", allowed="to shrink one")
    limit = LimitName.HALTED if state is RiskState.HALTED else LimitName.FLATTENING
    return Breach(limit=limit, found=f"the agent is {state.value}", allowed="no order until it is released")


def _likeness(order: RiskOrder) -> tuple[object, ...]:
    return (order.symbol, order.side, order.type, order.qty, order.notional, order.limit_price, order.stop_price)


def _drop_before(times: deque[int], limit_ns: int) -> None:
    while times and times[0] <= limit_ns:
        times.popleft()


def _describe_bound(bound: Bound, amount: Decimal) -> str:
    return f"{_money(amount)} ({bound} of equity)" if bound.is_share else _money(amount)


def _money(value: Decimal) -> str:
    return f"{value.quantize(Decimal('0.01'), ROUND_HALF_EVEN):,f}"


def _percent(part: Decimal) -> str:
    return f"{part * 100:.1f} %"
