"""Identifiers of the simulated exchange: the same run makes the same ones. Pure."""

from __future__ import annotations

import uuid

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "exchange.dry-work.invalid")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_ULID_LENGTH = 26
_MILLISECOND_NS = 1_000_000


def encode_ulid(time_ms: int, count: int) -> str:
    """Return a ULID of 26 characters: 48 bits of `time_ms`, then 80 bits of `count`, which stand for chance.

    Texts sort like (time_ms, count).
    """
    if not 0 <= time_ms < 1 << 48:
        raise ValueError(f"a ULID cannot hold the time {time_ms} ms: expected 0 to {(1 << 48) - 1}")
    if not 0 <= count < 1 << _RANDOM_BITS:
        raise ValueError(f"a ULID cannot hold the count {count}: expected 0 to {(1 << _RANDOM_BITS) - 1}")
    value = time_ms << _RANDOM_BITS | count
    digits = [_CROCKFORD[value >> 5 * place & 31] for place in reversed(range(_ULID_LENGTH))]
    return "".join(digits)


def decode_ulid(text: str) -> tuple[int, int]:
    """Return time in milliseconds and count of a ULID that `encode_ulid` could have made."""
    value = 0
    for letter in text:
        value = value << 5 | _CROCKFORD.index(letter)
    return value >> _RANDOM_BITS, value & (1 << _RANDOM_BITS) - 1


class EventIds:
    """Makes event ids: ULIDs of the venue's time that count up over all accounts. `last` is "" before the first."""

    def __init__(self) -> None:
        self.last = ""
        self._count = 0

    def take(self, now_ns: int) -> str:
        """Return the next id; `now_ns` must not go back."""
        self._count += 1
        self.last = encode_ulid(now_ns // _MILLISECOND_NS, self._count)
        return self.last


def build_account_id(key_id: str) -> str:
    """Return the id of the account that belongs to an API key."""
    return str(uuid.uuid5(_NAMESPACE, f"account:{key_id}"))


def build_account_number(key_id: str) -> str:
    """Return an account number in the form of Alpaca's paper accounts."""
    return "PA" + uuid.uuid5(_NAMESPACE, f"account:{key_id}").hex[:10].upper()


def build_order_id(key_id: str, number: int) -> str:
    """Return the id of an account's order `number`."""
    return str(uuid.uuid5(_NAMESPACE, f"order:{key_id}:{number}"))


def build_client_order_id(key_id: str, number: int) -> str:
    """Return the client order id of an order that came without one."""
    return str(uuid.uuid5(_NAMESPACE, f"client-order:{key_id}:{number}"))


def build_execution_id(order_id: str, number: int) -> str:
    """Return the id of an order's execution `number`."""
    return str(uuid.uuid5(_NAMESPACE, f"execution:{order_id}:{number}"))


def build_activity_id(execution_id: str) -> str:
    """Return the id of the fee of an execution."""
    return str(uuid.uuid5(_NAMESPACE, f"fee:{execution_id}"))


def build_watchlist_id(key_id: str, number: int) -> str:
    """Return the id of the watchlist that was made as `number`."""
    return str(uuid.uuid5(_NAMESPACE, f"watchlist:{key_id}:{number}"))
