"""What only the simulated exchange offers: who it is, and the registration of those it waits for."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from dry_work.addresses import is_alpaca_url as is_alpaca
from dry_work.alpaca.venue_api import VenueApi
from dry_work.errors import BrokerUnavailableError, ConfigError, OrderRejectedError, OutcomeUnknownError
from dry_work.wire.pubsub import parse_time

__all__ = ["ConsumerPlace", "ExchangeControl", "ExchangeSession", "is_alpaca"]


class ExchangeSession(msgspec.Struct, frozen=True, kw_only=True):
    """The simulated exchange's word on its session. Absent at Alpaca."""

    simulated: bool
    rules: str
    lockstep: bool
    speed: str | float
    fingerprint: str
    symbols: tuple[str, ...]
    slices: int
    state: str  # waiting, running or ended
    slice: int
    start: str
    end: str


class _Place(msgspec.Struct, frozen=True):
    slice: int
    end: str | None
    owes: bool


class ConsumerPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a registered consumer is in a market that waits for it."""

    number: int  # of the last slice that was opened, 0 before the first
    end_ns: int  # its end, 0 before the first
    owes: bool  # it is open, and the consumer has yet to report it


class ExchangeControl:
    """The simulated exchange's own interface, on the connection of a `VenueApi`. One thread at a time."""

    def __init__(self, api: VenueApi) -> None:
        self._api = api

    def session(self) -> ExchangeSession | None:
        """Return the session, or None when the server is no simulated exchange.

        Raises:
            BrokerUnavailableError: when nobody answers.
        """
        try:
            answer = self._call("GET", "/session")
            return msgspec.convert(answer, type=ExchangeSession)
        except (OrderRejectedError, msgspec.ValidationError):
            return None

    def place(self, consumer: str) -> ConsumerPlace | None:
        """Return where `consumer` is, None when the exchange does not wait for it.

        Raises:
            BrokerUnavailableError: when it does not answer as it should.
        """
        try:
            answer = self._call("GET", f"/consumers/{quote(consumer, safe='')}")
        except OrderRejectedError:
            return None
        try:
            found = msgspec.convert(answer, type=_Place)
            end_ns = 0 if found.end is None else parse_time(found.end)
        except (msgspec.ValidationError, ValueError):
            return None  # an exchange of another version
        return ConsumerPlace(number=found.slice, end_ns=end_ns, owes=found.owes)

    def register(self, consumer: str, symbols: tuple[str, ...], *, resume: bool = False) -> None:
        """Make the market wait for `consumer`. With `resume`, a slice that it still owes is sent again.

        Raises:
            ConfigError: when the exchange does not have one of the symbols.
            VenueAuthError: when it does not admit the credentials.
            BrokerUnavailableError: when it does not answer as it should.
        """
        try:
            self._call("POST", "/consumers", {"consumer": consumer, "symbols": list(symbols), "resume": resume})
        except OrderRejectedError as error:
            raise ConfigError(f"the exchange at {self._api.url}: {error.message}") from error

    def unregister(self, consumer: str) -> None:
        """Let the market go on without `consumer`.

        Raises:
            BrokerUnavailableError: when nobody answers.
        """
        self._call("DELETE", f"/consumers/{quote(consumer, safe='')}")

    def _call(self, method: str, path: str, body: dict[str, object] | None = None) -> object:
        try:
            return self._api.call(method, f"/v1{path}", body, version="dry-work")
        except (OutcomeUnknownError, BrokerUnavailableError) as error:
            raise BrokerUnavailableError(
                f"{self._api.url} does not answer as it should ({error}); is ALPACA_URL right and the exchange running?"
            ) from error
