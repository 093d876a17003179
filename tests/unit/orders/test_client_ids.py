"""Client order ids name agent and session and can be read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.errors import ConfigError
from dry_work.orders.client_ids import (
    CLIENT_ORDER_ID_LIMIT,
    ClientOrderId,
    build_client_order_id,
    parse_client_order_id,
)

AGENTS = st.text("abcXYZ019-_", min_size=1, max_size=63)
SESSIONS = st.text("abcdef0123456789_", min_size=1, max_size=16)


@given(AGENTS, SESSIONS, st.integers(1, 10**12 - 1))
def test_an_id_reads_back_as_its_parts_and_is_short_enough(agent: str, session: str, number: int) -> None:
    text = build_client_order_id(agent, session, number)
    assert parse_client_order_id(text) == ClientOrderId(agent, session, number)
    assert len(text) <= CLIENT_ORDER_ID_LIMIT


def test_an_id_has_the_agreed_form() -> None:
    assert build_client_order_id("sma-cross", "ab12", 7) == "dw-sma-cross-ab12-7"


@pytest.mark.parametrize(
    "text", ["", "dw-a-b", "dw-a-b-0", "dw-a-b-x", "x-a-b-1", "5680c4bc-0000-4000-8000-000000000000"]
)
def test_the_ids_of_others_are_not_ours(text: str) -> None:
    assert parse_client_order_id(text) is None


@pytest.mark.parametrize(("agent", "session"), [("a b", "s"), ("", "s"), ("a.b", "s"), ("a", "s-1"), ("a", "")])
def test_what_cannot_be_part_of_an_id_is_named(agent: str, session: str) -> None:
    with pytest.raises(ConfigError, match="expected letters"):
        build_client_order_id(agent, session, 1)


def test_an_agent_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long"):
        build_client_order_id("a" * 120, "session", 1)
