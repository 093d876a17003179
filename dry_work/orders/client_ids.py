"""Client order ids: `dw-<agent>-<session>-<n>`. Pure.

The session is minted once per journal and `n` counts its orders from 1, so that an id is never used twice and says
whose order it is.
"""

from __future__ import annotations

import re

import msgspec

from dry_work.errors import ConfigError

CLIENT_ORDER_ID_LIMIT = 128  # characters, Alpaca's limit

_PREFIX = "dw-"
_AGENT = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SESSION = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_ID = re.compile(r"dw-(?P<agent>[A-Za-z0-9_-]+)-(?P<session>[A-Za-z0-9_]+)-(?P<number>[1-9][0-9]*)", re.ASCII)
_NUMBER_DIGITS = 12  # room for the count


class ClientOrderId(msgspec.Struct, frozen=True):
    """The parts of one of our client order ids."""

    agent: str
    session: str
    number: int


def check_names(agent: str, session: str) -> None:
    """Check that agent and session can be part of a client order id.

    Raises:
        ConfigError: naming the value and what is allowed.
    """
    if not _AGENT.fullmatch(agent):
        raise ConfigError(f"agent {agent!r}: expected letters, digits, - or _, as it is part of every client order id")
    if not _SESSION.fullmatch(session):
        raise ConfigError(f"session {session!r}: expected letters, digits or _, as it is part of client order ids")
    room = CLIENT_ORDER_ID_LIMIT - len(_PREFIX) - 2 - _NUMBER_DIGITS
    if len(agent) + len(session) > room:
        raise ConfigError(
            f"agent {agent!r} is too long: with its session it may have {room} characters, "
            f"since a client order id has at most {CLIENT_ORDER_ID_LIMIT}"
        )


def build_client_order_id(agent: str, session: str, number: int) -> str:
    """Return the client order id of the session's order `number`, counted from 1.

    Raises:
        ConfigError: when agent or session cannot be part of it.
    """
    check_names(agent, session)
    if number < 1:
        raise ValueError(f"order number {number}: they count from 1")
    return f"{_PREFIX}{agent}-{session}-{number}"


def parse_client_order_id(text: str) -> ClientOrderId | None:
    """Return the parts of one of our client order ids, None when it is somebody else's."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    return ClientOrderId(match["agent"], match["session"], int(match["number"]))
