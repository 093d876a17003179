"""Alpaca's trading API over HTTP. Event-loop only."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web
from msgspec.structs import replace

from dry_work.clock import SECOND_NS
from dry_work.errors import CodecError
from dry_work.exchange.account import OPTION_LEVEL, contract_size
from dry_work.exchange.answers import (
    authorize,
    build_answer,
    query_limit,
    query_symbols,
    query_time,
    query_word,
    read_object,
)
from dry_work.exchange.assets import HAS_OPTIONS, AssetBook, AssetTraits
from dry_work.exchange.commands import Cancel, CancelAll, ClosePosition, Command, CountOrder, Replace, Submit
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.option_rules import level_of
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.sub_accounts import describe_broker_fields, is_sub_account
from dry_work.exchange.venue import Venue
from dry_work.market.calendar import SessionCalendar
from dry_work.market.symbols import SymbolSpelling, is_crypto
from dry_work.orders.model import TERMINAL, VenueOrder, VenuePosition
from dry_work.wire.alpaca_orders import parse_order_request, parse_replacement
from dry_work.wire.alpaca_rest import (
    CODE_NOT_FOUND,
    CODE_REQUEST,
    CODE_VALIDATION,
    RequestError,
    asset_class,
    asset_id,
    encode_account,
    encode_error,
    encode_order,
    encode_position,
    parse_decimal,
)

_NEW_YORK = ZoneInfo("America/New_York")
_SETTLED_NEXT_DAY = date(2024, 5, 28)  # from then on; before it on the second day
_SETTLEMENT_REACH = timedelta(days=14)
_NO_LEGS = "mleg orders are not taken by this exchange: send an order for each leg"
_CLOSED = frozenset(status.value for status in TERMINAL)


class TradingApi:
    """Answers the trading API from the venue.

    Args:
        chains: the options that trade.
        execute: carries out a command.
        opened_ns: when the accounts were made, in the exchange's time.
        skew_s: by how much `/v2/clock` is ahead.
    """

    def __init__(
        self,
        venue: Venue,
        *,
        chains: OptionChains,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        calendar: SessionCalendar,
        opened_ns: int,
        skew_s: Callable[[], float],
    ) -> None:
        self._venue = venue
        self._chains = chains
        self._credentials = credentials
        self._execute = execute
        self._calendar = calendar
        self._opened_ns = opened_ns
        self._skew_s = skew_s
        self._spelling = SymbolSpelling(venue.assets)
        self._by_asset_id = {asset_id(symbol): symbol for symbol in venue.assets}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/v2/...`."""
        router.add_get("/v2/account", self._get_account)
        router.add_get("/v2/clock", self._get_clock)
        router.add_get("/v2/calendar", self._get_calendar)
        router.add_get("/v2/assets", self._get_assets)
        router.add_get("/v2/assets/{symbol:.+}", self._get_asset)
        router.add_post("/v2/orders", self._post_order)
        router.add_get("/v2/orders", self._get_orders)
        router.add_delete("/v2/orders", self._delete_orders)
        router.add_get("/v2/orders:by_client_order_id", self._get_order_by_client_id)
        router.add_get("/v2/orders/{order_id}", self._get_order)
        router.add_patch("/v2/orders/{order_id}", self._patch_order)
        router.add_delete("/v2/orders/{order_id}", self._delete_order)
        router.add_get("/v2/positions", self._get_positions)
        router.add_delete("/v2/positions", self._delete_positions)
        router.add_get("/v2/positions/{symbol}", self._get_position)
        router.add_delete("/v2/positions/{symbol}", self._delete_position)

    def canonical_symbol(self, text: str) -> str:
        """Return the symbol that a spelling, with or without slash, or an asset's id names."""
        known = self._by_asset_id.get(text.lower())
        return known or self._chains.find_by_id(text) or self._spelling.canonical(text)

    # Account

    async def _get_account(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        settings = self._venue.settings(key_id)
        values = [
            position.qty * self._price(position) * contract_size(position.symbol)
            for position in self._venue.positions(key_id)
        ]
        answer = encode_account(
            self._venue.account(key_id),
            created_ns=self._opened_ns,
            long_market_value=sum((value for value in values if value > 0), Decimal(0)),
            short_market_value=sum((value for value in values if value < 0), Decimal(0)),
            multiplier=self._venue.multiplier(key_id),
            non_marginable_buying_power=self._venue.non_marginable_buying_power(key_id),
            suspended=settings.suspend_trade,
            shorting_enabled=not settings.no_shorting,
        )
        if self._venue.rules == "alpaca":
            answer |= {
                "options_buying_power": answer["non_marginable_buying_power"],
                "options_approved_level": OPTION_LEVEL,
                "options_trading_level": level_of(settings),
            }
        if is_sub_account(key_id):
            answer |= describe_broker_fields(answer["cash"], self._calendar, self._venue.now_ns)
        return build_answer(answer)

    # Clock, calendar, assets

    async def _get_clock(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        now_ns, calendar = self._venue.now_ns, self._calendar
        return build_answer(
            {
                "timestamp": _format_new_york(now_ns + int(self._skew_s() * SECOND_NS)),
                "is_open": calendar.is_open(now_ns),
                "next_open": _format_new_york(calendar.next_open_ns(now_ns)),
                "next_close": _format_new_york(calendar.next_close_ns(now_ns)),
            }
        )

    async def _get_calendar(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        first, last = self._calendar.first, self._calendar.last
        start = max(_query_date(request, "start", first), first)
        end = min(_query_date(request, "end", last), last)
        if start > end:
            return build_answer([])
        by_settlement = query_word(request, "date_type", ("trading", "settlement"), code=CODE_REQUEST) == "settlement"
        first_day = max(start - _SETTLEMENT_REACH, first) if by_settlement else start
        sessions = self._calendar.sessions(first_day, min(end + _SETTLEMENT_REACH, last))
        days = [session.date for session in sessions]
        settled = [
            days[min(place + (1 if day >= _SETTLED_NEXT_DAY else 2), len(days) - 1)] for place, day in enumerate(days)
        ]
        return build_answer(
            [
                {
                    "date": session.date.isoformat(),
                    "settlement_date": settlement.isoformat(),
                    "open": _new_york(session.open_ns).strftime("%H:%M"),
                    "close": _new_york(session.close_ns).strftime("%H:%M"),
                    "session_open": _new_york(session.pre_open_ns).strftime("%H%M"),
                    "session_close": _new_york(session.post_close_ns).strftime("%H%M"),
                }
                for session, settlement in zip(sessions, settled, strict=True)
                if start <= (settlement if by_settlement else session.date) <= end
            ]
        )

    async def _get_assets(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        status = query_word(request, "status", ("active", "inactive", "all"), code=CODE_REQUEST)
        wanted = request.query.get("asset_class", "").lower()
        exchange = request.query.get("exchange", "").upper()
        attributes = {word.strip() for word in request.query.get("attributes", "").split(",") if word.strip()}
        rows = [self.describe_asset(symbol) for symbol in self._venue.assets if wanted in ("", asset_class(symbol))]
        return build_answer(
            [
                row
                for row in rows
                if status in ("all", row["status"])
                and exchange in ("", row["exchange"])
                and (not attributes or attributes.intersection(row["attributes"]))
            ]
        )

    async def _get_asset(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        text = request.match_info["symbol"]
        symbol = self.canonical_symbol(text)
        if symbol not in self._venue.assets and self._chains.contract(symbol) is None:
            raise RefusedError(404, CODE_NOT_FOUND, f"asset not found for {text}")
        return build_answer(self.describe_asset(symbol))

    def describe_asset(self, symbol: str) -> dict[str, Any]:
        """Return an asset as the trading API answers it."""
        return describe_asset(symbol, self._venue.traits.traits(symbol), has_options=self._chains.has_options(symbol))

    # Orders

    async def _post_order(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        await request.read()  # a request counts once it is here as a whole, whatever it says
        try:
            body = await read_object(request)
            if body.get("order_class") == "mleg":
                raise RequestError(422, CODE_VALIDATION, _NO_LEGS)
            order_request = parse_order_request(body)
        except (CodecError, RequestError):
            self._execute(CountOrder(key_id=key_id))
            raise
        symbol = self.canonical_symbol(order_request.symbol)
        commission = order_request.commission if is_sub_account(key_id) else None
        placed = replace(order_request, symbol=symbol, commission=commission)
        order: VenueOrder = self._execute(Submit(key_id=key_id, request=placed))
        return build_answer(encode_order(order))

    async def _get_orders(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        status = query_word(request, "status", ("open", "closed", "all"), code=CODE_REQUEST)
        limit = query_limit(request, "limit", default=50, largest=500, code=CODE_REQUEST)
        newest_first = query_word(request, "direction", ("desc", "asc"), code=CODE_REQUEST) == "desc"
        side = query_word(request, "side", ("", "buy", "sell"), code=CODE_REQUEST)
        after_ns = query_time(request, "after", code=CODE_REQUEST)
        until_ns = query_time(request, "until", code=CODE_REQUEST)
        symbols = {self.canonical_symbol(symbol) for symbol in query_symbols(request)}
        wanted_class = request.query.get("asset_class", "")
        orders = self._venue.orders(key_id)
        first = _query_order(request, "after_order_id", orders)
        last = _query_order(request, "before_order_id", orders)
        found = [
            order
            for order in orders[0 if first is None else first + 1 : last]
            if (status == "all" or (order.status in _CLOSED) == (status == "closed"))
            and (after_ns is None or order.submitted_ns > after_ns)
            and (until_ns is None or order.submitted_ns < until_ns)
            and (not symbols or order.symbol in symbols)
            and (not side or order.side == side)
            and wanted_class in ("", "all", asset_class(order.symbol))
        ]
        if _is_true(request, "nested"):
            found = self._nest(key_id, found)
        if newest_first:
            found.reverse()
        return build_answer([encode_order(order) for order in found[:limit]])

    def _nest(self, key_id: str, found: list[VenueOrder]) -> list[VenueOrder]:
        """Put legs under their heads. A leg whose head was not asked for stays, so that none is left out."""
        venue, ids = self._venue, {order.id for order in found}
        rows: list[VenueOrder] = []
        for order in found:
            head_id = venue.head_id(key_id, order.id)
            if head_id == order.id or head_id not in ids:
                rows.append(venue.order(key_id, order.id, nested=True) or order)
        return rows

    async def _get_order(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        order_id = request.match_info["order_id"]
        order = self._venue.order(key_id, order_id.lower(), nested=_is_true(request, "nested"))
        return _answer_order(order, order_id)

    async def _get_order_by_client_id(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        client_order_id = request.query.get("client_order_id", "")
        return _answer_order(self._venue.order_by_client_id(key_id, client_order_id), client_order_id)

    async def _patch_order(self, request: web.Request) -> web.Response:
        # Not counted as an order request: the lock-step waits for submits alone.
        key_id = authorize(self._credentials, request)
        change = parse_replacement(await read_object(request))
        order_id = request.match_info["order_id"].lower()
        order: VenueOrder = self._execute(Replace(key_id=key_id, order_id=order_id, change=change))
        return build_answer(encode_order(order))

    async def _delete_order(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        self._execute(Cancel(key_id=key_id, order_id=request.match_info["order_id"].lower()))
        return web.Response(status=204)

    async def _delete_orders(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        return build_answer(self._cancel_all(key_id), status=207)

    def _cancel_all(self, key_id: str) -> list[dict[str, Any]]:
        return [
            {"id": order_id, "status": status} if body is None else {"id": order_id, "status": status, "body": body}
            for order_id, status, body in self._execute(CancelAll(key_id=key_id))
        ]

    # Positions

    async def _get_positions(self, request: web.Request) -> web.Response:
        return build_answer(self.list_positions(authorize(self._credentials, request)))

    def list_positions(self, key_id: str) -> list[dict[str, Any]]:
        """Return the positions of an account as they are answered."""
        return [self._describe_position(key_id, position) for position in self._venue.positions(key_id)]

    async def _get_position(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        text = request.match_info["symbol"]
        symbol = self.canonical_symbol(text)
        for position in self._venue.positions(key_id):
            if position.symbol == symbol:
                return build_answer(self._describe_position(key_id, position))
        raise RefusedError(404, CODE_NOT_FOUND, f"position not found: {text}")

    async def _delete_position(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        symbol = self.canonical_symbol(request.match_info["symbol"])
        amounts = [_query_amount(request, name) for name in ("qty", "percentage")]
        command = ClosePosition(key_id=key_id, symbol=symbol, qty=amounts[0], percentage=amounts[1])
        order: VenueOrder = self._execute(command)
        return build_answer(encode_order(order))

    async def _delete_positions(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        if _is_true(request, "cancel_orders"):
            self._cancel_all(key_id)
        rows = []
        for position in self._venue.positions(key_id):
            try:
                order: VenueOrder = self._execute(ClosePosition(key_id=key_id, symbol=position.symbol))
                status, body = 200, encode_order(order)
            except RefusedError as error:
                status, body = error.http_status, encode_error(error.code, error.message, error.context)
            rows.append({"symbol": position.symbol.replace("/", ""), "status": status, "body": body})
        return build_answer(rows, status=207)

    def _price(self, position: VenuePosition) -> Decimal:
        price = self._venue.last_price(position.symbol)
        return position.avg_entry_price if price is None else price

    def _describe_position(self, key_id: str, position: VenuePosition) -> dict[str, Any]:
        held = self._venue.held_qty(key_id, position.symbol)
        available = position.qty + held if position.qty < 0 else position.qty - held
        size = contract_size(position.symbol)
        answer = encode_position(
            position, current_price=self._price(position), qty_available=available, contract_size=size
        )
        traits = self._venue.traits.traits(position.symbol)
        return answer | {"exchange": traits.exchange, "asset_marginable": traits.marginable}


def _answer_order(order: VenueOrder | None, asked: str) -> web.Response:
    if order is None:
        raise RefusedError(404, CODE_NOT_FOUND, f"order not found for {asked}")
    return build_answer(encode_order(order))


def describe_asset(symbol: str, traits: AssetTraits | None = None, *, has_options: bool = False) -> dict[str, Any]:
    """Return an asset as the trading API answers it; without traits with those of its class."""
    crypto = is_crypto(symbol)
    traits = traits or AssetBook().traits(symbol)
    margin = 30 if traits.marginable else 100
    attributes = [word for word in traits.attributes if word != HAS_OPTIONS]
    asset: dict[str, Any] = {
        "id": asset_id(symbol),
        "class": asset_class(symbol),
        "exchange": traits.exchange,
        "symbol": symbol,
        "name": traits.name or symbol,
        "status": traits.status,
        "tradable": traits.tradable and traits.status == "active",
        "marginable": traits.marginable,
        "maintenance_margin_requirement": margin,
        "margin_requirement_long": str(margin),
        "margin_requirement_short": str(margin),
        "shortable": traits.shortable,
        "easy_to_borrow": traits.shortable and traits.easy_to_borrow,
        "fractionable": traits.fractionable,
        "attributes": [*attributes, HAS_OPTIONS] if has_options else attributes,
    }
    if crypto:
        asset |= {
            "min_order_size": "0.000000001",
            "min_trade_increment": "0.000000001",
            "price_increment": "0.000000001",
        }
    elif traits.shortable:
        asset["borrow_status"] = "easy_to_borrow" if traits.easy_to_borrow else "hard_to_borrow"
    else:
        asset["borrow_status"] = "not_shortable"
    return asset


def _is_true(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() == "true"


def _query_order(request: web.Request, name: str, orders: list[VenueOrder]) -> int | None:
    """Return the place of the order that the query names, None when it names none."""
    asked = request.query.get(name, "").lower()
    if not asked:
        return None
    for index, order in enumerate(orders):
        if order.id == asked:
            return index
    raise RefusedError(404, CODE_NOT_FOUND, f"order not found for {asked[:40]}")


def _new_york(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // SECOND_NS, _NEW_YORK)


def _format_new_york(time_ns: int) -> str:
    return _new_york(time_ns).isoformat()


def _query_date(request: web.Request, name: str, default: date) -> date:
    text = request.query.get(name)
    if not text:
        return default
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise RefusedError(422, CODE_REQUEST, f"invalid {name}: {text[:40]}") from None


def _query_amount(request: web.Request, name: str) -> Decimal | None:
    try:
        amount = parse_decimal(request.query.get(name))
    except CodecError:
        amount = Decimal(0)
    if amount is not None and amount <= 0:
        raise RefusedError(422, CODE_VALIDATION, f"{name} must be a number > 0")
    return amount
