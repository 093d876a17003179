"""Subjects of NATS."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.wire.nats_subjects import Action, Subjects, encode_token

SUBJECTS = Subjects("nalpaca")


@pytest.mark.parametrize(
    ("symbol", "token"),
    [
        ("AAPL", "AAPL"),
        ("brk.b", "BRK_B"),
        ("BTC/USD", "BTC-USD"),
        ("AAPL240315C00172500", "AAPL240315C00172500"),
        ("", "_"),
    ],
)
def test_a_symbol_is_one_token(symbol: str, token: str) -> None:
    assert encode_token(symbol) == token


@given(st.text())
def test_whatever_a_symbol_is_its_subject_matches_the_consumers_filter(symbol: str) -> None:
    for subject in (SUBJECTS.bar(symbol), SUBJECTS.trade_update(symbol), SUBJECTS.news(symbol)):
        assert re.fullmatch(r"nalpaca\.data\.v0\.(stocks|tradeupdates|news)\.[^.*>\s]+", subject)


@pytest.mark.parametrize(
    ("rest", "action"),
    [
        ("orders.abc", Action("order", "abc")),
        ("cancel.ALL", Action("cancel", "ALL")),
        ("orders.a.b", Action("order", "a.b", is_matched=False)),
        ("orders", Action("order", "orders", is_matched=False)),
        ("foo.bar", Action("unknown", "foo.bar", is_matched=False)),
    ],
)
def test_an_action_is_read_from_its_subject(rest: str, action: Action) -> None:
    assert SUBJECTS.parse_action(f"nalpaca.action.v0.{rest}") == action


def test_subjects_stand_below_the_prefix() -> None:
    subjects = Subjects("team-1.paper")
    assert subjects.order("x") == "team-1.paper.action.v0.orders.x"
    assert subjects.cancel("ALL") == "team-1.paper.action.v0.cancel.ALL"
    assert subjects.result("x") == "team-1.paper.data.v0.results.x"
    for bad in ("", "a b", "a.*", ">", "a.", "ä"):
        with pytest.raises(ValueError, match="no prefix"):
            Subjects(bad)
