"""The account over HTTP: its settings, its activities, the history of its equity. Event-loop only."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web
from msgspec.structs import replace

from dry_work.clock import DAY_NS, SECOND_NS
from dry_work.exchange.account import ZERO, AccountSettings, fill_fee
from dry_work.exchange.answers import authorize, build_answer, query_limit, query_time, query_word, read_object
from dry_work.exchange.commands import ChangeSettings, Command
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.equity import EquityLog
from dry_work.exchange.identifiers import build_activity_id, build_execution_id
from dry_work.exchange.option_rules import Settlement
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.timeframes import NEW_YORK, Timeframe
from dry_work.exchange.venue import Venue
from dry_work.market.calendar import SessionCalendar
from dry_work.orders.model import Side, TradeEvent
from dry_work.wire.alpaca_rest import CODE_REQUEST, encode_decimal
from dry_work.wire.pubsub import encode_time

_PERIOD = re.compile(r"([1-9]\d{0,3})([DWMA])", re.IGNORECASE | re.ASCII)
_PERIOD_DAYS = {"D": 1, "W": 7, "M": 30, "A": 365}
_TIMEFRAMES = {
    "1min": Timeframe(1, "min"),
    "5min": Timeframe(5, "min"),
    "15min": Timeframe(15, "min"),
    "1h": Timeframe(1, "hour"),
    "1d": Timeframe(1, "day"),
}
_SPELLINGS = {"1min": "1Min", "5min": "5Min", "15min": "15Min", "1h": "1H", "1d": "1D"}
_SETTLEMENTS = frozenset({"OPEXC", "OPASN", "OPEXP", "OPCSH", "OPTRD"})
_ACTIVITIES = frozenset({"FILL", "CFEE", "FEE"}) | _SETTLEMENTS
_CATEGORIES = {"trade_activity": frozenset({"FILL"}), "non_trade_activity": _ACTIVITIES - {"FILL"}}
_DESCRIPTIONS = {
    "OPEXC": "Option Exercise",
    "OPASN": "Option Assignment",
    "OPEXP": "Option Expiry",
    "OPCSH": "Option Cash Settlement",
    "OPTRD": "Option Trade",
}
_REPORTING = ("continuous", "market_hours", "extended_hours")
_WORDS = {"trade_confirm_email": ("all", "none"), "max_margin_multiplier": ("1", "2", "4")}


class AccountApi:
    """Answers what is not about single orders and positions.

    Args:
        execute: carries out a command.
        fills: the fill events of a key so far, oldest first.
        equity: the equity of a key so far.
        calendar: sessions of the stocks.
        settlements: what became of a key's options beside their orders so far, oldest first.
    """

    def __init__(
        self,
        venue: Venue,
        *,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        fills: Callable[[str], Sequence[TradeEvent]],
        equity: Callable[[str], EquityLog],
        settlements: Callable[[str], Sequence[Settlement]],
        calendar: SessionCalendar,
    ) -> None:
        self._venue = venue
        self._credentials = credentials
        self._execute = execute
        self._fills = fills
        self._equity = equity
        self._settlements = settlements
        self._calendar = calendar

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/v2/account/...`."""
        router.add_get("/v2/account/configurations", self._get_settings)
        router.add_patch("/v2/account/configurations", self._patch_settings)
        router.add_get("/v2/account/activities", self._get_activities)
        router.add_get("/v2/account/activities/{kind}", self._get_activities)
        router.add_get("/v2/account/portfolio/history", self._get_history)

    # Settings

    async def _get_settings(self, request: web.Request) -> web.Response:
        return build_answer(_describe_settings(self._venue.settings(authorize(self._credentials, request))))

    async def _patch_settings(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        # alpaca-py sends every field, unset ones as null; fields that are no longer known are passed over.
        asked = {name: value for name, value in (await read_object(request)).items() if value is not None}
        changes: dict[str, Any] = {}
        for field in msgspec.structs.fields(AccountSettings):
            name = field.name
            if name not in asked:
                continue
            value = asked[name]
            if name in _WORDS:
                is_allowed = str(value) in _WORDS[name]
                value = int(value) if is_allowed and name == "max_margin_multiplier" else value
            elif name == "max_options_trading_level":
                is_allowed = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3
            else:
                is_allowed = isinstance(value, bool)
            if not is_allowed:
                raise RefusedError(422, CODE_REQUEST, f"invalid {name}: {str(value)[:40]}")
            changes[name] = value
        settings = replace(self._venue.settings(key_id), **changes)
        self._execute(ChangeSettings(key_id=key_id, settings=settings))
        return build_answer(_describe_settings(self._venue.settings(key_id)))

    # Activities

    async def _get_activities(self, request: web.Request) -> web.Response:
        return build_answer(self.list_activities(request, [authorize(self._credentials, request)]))

    def list_activities(self, request: web.Request, key_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the page of the accounts' activities that a request asks for."""
        newest_first = query_word(request, "direction", ("desc", "asc"), code=CODE_REQUEST) == "desc"
        size = query_limit(request, "page_size", default=100, largest=100, code=CODE_REQUEST)
        after_ns = query_time(request, "after", code=CODE_REQUEST)
        until_ns = query_time(request, "until", code=CODE_REQUEST)
        date_ns = query_time(request, "date", code=CODE_REQUEST)
        if date_ns is not None:
            after_ns, until_ns = date_ns - 1, date_ns + DAY_NS
        asked = (request.match_info.get("kind") or request.query.get("activity_types", "")).upper()
        category = query_word(request, "category", ("", *_CATEGORIES), code=CODE_REQUEST)
        kinds = {kind.strip() for kind in asked.split(",") if kind.strip()} or _CATEGORIES.get(category, _ACTIVITIES)
        fills = [(event, self._venue.account(key_id).id) for key_id in key_ids for event in self._fills(key_id)]
        if len(key_ids) > 1:
            fills.sort(key=lambda row: row[0].event_id)
        rows = [
            row
            for event, account_id in fills
            if (after_ns is None or event.ts_event_ns > after_ns) and (until_ns is None or event.ts_event_ns < until_ns)
            for row in self._describe_activities(event, account_id)
            if row["activity_type"] in kinds
        ]
        rows += [
            _describe_settlement(settlement, self._venue.account(key_id).id)
            for key_id in key_ids
            for settlement in self._settlements(key_id)
            if settlement.kind in kinds
            and (after_ns is None or settlement.time_ns > after_ns)
            and (until_ns is None or settlement.time_ns < until_ns)
        ]
        if kinds & _SETTLEMENTS:
            rows.sort(key=lambda row: row["id"].partition("::")[0])
        if newest_first:
            rows.reverse()
        token = request.query.get("page_token")
        if token:
            ids = [row["id"] for row in rows]
            rows = rows[ids.index(token) + 1 :] if token in ids else []
        return rows[:size]

    def _describe_activities(self, event: TradeEvent, account_id: str) -> list[dict[str, Any]]:
        rows = [_describe_fill(event, account_id)]
        if self._venue.rules == "alpaca":
            fee = _describe_fee(event, account_id)
            if fee is not None:
                rows.append(fee)
        if event.order.commission and event.execution_id == build_execution_id(event.order.id, 1):
            rows.append(_describe_commission(event, account_id, event.order.commission))
        return rows

    # Equity

    def _is_reported(self, time_ns: int, reporting: str) -> bool:
        """Tell whether a moment is of the hours that are asked for."""
        if reporting == "market_hours":
            return self._calendar.is_open(time_ns)
        return reporting == "continuous" or self._calendar.trading_date(time_ns) is not None

    async def _get_history(self, request: web.Request) -> web.Response:
        log = self._equity(authorize(self._credentials, request))
        start_ns = query_time(request, "start", code=CODE_REQUEST)
        end_ns = query_time(request, "end", code=CODE_REQUEST)
        if end_ns is None:
            last_day_ns = query_time(request, "date_end", code=CODE_REQUEST)  # an older name, a day with its end
            end_ns = self._venue.now_ns if last_day_ns is None else last_day_ns + DAY_NS
        period_ns = _query_period(request)
        if start_ns is None:
            start_ns = 0 if period_ns is None else max(end_ns - period_ns, 0)
        days = (end_ns - start_ns) / DAY_NS
        default = "1min" if days <= 1 else "15min" if days < 30 else "1d"
        name = request.query.get("timeframe", default).lower()
        if name not in _TIMEFRAMES:
            allowed = ", ".join(_SPELLINGS.values())
            raise RefusedError(422, CODE_REQUEST, f"invalid timeframe: must be one of {allowed}")
        reporting = query_word(request, "intraday_reporting", _REPORTING, code=CODE_REQUEST)
        if request.query.get("extended_hours", "").lower() == "true":  # an older name
            reporting = "extended_hours"
        resets = query_word(request, "pnl_reset", ("no_reset", "per_day"), code=CODE_REQUEST) == "per_day"
        base_ns, base = log.before(start_ns + 1)
        rows = log.last_by(_TIMEFRAMES[name], start_ns, end_ns)
        if name == "1d":
            resets = False
        else:
            rows = [row for row in rows if self._is_reported(row[0], reporting)]
        bases = [log.before(_find_midnight(time_ns) + 1)[1] if resets else base for time_ns, _ in rows]
        return build_answer(
            {
                "timestamp": [time_ns // SECOND_NS for time_ns, _ in rows],
                "equity": [value for _, value in rows],
                "profit_loss": [value - before for (_, value), before in zip(rows, bases, strict=True)],
                "profit_loss_pct": [
                    (value - before) / before if before else None
                    for (_, value), before in zip(rows, bases, strict=True)
                ],
                "base_value": base,
                "base_value_asof": encode_time(base_ns)[:10],
                "timeframe": _SPELLINGS[name],
                "cashflow": {},
            }
        )


def _find_midnight(time_ns: int) -> int:
    """Return the midnight in New York that begins the day of a time."""
    moment = datetime.fromtimestamp(time_ns // SECOND_NS, UTC).astimezone(NEW_YORK)
    return int(moment.replace(hour=0, minute=0, second=0).timestamp()) * SECOND_NS


def _query_period(request: web.Request) -> int | None:
    """Return how far back is asked for; None for all of it."""
    text = request.query.get("period", "1M")
    if text.lower() == "all":
        return None
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise RefusedError(
            422, CODE_REQUEST, f"invalid period: {text[:40]}; expected a number and D, W, M or A, or all"
        )
    return int(match[1]) * _PERIOD_DAYS[match[2].upper()] * DAY_NS


def _describe_settings(settings: AccountSettings) -> dict[str, Any]:
    answer = msgspec.structs.asdict(settings)
    answer["max_margin_multiplier"] = str(settings.max_margin_multiplier)
    return answer


def _describe_fee(event: TradeEvent, account_id: str) -> dict[str, Any] | None:
    """Return the fee of a fill as an activity: CFEE in coins, FEE in dollars; None when there was none."""
    order = event.order
    qty, price = event.qty or ZERO, event.price or ZERO
    coins, money = fill_fee(order.symbol, qty if order.side is Side.BUY else -qty, price)
    if not coins and not money:
        return None
    moment = datetime.fromtimestamp(event.ts_event_ns // SECOND_NS, UTC).astimezone(NEW_YORK)
    row = {
        "id": f"{_activity_time(event)}::{build_activity_id(event.execution_id)}",
        "account_id": account_id,
        "activity_type": "CFEE" if coins else "FEE",
        "date": f"{moment:%Y-%m-%d}",
        "created_at": encode_time(event.ts_event_ns),
        "net_amount": encode_decimal(-money),
        "description": "Coin Pair Transaction Fee (Non USD)" if coins else "Coin Pair Transaction Fee",
        "status": "executed",
    }
    if coins:
        row |= {
            "symbol": order.symbol.replace("/", ""),
            "qty": encode_decimal(-coins),
            "price": encode_decimal(price),
        }
    return row


def _describe_commission(event: TradeEvent, account_id: str, commission: Decimal) -> dict[str, Any]:
    """Return the commission of an order, which is charged with its first fill, as an activity."""
    moment = datetime.fromtimestamp(event.ts_event_ns // SECOND_NS, UTC).astimezone(NEW_YORK)
    return {
        "id": f"{_activity_time(event)}::{build_activity_id(event.order.id)}",
        "account_id": account_id,
        "activity_type": "FEE",
        "date": f"{moment:%Y-%m-%d}",
        "created_at": encode_time(event.ts_event_ns),
        "net_amount": encode_decimal(-commission),
        "description": f"Commission of order {event.order.id}",
        "status": "executed",
    }


def _describe_settlement(settlement: Settlement, account_id: str) -> dict[str, Any]:
    moment = datetime.fromtimestamp(settlement.time_ns // SECOND_NS, UTC).astimezone(NEW_YORK)
    row_id = build_activity_id(f"{account_id}:{settlement.number}")
    return {
        "id": f"{_write_time(settlement.time_ns)}::{row_id}",
        "account_id": account_id,
        "activity_type": settlement.kind,
        "date": f"{moment:%Y-%m-%d}",
        "created_at": encode_time(settlement.time_ns),
        "net_amount": encode_decimal(settlement.net_amount),
        "description": _DESCRIPTIONS[settlement.kind],
        "symbol": settlement.symbol,
        "qty": encode_decimal(settlement.qty),
        "price": encode_decimal(settlement.price),
        "status": "executed",
    }


def _activity_time(event: TradeEvent) -> str:
    return _write_time(event.ts_event_ns)


def _write_time(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // SECOND_NS, UTC).astimezone(NEW_YORK)
    return f"{moment:%Y%m%d%H%M%S}{time_ns // 1_000_000 % 1000:03d}"


def _describe_fill(event: TradeEvent, account_id: str) -> dict[str, Any]:
    order = event.order
    leaves = Decimal(0) if order.qty is None else order.qty - order.filled_qty
    return {
        "id": f"{_activity_time(event)}::{event.execution_id}",
        "account_id": account_id,
        "activity_type": "FILL",
        "transaction_time": encode_time(event.ts_event_ns),
        "type": event.event,
        "price": encode_decimal(event.price or Decimal(0)),
        "qty": encode_decimal(event.qty or Decimal(0)),
        "side": order.side.value,
        "symbol": order.symbol,
        "leaves_qty": encode_decimal(leaves),
        "order_id": order.id,
        "cum_qty": encode_decimal(order.filled_qty),
        "order_status": str(order.status),
    }
