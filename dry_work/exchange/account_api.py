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
from dry_work.exchange.identifiers import build_activity_id
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.timeframes import NEW_YORK, Timeframe
from dry_work.exchange.venue import Venue
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
_ACTIVITIES = frozenset({"FILL", "CFEE", "FEE"})
_WORDS = {"trade_confirm_email": ("all", "none"), "max_margin_multiplier": ("1", "2", "4")}


class AccountApi:
    """Answers what is not about single orders and positions.

    Args:
        execute: carries out a command.
        fills: the fill events of a key so far, oldest first.
        equity: the equity of a key so far.
    """

    def __init__(
        self,
        venue: Venue,
        *,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        fills: Callable[[str], Sequence[TradeEvent]],
        equity: Callable[[str], EquityLog],
    ) -> None:
        self._venue = venue
        self._credentials = credentials
        self._execute = execute
        self._fills = fills
        self._equity = equity

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
        key_id = authorize(self._credentials, request)
        newest_first = query_word(request, "direction", ("desc", "asc"), code=CODE_REQUEST) == "desc"
        size = query_limit(request, "page_size", default=100, largest=100, code=CODE_REQUEST)
        after_ns = query_time(request, "after", code=CODE_REQUEST)
        until_ns = query_time(request, "until", code=CODE_REQUEST)
        date_ns = query_time(request, "date", code=CODE_REQUEST)
        if date_ns is not None:
            after_ns, until_ns = date_ns - 1, date_ns + DAY_NS
        asked = (request.match_info.get("kind") or request.query.get("activity_types", "")).upper()
        kinds = {kind.strip() for kind in asked.split(",") if kind.strip()} or _ACTIVITIES
        account_id = self._venue.account(key_id).id
        rows = [
            row
            for event in self._fills(key_id)
            if (after_ns is None or event.ts_event_ns > after_ns) and (until_ns is None or event.ts_event_ns < until_ns)
            for row in self._describe_activities(event, account_id)
            if row["activity_type"] in kinds
        ]
        if newest_first:
            rows.reverse()
        token = request.query.get("page_token")
        if token:
            ids = [row["id"] for row in rows]
            rows = rows[ids.index(token) + 1 :] if token in ids else []
        return build_answer(rows[:size])

    def _describe_activities(self, event: TradeEvent, account_id: str) -> list[dict[str, Any]]:
        rows = [_describe_fill(event, account_id)]
        if self._venue.rules == "alpaca":
            fee = _describe_fee(event, account_id)
            if fee is not None:
                rows.append(fee)
        return rows

    # Equity

    async def _get_history(self, request: web.Request) -> web.Response:
        log = self._equity(authorize(self._credentials, request))
        start_ns = query_time(request, "start", code=CODE_REQUEST)
        end_ns = query_time(request, "end", code=CODE_REQUEST)
        if end_ns is None:
            end_ns = self._venue.now_ns
        period_ns = _query_period(request)
        if start_ns is None:
            start_ns = 0 if period_ns is None else max(end_ns - period_ns, 0)
        days = (end_ns - start_ns) / DAY_NS
        default = "1min" if days <= 1 else "15min" if days < 30 else "1d"
        name = request.query.get("timeframe", default).lower()
        if name not in _TIMEFRAMES:
            allowed = ", ".join(_SPELLINGS.values())
            raise RefusedError(422, CODE_REQUEST, f"invalid timeframe: must be one of {allowed}")
        base_ns, base = log.before(start_ns + 1)
        rows = log.last_by(_TIMEFRAMES[name], start_ns, end_ns)
        return build_answer(
            {
                "timestamp": [time_ns // SECOND_NS for time_ns, _ in rows],
                "equity": [value for _, value in rows],
                "profit_loss": [value - base for _, value in rows],
                "profit_loss_pct": [(value - base) / base if base else None for _, value in rows],
                "base_value": base,
                "base_value_asof": encode_time(base_ns)[:10],
                "timeframe": _SPELLINGS[name],
                "cashflow": {},
            }
        )


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


def _activity_time(event: TradeEvent) -> str:
    moment = datetime.fromtimestamp(event.ts_event_ns // SECOND_NS, UTC).astimezone(NEW_YORK)
    return f"{moment:%Y%m%d%H%M%S}{event.ts_event_ns // 1_000_000 % 1000:03d}"


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
