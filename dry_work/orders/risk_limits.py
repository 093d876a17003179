"""The limits of the risk gate, their defaults, and their reading from settings. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType

import msgspec

ZERO = Decimal(0)


class LossAction(StrEnum):
    """What a loss limit does."""

    REDUCE = "reduce"
    HALT = "halt"
    FLATTEN = "flatten"


class OnBreach(StrEnum):
    """What a run does that a limit has halted."""

    STOP = "stop"
    HOLD = "hold"


class OpenOrders(StrEnum):
    """Which open orders are canceled when the agent is halted."""

    CANCEL_ENTRIES = "cancel_entries"  # those that do more than shrink a position
    CANCEL_ALL = "cancel_all"
    KEEP = "keep"


class Bound(msgspec.Struct, frozen=True):
    """An amount of money, or a fraction of the account's equity."""

    value: Decimal
    is_share: bool = False

    def amount(self, equity: Decimal) -> Decimal:
        """Return the amount; a share of an equity below 0 is 0."""
        return max(equity, ZERO) * self.value if self.is_share else self.value

    def __str__(self) -> str:
        return f"{(self.value * 100).normalize():f} %" if self.is_share else f"{self.value:,f}"


def share(percent: int) -> Bound:
    """Return a bound in percent of the equity."""
    return Bound(Decimal(percent) / 100, is_share=True)


class RiskLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits. None, and 0 for the counts, switches one off.

    The defaults are wide: they are there for mistakes, and leave alone what trades with no more than the account has.
    """

    order_value: Bound | None = share(200)  # of one order: a whole account may be turned from long to short
    position_value: Bound | None = share(150)  # of one symbol, with its open orders
    gross_exposure: Bound | None = share(200)  # of all symbols, with all open orders
    orders_per_minute: int = 600
    repeated_orders: int = 5  # equal in symbol, side, quantity and prices, within `repeated_seconds`
    repeated_seconds: int = 10
    price_collar: Decimal | None = Decimal("0.2")  # how much worse than the last price a price may be, as a fraction
    stale_bars: int = 15  # lengths of a bar that the last one may be old while the market is open
    day_loss: Bound | None = share(10)
    drawdown: Bound | None = share(20)  # from the highest equity
    loss_action: LossAction = LossAction.REDUCE
    on_breach: OnBreach = OnBreach.STOP
    open_orders: OpenOrders = OpenOrders.CANCEL_ENTRIES

    def describe(self) -> str:
        """Return the limits in one line."""
        parts = [
            f"{word} up to {bound}" + (" of equity" if bound.is_share else "")
            for word, bound in (
                ("order", self.order_value),
                ("position", self.position_value),
                ("gross", self.gross_exposure),
            )
            if bound is not None
        ]
        if self.orders_per_minute:
            parts.append(f"{self.orders_per_minute} orders a minute")
        if self.repeated_orders:
            parts.append(f"{self.repeated_orders} equal orders in {self.repeated_seconds} s")
        if self.price_collar is not None:
            parts.append(f"prices up to {Bound(self.price_collar, is_share=True)} worse than the last")
        if self.stale_bars:
            parts.append(f"data up to {self.stale_bars} bars old")
        losses = [
            f"{word} {bound}"
            for word, bound in (("day loss", self.day_loss), ("drawdown", self.drawdown))
            if bound is not None
        ]
        if losses:
            parts.append(f"{' or '.join(losses)}: {self.loss_action.value}")
        return ", ".join(parts) or "every limit is off"


class RiskValueError(ValueError):
    """A setting of the limits is not usable; says which and what is allowed."""


def parse_limits(table: Mapping[str, object], defaults: RiskLimits = RiskLimits()) -> RiskLimits:  # noqa: B008 - frozen
    """Return the limits with the settings of a table put over the defaults.

    Args:
        table: by the names of `RiskLimits`. Amounts are numbers, or percent of the equity as "50%"; "off" or 0 switches
            a limit off.
        defaults: what is not named stays.

    Raises:
        RiskValueError: naming the setting, its value and what is allowed.
    """
    found: dict[str, object] = {}
    for name, value in table.items():
        parse = _PARSERS.get(name)
        if parse is None:
            raise RiskValueError(f"no setting {name!r}; the settings: {', '.join(SETTING_NAMES)}")
        found[name] = parse(name, value)
    limits: RiskLimits = msgspec.structs.replace(defaults, **found)
    if not limits.repeated_seconds:
        limits = msgspec.structs.replace(limits, repeated_orders=0, repeated_seconds=1)
    return limits


def _parse_bound(name: str, value: object) -> Bound | None:
    text = str(value).strip().replace(",", "").replace("_", "").lower()
    if text == "off":
        return None
    is_share = text.endswith("%")
    number = _parse_number(text.removesuffix("%").strip())
    if isinstance(value, bool) or number is None:
        raise RiskValueError(f'{name} = {value!r}: expected an amount, a part of the equity such as "50%", or "off"')
    if not number:
        return None
    return Bound(number / 100 if is_share else number, is_share=is_share)


def _parse_share(name: str, value: object) -> Decimal | None:
    bound = None if isinstance(value, bool) else _parse_bound(name, value)
    if bound is None and str(value).strip().lower() not in ("off", "0", "0%", "0.0"):
        raise RiskValueError(f'{name} = {value!r}: expected percent such as "20%", or "off"')
    if bound is None:
        return None
    if not bound.is_share:
        raise RiskValueError(f'{name} = {value!r}: expected percent such as "20%", or "off"')
    return bound.value


def _parse_count(name: str, value: object) -> int:
    if isinstance(value, str) and value.strip().lower() == "off":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RiskValueError(f'{name} = {value!r}: expected a whole number, or 0 or "off"')
    return value


def _parse_word(words: type[StrEnum]) -> Callable[[str, object], StrEnum]:
    def parse(name: str, value: object) -> StrEnum:
        try:
            return words(str(value).strip().lower())
        except ValueError:
            listed = ", ".join(word.value for word in words)
            raise RiskValueError(f"{name} = {value!r}: expected one of {listed}") from None

    return parse


def _parse_number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except ArithmeticError:
        return None
    return number if number.is_finite() and number >= 0 else None


_PARSERS: Mapping[str, Callable[[str, object], object]] = MappingProxyType(
    {
        "order_value": _parse_bound,
        "position_value": _parse_bound,
        "gross_exposure": _parse_bound,
        "orders_per_minute": _parse_count,
        "repeated_orders": _parse_count,
        "repeated_seconds": _parse_count,
        "price_collar": _parse_share,
        "stale_bars": _parse_count,
        "day_loss": _parse_bound,
        "drawdown": _parse_bound,
        "loss_action": _parse_word(LossAction),
        "on_breach": _parse_word(OnBreach),
        "open_orders": _parse_word(OpenOrders),
    }
)
SETTING_NAMES = tuple(_PARSERS)
