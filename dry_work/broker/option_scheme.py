"""The commission scheme of options: a contract is worth, gains and loses 100 times its price. Engine thread only."""

from __future__ import annotations

from typing import Any

import backtrader as bt

from dry_work.market.symbols import is_option

_VALUATION = ("getvalue", "getvaluesize", "getoperationcost", "profitandloss", "getsize")
SIZE = 100
_SHORTEST = 16  # characters of the symbol; no stock or pair has as many


class OptionScheme(bt.CommInfoBase):
    """A scheme for contracts that charges what another one does.

    A part of the value is taken of the contracts' whole value, an amount a unit for each contract. The other's `mult`
    is not looked at: `setcommission(mult=100)` changes nothing.

    Params:
        scheme: the other one, stock-like.
    """

    params = (("scheme", None), ("mult", float(SIZE)))

    def getsize(self, price: float, cash: float) -> int:
        return int(self.p.leverage * (cash // (price * SIZE)))

    def getoperationcost(self, size: float, price: float) -> float:
        return abs(size) * price * SIZE

    def getvaluesize(self, size: float, price: float) -> float:
        return size * price * SIZE

    def getvalue(self, position: Any, price: float) -> float:
        return float(super().getvalue(position, price)) * SIZE

    def _getcommission(self, size: float, price: float, pseudoexec: bool) -> float:
        scheme = self.p.scheme
        is_of_value = scheme._commtype == scheme.COMM_PERC and not hasattr(scheme.p, "contract")
        return float(scheme._getcommission(size * SIZE if is_of_value else size, price, pseudoexec))

    def _get_credit_interest(self, *args: Any) -> float:
        return float(super()._get_credit_interest(*args)) * SIZE


def fit_scheme(scheme: Any, data: Any, made: dict[int, Any]) -> Any:
    """Return the scheme for a data: that of contracts for an option, unless `scheme` values them in its own way.

    Args:
        made: schemes that were made before, by the other's id; it keeps them.
    """
    if not is_contract(data) or not scheme.stocklike:
        return scheme
    kind = type(scheme)
    if any(getattr(kind, name) is not getattr(bt.CommInfoBase, name) for name in _VALUATION):
        return scheme
    found = made.get(id(scheme))
    if found is None or found.p.scheme is not scheme:
        parameters = {name: getattr(scheme.p, name) for name in ("leverage", "interest", "interest_long")}
        found = made[id(scheme)] = OptionScheme(scheme=scheme, **parameters)
    return found


def is_contract(data: Any) -> bool:
    """Tell whether a data is an option's."""
    symbol = getattr(data, "symbol", None) or data._name
    return isinstance(symbol, str) and len(symbol) >= _SHORTEST and is_option(symbol)
