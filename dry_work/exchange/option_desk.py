"""Options in the venue: who may trade what, the bars of the contracts that matter, exercise and end. Pure.

A synthetic contract has a bar in every slice in which its stock has one, while the account of somebody has it or has an
open order for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal

import numpy as np

from dry_work.exchange.account import is_contract
from dry_work.exchange.alpaca_checks import AlpacaChecks, held_qty
from dry_work.exchange.book import Book
from dry_work.exchange.matching import BarPrices, build_money
from dry_work.exchange.option_contracts import OptionChains, OptionContract
from dry_work.exchange.option_prices import derive_bars
from dry_work.exchange.option_rules import CODE_EXERCISE, Settlement, Settler
from dry_work.exchange.order_rules import CODE_FUNDS, CODE_ORDER, RefusedError


class OptionDesk:
    """Works on the books and prices of a venue.

    Args:
        chains: the contracts that trade; None trades none.
        checks: knows what accounts may spend.
        bars: the last bar by symbol, kept by the venue.
        prices: its close.
        note: takes what becomes of positions beside orders.
    """

    def __init__(
        self,
        chains: OptionChains | None,
        *,
        checks: AlpacaChecks,
        bars: dict[str, BarPrices],
        prices: dict[str, Decimal],
        note: Callable[[str, Settlement], None],
    ) -> None:
        self._chains = chains
        self._bars = bars
        self._prices = prices
        self._settled: set[tuple[str, str]] = set()  # key and symbol
        self._note = note
        self._settler = Settler(
            prices=prices, buying_power=checks.buying_power, free_shares=checks.free_shares, note=self._take_note
        )

    def admit(self, symbol: str, now_ns: int) -> None:
        """Refuse an order for a contract that there is not, or no more; make its price known."""
        contract = None if self._chains is None else self._chains.contract(symbol)
        if contract is None:
            raise RefusedError(422, CODE_ORDER, f'asset "{symbol}" not found')
        assert self._chains is not None
        if now_ns >= self._chains.close_ns(contract):
            raise RefusedError(422, CODE_ORDER, f'contract "{symbol}" is expired')
        self._derive(contract)

    def derive_bars(self, books: Iterable[Book], fresh: set[str]) -> set[str]:
        """Make the bars of contracts whose stocks have a fresh one; return the contracts."""
        if self._chains is None:
            return set()
        found: set[str] = set()
        for symbol in self._find_wanted(books):
            contract = self._chains.contract(symbol)
            if contract is not None and contract.underlying in fresh and self._derive(contract):
                found.add(symbol)
        return found

    def exercise(self, book: Book, symbol: str, now_ns: int) -> None:
        """Exercise what of a position no open order is about to sell.

        Raises:
            RefusedError: as `Venue.exercise`.
        """
        contract = None if self._chains is None else self._chains.contract(symbol)
        if contract is None:
            raise RefusedError(422, CODE_ORDER, "invalid symbol")
        qty = book.account.qty(symbol)
        if qty < 0:
            raise RefusedError(403, CODE_EXERCISE, "cannot exercise short position")
        free = qty - held_qty(book, symbol)
        if free <= 0:
            raise RefusedError(403, CODE_FUNDS, "no available position for the specified contract")
        self._settler.exercise(book, contract, free, now_ns)

    def end_contracts(self, books: Iterable[Book], now_ns: int) -> None:
        """End the positions in contracts whose last moment came by `now_ns`."""
        chains = self._chains
        if chains is None:
            return
        for book in books:
            ended = [
                (chains.close_ns(contract), contract)
                for symbol, _ in book.account.contracts()
                if (contract := chains.contract(symbol)) is not None and chains.close_ns(contract) <= now_ns
            ]
            for close_ns, contract in sorted(ended, key=lambda found: (found[0], found[1].symbol)):
                self._settler.end(book, contract, close_ns)

    def check_bust(self, book: Book, symbol: str) -> None:
        """Refuse to take an execution back after its symbol was exercised, assigned or ended."""
        if (book.key_id, symbol) in self._settled:
            raise RefusedError(
                422, CODE_ORDER, f"executions of {symbol} are not taken back after an exercise, assignment or expiry"
            )

    def _take_note(self, key_id: str, settlement: Settlement) -> None:
        self._settled.add((key_id, settlement.symbol))
        self._note(key_id, settlement)

    def _find_wanted(self, books: Iterable[Book]) -> set[str]:
        wanted: set[str] = set()
        for book in books:
            wanted.update(symbol for symbol, _ in book.account.contracts())
            wanted.update(entry.order.symbol for entry in book.pending if is_contract(entry.order.symbol))
        return wanted

    def _derive(self, contract: OptionContract) -> bool:
        """Make a synthetic contract's last bar; tell whether there is one."""
        assert self._chains is not None
        stock = self._bars.get(contract.underlying)
        if stock is None or not self._chains.is_synthetic(contract.symbol):
            return False
        close_ns = self._chains.close_ns(contract)
        if stock.start_ns >= close_ns:
            return False
        columns = {name: np.array([float(getattr(stock, name))]) for name in ("open", "high", "low", "close", "volume")}
        length_ns = stock.end_ns - stock.start_ns
        made = derive_bars(contract, np.array([stock.start_ns]), columns, length_ns, close_ns)
        values = {name: build_money(float(made[name][0])) for name in ("open", "high", "low", "close")}
        self._bars[contract.symbol] = BarPrices(
            **values, start_ns=stock.start_ns, end_ns=stock.end_ns, volume=float(made["volume"][0])
        )
        self._prices[contract.symbol] = values["close"]
        return True
