"""What Alpaca refuses for the sake of the account: funds, shares at hand, wash trades, exits in the wrong place. Pure.

- Open orders hold money or shares back. A group's exits hold their shares once; legs whose entry is not filled hold
  nothing beside the entry. An order to sell short counts at 1.03 times the last price, or at its limit when that is
  more. A short call holds the shares that cover it.
- Wash trades: a simple order is refused while a simple order of the other side is open in its symbol, when one of the
  two is a market or stop order, or when their limits cross. Trailing stops, brackets, oto and oco orders are exempt.
- Exits stand at least a cent from the entry's limit (in an oco pair the stop exit from the profit exit), for entries
  without one from the last price, each on its own side; the stop exit from the last price too.
- The stop of a stock order stands on the far side of the last price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from dry_work.clock import SECOND_NS
from dry_work.exchange import option_rules, order_rules
from dry_work.exchange.account import (
    OPTION_SIZE,
    SHORT_RESERVE_FACTOR,
    ZERO,
    Account,
    AlpacaAccount,
    BuyingPower,
    Reservation,
    contract_size,
    is_contract,
    truncate_qty,
)
from dry_work.exchange.assets import AssetBook
from dry_work.exchange.book import Book, OpenOrder
from dry_work.exchange.order_rules import RefusedError
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side, TimeInForce, VenueOrder

CENT = Decimal("0.01")
_NEW_YORK = ZoneInfo("America/New_York")
_WINDOWS = {TimeInForce.OPG: time(9, 28), TimeInForce.CLS: time(15, 50)}  # from then on none is taken
_WINDOWS_END = time(19, 0)


class AlpacaChecks:
    """Looks at requests and at the books of a venue.

    Args:
        prices: the last price by symbol, kept by the venue.
        refuse_wash_trades: False takes orders that would trade with the account's own.
        assets: what may be done with assets.
    """

    def __init__(
        self, *, prices: Mapping[str, Decimal], refuse_wash_trades: bool, assets: AssetBook | None = None
    ) -> None:
        self._prices = prices
        self._assets = assets or AssetBook()
        self._refuse_wash_trades = refuse_wash_trades

    def check(
        self, book: Book, request: OrderRequest, now_ns: int, *, instead_of: OpenOrder | None = None
    ) -> tuple[OrderRequest, Decimal | None]:
        """Refuse what asset class, hour or account forbid; return the request as taken, and its price if known."""
        order_rules.check_alpaca_request(request)
        order_rules.check_asset(request, self._assets.traits(request.symbol))
        _check_hour(request, now_ns)
        if is_crypto(request.symbol) and request.qty is not None:
            request = replace(request, qty=truncate_qty(request.qty))
            order_rules.check_request(request)  # less than the increment is nothing
        price = self._reference_price(request)
        if instead_of is None or request.stop_price != instead_of.order.stop_price:
            self._check_stop(request)
        if instead_of is not None and is_exit(instead_of):
            return request, price
        self._check_exits(request)
        self._check_funds(book, request, price, instead_of)
        if self._refuse_wash_trades:
            _check_wash_trade(book, request, instead_of)
        return request, price

    # Prices

    def _reference_price(self, request: OrderRequest) -> Decimal | None:
        """Return what a share of the order is taken to cost; None when nothing is known."""
        last = self._prices.get(request.symbol)
        asked = request.limit_price or request.stop_price
        if request.side is Side.BUY:
            return asked or last
        return max(asked or ZERO, last * SHORT_RESERVE_FACTOR) if last is not None else asked

    def _check_stop(self, request: OrderRequest) -> None:
        last, stop = self._prices.get(request.symbol), request.stop_price
        if last is None or stop is None or is_crypto(request.symbol):
            return
        if stop > last if request.side is Side.BUY else stop < last:
            return
        word = "greater" if request.side is Side.BUY else "less"
        context = {
            "market_price": order_rules.encode_decimal(last),
            "stop_price": order_rules.encode_decimal(stop),
        }
        message = f"stop price must be {word} than current price"
        raise RefusedError(422, order_rules.CODE_ORDER, message, context)

    def _check_exits(self, request: OrderRequest) -> None:
        if request.order_class is OrderClass.SIMPLE:
            return
        last = self._prices.get(request.symbol)
        is_oco = request.order_class is OrderClass.OCO
        sells = (request.side is Side.SELL) == is_oco
        asked = request.take_profit if is_oco else request.limit_price or request.stop_price
        base = asked or last
        if request.take_profit is not None and not is_oco and base is not None:
            _check_distance("take_profit.limit_price", request.take_profit, base, above=sells)
        if request.stop_loss is not None:
            for price in (base, last):
                if price is not None:
                    _check_distance("stop_loss.stop_price", request.stop_loss.stop_price, price, above=not sells)

    # Money

    def _check_funds(
        self, book: Book, request: OrderRequest, price: Decimal | None, instead_of: OpenOrder | None
    ) -> None:
        held = book.account.qty(request.symbol)
        closes = held > 0 if request.side is Side.SELL else held < 0
        if request.order_class is OrderClass.OCO and not closes:
            raise RefusedError(422, order_rules.CODE_ORDER, "oco orders must be exit orders")
        if request.order_class in (OrderClass.BRACKET, OrderClass.OTO) and closes:
            raise RefusedError(422, order_rules.CODE_ORDER, f"{request.order_class} orders must be entry orders")
        qty = self.estimate_qty(request)
        if closes or (request.side is Side.SELL and is_crypto(request.symbol)):
            existing, held_back = ZERO, ZERO
            if closes:
                existing, held_back = abs(held), held_qty(book, request.symbol, without=instead_of)
            if (qty or ZERO) > existing - held_back:
                assert qty is not None
                raise order_rules.build_no_quantity(request.symbol, requested=qty, existing=existing, held=held_back)
            return
        if is_contract(request.symbol):
            self._check_option(book, request, price, instead_of)
            return
        power = self.buying_power(book, without=instead_of)
        is_whole = request.qty is not None and order_rules.is_whole(request.qty)
        if request.side is Side.SELL and (power.multiplier == 1 or not is_whole):
            raise order_rules.build_no_short(is_whole=is_whole)
        if request.side is Side.SELL:
            order_rules.check_borrow(request, self._assets.traits(request.symbol))
        cost = request.notional
        if cost is None and price is not None and qty is not None:
            cost = qty * price
        if cost is None:
            return
        order_rules.check_alpaca_cost(request, cost)
        available = power.non_marginable if is_crypto(request.symbol) else power.marginable
        if cost > available:
            raise order_rules.build_no_buying_power(request.symbol, cost=cost, available=available)

    def _check_option(
        self, book: Book, request: OrderRequest, price: Decimal | None, instead_of: OpenOrder | None
    ) -> None:
        assert request.qty is not None
        buys = request.side is Side.BUY
        option_rules.check_level(book.settings, opens=True, buys=buys)
        cash = self.buying_power(book, without=instead_of).non_marginable
        if buys:
            if price is not None:
                option_rules.refuse_cost(request.qty * price * OPTION_SIZE, cash)
            return
        stock = _find_underlying(book, request.symbol)
        shares = book.account.qty(stock)
        free = shares - held_qty(book, stock, without=instead_of)
        option_rules.check_cover(request, request.qty, shares=shares, free_shares=free, cash=cash)

    def free_shares(self, book: Book, symbol: str) -> Decimal:
        """Return the shares of a stock that the account has and nothing holds, at least 0."""
        return max(book.account.qty(symbol) - held_qty(book, symbol), ZERO)

    def estimate_qty(self, request: OrderRequest) -> Decimal | None:
        """Return the quantity of a request, of one by value what the value buys at the last price, if that is known."""
        if request.notional is None:
            return request.qty
        price = self._prices.get(request.symbol)
        return None if price is None else truncate_qty(request.notional / (request.limit_price or price))

    def buying_power(self, book: Book, *, without: OpenOrder | None = None) -> BuyingPower:
        """Return what the account may spend, and what it might `without` one of its orders."""
        account = book.account
        assert isinstance(account, AlpacaAccount)
        return account.buying_power(
            self._prices, _reservations(book, without), max_multiplier=book.settings.max_margin_multiplier
        )

    def has_money(self, book: Book, entry: OpenOrder, price: Decimal) -> bool:
        """Tell whether an order that was made before its symbol had a price can be paid at `price`."""
        order = entry.order
        power = self.buying_power(book)
        is_cash = is_crypto(order.symbol) or is_contract(order.symbol)
        available = power.non_marginable if is_cash else power.marginable
        cost = entry.remaining * price * contract_size(order.symbol) if order.notional is None else order.notional
        return cost <= available


def held_qty(book: Book, symbol: str, *, without: OpenOrder | None = None) -> Decimal:
    """Return the (positive) quantity of a position that open orders are about to close."""
    if not book.account.qty(symbol):
        return ZERO
    closing = Side.SELL if book.account.qty(symbol) > 0 else Side.BUY
    covering = ZERO
    if closing is Side.SELL and not is_crypto(symbol) and not is_contract(symbol):
        covering = option_rules.covering_shares(book, symbol, without=without)
    return covering + sum(
        (
            max(part.remaining for part in _with_successor(entry))
            for entry in book.pending
            if entry.order.symbol == symbol
            and entry.order.side is closing
            and not entry.is_done
            and entry is not without
            and not _is_second_exit(entry)
        ),
        ZERO,
    )


def opens_position(account: Account, order: VenueOrder) -> bool:
    """Tell whether an order would make a position, or a larger one."""
    held = account.qty(order.symbol)
    return held >= 0 if order.side is Side.BUY else held <= 0


def is_exit(entry: OpenOrder) -> bool:
    """Tell whether an order is an exit of a group."""
    return entry.group is not None and not entry.group.is_entry(entry)


def _is_second_exit(entry: OpenOrder) -> bool:
    """Tell whether the shares of an exit are held by the other exit of its group already."""
    if not is_exit(entry):
        return False
    assert entry.group is not None
    first = entry.group.exits[0]
    return entry is not first and not first.is_done


def _reservations(book: Book, without: OpenOrder | None) -> Iterable[Reservation]:
    for entry in book.pending:
        order = entry.order
        if entry.is_done or entry is without or not opens_position(book.account, order):
            continue
        parts = _with_successor(entry)
        is_option = is_contract(order.symbol)
        values = [v for v in map(option_rules.order_value if is_option else _value, parts) if v is not None]
        if values:
            yield Reservation(order.symbol, max(values), is_option or order.side is Side.BUY)


def _value(entry: OpenOrder) -> Decimal | None:
    """Return what the rest of an order is taken to cost."""
    if entry.order.notional is not None and not entry.executions:
        return entry.order.notional
    return None if entry.check_price is None else entry.remaining * entry.check_price


def _with_successor(entry: OpenOrder) -> tuple[OpenOrder, ...]:
    return (entry,) if entry.successor is None else (entry, entry.successor)


def _find_underlying(book: Book, contract: str) -> str:
    """Return the stock of the account that a contract is of, else its root."""
    root = contract[:-15]
    return next((symbol for symbol in book.account.positions() if symbol.replace(".", "") == root), root)


def _check_hour(request: OrderRequest, now_ns: int) -> None:
    start = _WINDOWS.get(request.time_in_force)
    if start is None:
        return
    clock = datetime.fromtimestamp(now_ns // SECOND_NS, UTC).astimezone(_NEW_YORK).time()
    if start <= clock < _WINDOWS_END:
        hours = f"between {start:%H:%M} and {_WINDOWS_END:%H:%M} in New York"
        raise RefusedError(422, order_rules.CODE_ORDER, f"{request.time_in_force} orders are not accepted {hours}")


def _check_distance(name: str, price: Decimal, base: Decimal, *, above: bool) -> None:
    if price >= base + CENT if above else price <= base - CENT:
        return
    relation = ">= base_price + 0.01" if above else "<= base_price - 0.01"
    context = {"base_price": order_rules.encode_decimal(base)}
    raise RefusedError(422, order_rules.CODE_ORDER, f"{name} must be {relation}", context)


def _check_wash_trade(book: Book, request: OrderRequest, instead_of: OpenOrder | None) -> None:
    if request.order_class is not OrderClass.SIMPLE or request.type is OrderType.TRAILING_STOP:
        return
    for entry in book.pending:
        order = entry.order
        if (
            order.symbol != request.symbol
            or order.side is request.side
            or entry.is_done
            or entry is instead_of
            or entry.group is not None
            or order.type is OrderType.TRAILING_STOP
        ):
            continue
        is_limit = order.type in (OrderType.LIMIT, OrderType.STOP_LIMIT)
        if is_limit and request.limit_price is not None and order.limit_price is not None:
            buy, sell = request.limit_price, order.limit_price
            if request.side is Side.SELL:
                buy, sell = sell, buy
            if buy < sell:
                continue
        what = "limit" if is_limit else "market/stop"
        context = {"existing_order_id": order.id, "reject_reason": f"opposite side {what} order exists"}
        message = "potential wash trade detected. use complex orders"
        raise RefusedError(403, order_rules.CODE_FUNDS, message, context)
