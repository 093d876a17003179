from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dry_work.hub.interest import Interest

CLIENTS = st.sampled_from(["a", "b", "c"])
SYMBOLS = st.lists(st.sampled_from(["SPY", "IBM", "BRK.B", "BTC/USD"]), max_size=6)


def test_the_first_user_makes_a_symbol_wanted_and_the_last_one_lets_it_go() -> None:
    interest = Interest()
    assert interest.acquire("a", ["SPY", "IBM"]) == ("SPY", "IBM")
    assert interest.acquire("b", ["IBM", "BAC"]) == ("BAC",)
    assert interest.release("a") == ("SPY",)
    assert list(interest.wanted) == ["IBM", "BAC"]
    assert interest.release("b") == ("IBM", "BAC")
    assert not interest.wanted


def test_a_client_counts_once_however_often_it_asks() -> None:
    interest = Interest()
    interest.acquire("a", ["SPY", "SPY"])
    assert interest.acquire("a", ["SPY"]) == ()
    assert interest.count("SPY") == 1
    assert interest.release("a") == ("SPY",)


def test_single_symbols_can_be_released() -> None:
    interest = Interest()
    interest.acquire("a", ["SPY", "IBM"])
    assert interest.release("a", ["SPY", "BAC", "SPY"]) == ("SPY",)
    assert interest.held("a") == ("IBM",)


def test_an_unknown_client_releases_nothing() -> None:
    assert Interest().release("nobody") == ()


def test_a_client_without_symbols_is_not_kept() -> None:
    interest = Interest()
    interest.acquire("a", [])
    interest.acquire("b", ["SPY"])
    interest.release("b", ["SPY"])
    assert not interest.clients


class InterestMachine(RuleBasedStateMachine):
    """Any sequence of acquire and release against sets of symbols per client."""

    def __init__(self) -> None:
        super().__init__()
        self.interest = Interest()
        self.model: dict[str, set[str]] = {}
        self.upstream: set[str] = set()  # what a connection would be subscribed to

    @rule(client=CLIENTS, symbols=SYMBOLS)
    def acquire(self, client: str, symbols: list[str]) -> None:
        added = self.interest.acquire(client, symbols)
        assert not self.upstream.intersection(added)
        self.upstream.update(added)
        self.model.setdefault(client, set()).update(symbols)

    @rule(client=CLIENTS)
    def release_all(self, client: str) -> None:
        removed = self.interest.release(client)
        assert self.upstream.issuperset(removed)
        self.upstream.difference_update(removed)
        self.model.pop(client, None)

    @rule(client=CLIENTS, symbols=SYMBOLS)
    def release_some(self, client: str, symbols: list[str]) -> None:
        removed = self.interest.release(client, symbols)
        assert len(set(removed)) == len(removed)
        self.upstream.difference_update(removed)
        self.model.get(client, set()).difference_update(symbols)

    @invariant()
    def counts_are_the_clients_that_hold_a_symbol(self) -> None:
        held = [symbol for symbols in self.model.values() for symbol in symbols]
        assert set(self.interest.wanted) == self.upstream == set(held)
        for symbol in self.interest.wanted:
            assert self.interest.count(symbol) == held.count(symbol) > 0
        for client, symbols in self.model.items():
            assert set(self.interest.held(client)) == symbols
        assert set(self.interest.clients) == {client for client, symbols in self.model.items() if symbols}


TestInterestMachine = InterestMachine.TestCase
TestInterestMachine.settings = settings(deadline=None)


@settings(deadline=None)
@given(orders=st.lists(st.tuples(CLIENTS, SYMBOLS), max_size=12))
def test_nothing_is_wanted_once_every_client_has_left(orders: list[tuple[str, list[str]]]) -> None:
    interest = Interest()
    for client, symbols in orders:
        interest.acquire(client, symbols)
    for client in list(interest.clients):
        interest.release(client)
    assert not interest.wanted
    assert not interest.clients
