"""Holds over Redis: counted, leased, kept."""

from __future__ import annotations

from typing import Any

import pytest

from dry_work.errors import CodecError
from dry_work.hub.sinks.redis_holds import MOST_HOLDERS, Holds
from dry_work.wire.redis import Registration

LEASE_S = 60.0
TRADES_OF_AAPL = {("stocks", name, "AAPL") for name in ("trades", "corrections", "cancelErrors")}


def ask(*symbols: str, adds: bool = True, **more: Any) -> Registration:
    return Registration(adds=adds, symbols=symbols, **more)


def release(*symbols: str, **more: Any) -> Registration:
    return ask(*symbols, adds=False, **more)


@pytest.fixture
def holds() -> Holds:
    return Holds(LEASE_S)


def test_each_registration_without_a_client_id_is_a_hold_and_each_unregistration_ends_one(holds: Holds) -> None:
    holds.add(ask("AAPL", "MSFT"), 0.0)
    holds.add(ask("AAPL"), 0.0)
    assert holds.remove(release("AAPL", "MSFT")) == ["AAPL", "MSFT"]
    assert holds.symbols == ("AAPL",)
    assert holds.remove(release("AAPL", "MSFT")) == ["AAPL"]
    assert len(holds) == 0
    assert holds.remove(release("AAPL")) == []


def test_a_client_has_one_hold_however_often_it_registers_and_takes_nobody_elses(holds: Holds) -> None:
    holds.add(ask("AAPL"), 0.0)
    for _ in range(3):
        holds.add(ask("AAPL", client_id="a"), 0.0)
    assert holds.remove(release("AAPL", client_id="b")) == []
    assert holds.remove(release("AAPL", client_id="a")) == ["AAPL"]
    assert holds.remove(release("AAPL", client_id="a")) == []
    assert holds.symbols == ("AAPL",)


def test_what_is_wanted_are_the_channels_of_all_holders(holds: Holds) -> None:
    holds.add(ask("AAPL"), 0.0)
    assert holds.topics_of("AAPL") == TRADES_OF_AAPL
    holds.add(ask("AAPL", channels=("bars", "news", "watermarks"), client_id="a"), 0.0)
    bars = {("stocks", "bars", "AAPL"), ("news", "news", "AAPL"), ("stocks", "watermarks", "*")}
    assert holds.topics_of("AAPL") == TRADES_OF_AAPL | bars
    holds.remove(release("AAPL", channels=("news",), client_id="a"))
    holds.remove(release("AAPL"))
    assert holds.topics_of("AAPL") == bars - {("news", "news", "AAPL")}
    assert holds.remove(release(client_id="a")) == ["AAPL"], "all that the client holds"
    assert holds.topics_of("AAPL") == set()
    holds.add(ask("BTC/USD", "AAPL240315C00172500"), 0.0)
    assert holds.topics_of("BTC/USD") == {("crypto", "trades", "BTC/USD")}
    assert holds.topics_of("AAPL240315C00172500") == {("options", "trades", "AAPL240315C00172500")}
    holds.add(ask("AAPL240315C00172500", channels=("bars", "watermarks"), client_id="b"), 0.0)
    assert holds.topics_of("AAPL240315C00172500") == {
        ("options", "trades", "AAPL240315C00172500"),
        ("stocks", "bars", "AAPL240315C00172500"),
        ("stocks", "watermarks", "*"),
    }


def test_a_symbol_that_nobody_listens_to_ends_after_the_lease_whoever_holds_it(holds: Holds) -> None:
    holds.add(ask("AAPL"), 0.0)
    holds.add(ask("AAPL", "MSFT", client_id="a"), 10.0)
    assert holds.check(["MSFT"], has_patterns=False, now_s=69.9) == []
    assert holds.check(["MSFT"], has_patterns=False, now_s=70.0) == ["AAPL"]
    assert holds.check([], has_patterns=False, now_s=129.9) == []
    assert holds.check([], has_patterns=False, now_s=130.0) == ["MSFT"]
    assert len(holds) == 0


def test_registering_again_and_a_restart_of_redis_begin_the_lease_anew(holds: Holds) -> None:
    holds.add(ask("AAPL", client_id="a"), 0.0)
    holds.add(ask("AAPL", client_id="a"), 50.0)
    assert holds.check([], has_patterns=False, now_s=100.0) == []
    holds.note_restart(105.0)
    assert holds.check([], has_patterns=False, now_s=164.9) == []
    assert holds.check([], has_patterns=False, now_s=165.0) == ["AAPL"]


def test_a_subscription_to_a_pattern_keeps_a_symbol_until_a_message_has_no_receivers(holds: Holds) -> None:
    holds.add(ask("AAPL", channels=("trades", "bars")), 0.0)
    holds.add(ask("MSFT", channels=("quotes",)), 0.0)
    assert holds.check([], has_patterns=True, now_s=60.0) == ["MSFT"], "it has no messages at all"
    holds.note_receivers("AAPL", "trades", 0)
    assert holds.check([], has_patterns=True, now_s=100.0) == [], "there may be some for bars"
    holds.note_receivers("AAPL", "bars", 1)
    holds.note_receivers("NOBODY", "bars", 1)
    assert holds.check([], has_patterns=True, now_s=200.0) == []
    holds.note_receivers("AAPL", "bars", 0)
    assert holds.check([], has_patterns=True, now_s=259.9) == []
    assert holds.check([], has_patterns=True, now_s=260.0) == ["AAPL"]


def test_what_is_kept_is_restored_with_its_counts(holds: Holds) -> None:
    for _ in range(2):
        holds.add(ask("AAPL", "BTC/USD"), 0.0)
    holds.add(ask("AAPL", channels=("trades", "bars"), client_id="a"), 0.0)
    kept = {symbol: holds.encode(symbol) or b"" for symbol in holds.symbols}
    assert holds.encode("MSFT") is None
    other = Holds(LEASE_S)
    assert other.restore(kept, 500.0) == []
    assert {symbol: other.encode(symbol) for symbol in other.symbols} == kept
    assert other.check([], has_patterns=False, now_s=559.0) == []
    assert other.clients == holds.clients == 3


def test_what_cannot_be_read_is_left_out_and_told(holds: Holds) -> None:
    kept = {
        "AAPL": b"{",
        "no symbol": b"{}",
        "MSFT": b'{"anonymous":{"trades":1,"nothing":2,"bars":-1},"clients":{"a":["nothing"]}}',
        "SPY": b"{}",
    }
    assert holds.restore(kept, 0.0) == ["AAPL", "no symbol"]
    assert holds.symbols == ("MSFT",)
    assert holds.encode("MSFT") == b'{"anonymous":{"trades":1},"clients":{}}'


def test_holders_are_bounded(holds: Holds) -> None:
    for number in range(MOST_HOLDERS):
        holds.add(ask("AAPL", client_id=str(number)), 0.0)
    with pytest.raises(CodecError, match="AAPL is held by"):
        holds.add(ask("MSFT", "AAPL", client_id="one more"), 0.0)
    assert holds.symbols == ("AAPL",)
    holds.add(ask("AAPL", client_id="7"), 0.0)
