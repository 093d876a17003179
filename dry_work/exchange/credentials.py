"""Who may use the exchange, and when each key was heard of last. Event-loop only."""

from __future__ import annotations

import base64
import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from dry_work.clock import Clock
from dry_work.exchange.sub_accounts import SEPARATOR, SubAccounts

KEY_HEADER = "APCA-API-KEY-ID"
SECRET_HEADER = "APCA-API-SECRET-KEY"  # noqa: S105 - the name of a header


def read_headers(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return key id and secret as the headers give them: Alpaca's own pair, or HTTP Basic."""
    key_id, secret = headers.get(KEY_HEADER), headers.get(SECRET_HEADER)
    scheme, _, encoded = headers.get("Authorization", "").partition(" ")
    if key_id is None and scheme.lower() == "basic":
        try:
            key_id, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return None, None
    return key_id, secret


def read_key_id(headers: Mapping[str, str]) -> str:
    """Return the key id that the headers claim, empty when none."""
    return read_headers(headers)[0] or ""


class Credentials:
    """Checks key and secret; every key has an account of its own.

    Args:
        keys: secret by key id; None admits any pair that is not empty.
        open_account: called once for each key id, before its first use.
        sub_accounts: those that the keys trade for.
    """

    def __init__(
        self,
        keys: Mapping[str, str] | None,
        *,
        open_account: Callable[[str], None],
        sub_accounts: SubAccounts,
        clock: Clock,
    ) -> None:
        self.sub_accounts = sub_accounts
        self._keys = None if keys is None else dict(keys)
        self._open_account = open_account
        self._clock = clock
        self._opened: set[str] = set()
        self._seen_s: dict[str, float] = {}
        self._streams: Counter[str] = Counter()

    def admit(self, key_id: object, secret: object) -> bool:
        """Tell whether key and secret are good; opens the key's account at its first use."""
        if not isinstance(key_id, str) or not isinstance(secret, str) or not key_id or not secret:
            return False
        if SEPARATOR in key_id:  # the name of a sub-account, which has no credentials
            return False
        if self._keys is not None:
            known = self._keys.get(key_id, "")
            if not known or not hmac.compare_digest(known.encode(), secret.encode()):
                return False
        if key_id not in self._opened:
            self._open_account(key_id)
            self._opened.add(key_id)
        self._seen_s[key_id] = self._clock.monotonic()
        return True

    def restore(self, key_ids: Iterable[str]) -> None:
        """Take note of accounts that are there already, as if their keys had been heard of now."""
        key_ids = list(key_ids)
        self.sub_accounts.restore(key_ids)
        for key_id in key_ids:
            self._opened.add(key_id)
            self._seen_s[key_id] = self._clock.monotonic()

    def admit_headers(self, headers: Mapping[str, str]) -> str | None:
        """Return the key id of good credentials in the headers."""
        key_id, secret = read_headers(headers)
        return key_id if self.admit(key_id, secret) else None

    @contextmanager
    def hold_stream(self, key_id: str) -> Iterator[None]:
        """Count a trade stream of the key as open."""
        self._streams[key_id] += 1
        try:
            yield
        finally:
            self._streams[key_id] -= 1
            self._seen_s[key_id] = self._clock.monotonic()

    def silent_s(self, key_id: str) -> float:
        """Return the seconds since the key was heard of; 0 while it has a trade stream open."""
        if self._streams[key_id]:
            return 0.0
        return self._clock.monotonic() - self._seen_s.get(key_id, 0.0)
