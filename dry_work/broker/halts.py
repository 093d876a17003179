"""Symbols that take no new orders but those that shrink their position, since their state is not explained.

Engine thread only. Every change is written down, logged and told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal

import structlog

from dry_work.broker.actions import HaltSymbol
from dry_work.broker.journal import Journal
from dry_work.broker.journal_books import SymbolHalt
from dry_work.broker.tickets import Ticket
from dry_work.orders.books import ZERO, position_key
from dry_work.orders.model import OrderClass, OrderRequest, Side
from dry_work.orders.rules import Refusal, RefusalCode

_log = structlog.get_logger(__name__)


class SymbolHalts:
    """The halts in force.

    Args:
        journal: where they are written down.
        held: returns the signed quantity held of a symbol.
        open_tickets: returns the open orders that can add up.
        tell: takes a symbol, a client order id where there is one, and a sentence for people.
        time_ns: time of the machine.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        held: Callable[[str], Decimal],
        open_tickets: Callable[[], Iterable[Ticket]],
        tell: Callable[[str, str, str], None],
        time_ns: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._held = held
        self._open_tickets = open_tickets
        self._tell = tell
        self._time_ns = time_ns
        self._halts: dict[str, dict[str, str]] = {}  # reasons by symbol and cause

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols that are halted, without slashes."""
        return tuple(self._halts)

    def has(self, symbol: str, cause: str) -> bool:
        """Tell whether a symbol is halted for a cause."""
        return cause in self._halts.get(symbol, ())

    def reason(self, symbol: str) -> str:
        """Return why a symbol is halted, empty when it is not."""
        return "; ".join(self._halts.get(symbol, {}).values())

    def describe(self) -> str:
        """Return which symbols are halted and why, empty when none is."""
        return "; ".join(
            f"of {symbol}, but for those that shrink its position: {self.reason(symbol)}" for symbol in self._halts
        )

    def check(self, request: OrderRequest, *, replaces: str = "") -> Refusal | None:
        """Return why a request is refused: its symbol is halted, and it may do more than shrink the position.

        Args:
            request: about to be sent; of a replacement, the order as it will be.
            replaces: client order id of the order that it replaces.
        """
        reason = self.reason(position_key(request.symbol))
        if not reason or self._shrinks(request, replaces):
            return None
        return Refusal(
            RefusalCode.UNEXPLAINED, f"{request.symbol} takes only orders that shrink its position: {reason}"
        )

    def _shrinks(self, request: OrderRequest, replaces: str) -> bool:
        """Tell whether a request can do nothing but shrink a position, whatever open orders are filled."""
        held = self._held(request.symbol)
        if request.qty is None or request.order_class in (OrderClass.BRACKET, OrderClass.OTO):
            return False
        if not held or (held > 0) == (request.side is Side.BUY):
            return False
        others = [
            ticket.request.qty or ZERO
            for ticket in self._open_tickets()
            if ticket.request is not None
            and ticket.client_order_id != replaces
            and position_key(ticket.symbol) == position_key(request.symbol)
            and ticket.request.side is request.side
        ]
        return request.qty + sum(others, ZERO) <= abs(held)

    def forget(self, by: str) -> None:
        """Lift all that an earlier process has left in force."""
        self._journal.books.lift(by=by, at_ns=self._time_ns())

    def halt(self, halt: HaltSymbol) -> None:
        """Halt a symbol for a cause, once."""
        if self.has(halt.symbol, halt.cause):
            return
        self._halts.setdefault(halt.symbol, {})[halt.cause] = halt.reason
        self._journal.books.halt(
            SymbolHalt(symbol=halt.symbol, cause=halt.cause, reason=halt.reason, at_ns=self._time_ns())
        )
        _log.error("symbol halted: only orders that shrink its position are taken", symbol=halt.symbol, why=halt.reason)
        self._tell(halt.symbol, "halt", f"only orders that shrink the position are taken: {halt.reason}")

    def lift(self, symbol: str, cause: str) -> None:
        """Lift the halt of a symbol for a cause, if there is one."""
        causes = self._halts.get(symbol)
        if causes is None or cause not in causes:
            return
        del causes[cause]
        if not causes:
            del self._halts[symbol]
        self._journal.books.lift(symbol=symbol, cause=cause, by="explained", at_ns=self._time_ns())
        _log.warning("symbol is explained", symbol=symbol, cause=cause)
        if symbol not in self._halts:
            self._tell(symbol, "resume", "it is explained now: all orders are taken again")
