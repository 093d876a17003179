"""What only the simulated exchange offers: who it is, and the registration of those it waits for."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import msgspec
import requests

from dry_work.errors import BrokerUnavailableError, ConfigError, VenueAuthError
from dry_work.settings import Credentials


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


def is_alpaca(url: str) -> bool:
    """Tell whether a URL is one of Alpaca's own hosts, which are never asked for a simulated session."""
    host = urlsplit(url).hostname or ""
    return host == "alpaca.markets" or host.endswith(".alpaca.markets")


class ExchangeControl:
    """Client of the simulated exchange's own interface. One thread at a time."""

    def __init__(self, url: str, credentials: Credentials, *, timeout_s: float = 10.0) -> None:
        self._base = f"{url}/dry-work/v1"
        self._url = url
        self._timeout_s = timeout_s
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy for the outside world has no business here
        self._http.headers.update({"APCA-API-KEY-ID": credentials.key, "APCA-API-SECRET-KEY": credentials.secret})

    def session(self) -> ExchangeSession | None:
        """Return the session, or None when the server at the URL is no simulated exchange.

        Raises:
            BrokerUnavailableError: when nobody answers.
        """
        answer = self._request("GET", "/session")
        if answer.status_code != 200:
            return None
        try:
            return msgspec.json.decode(answer.content, type=ExchangeSession)
        except msgspec.MsgspecError:
            return None

    def register(self, consumer: str, symbols: tuple[str, ...]) -> None:
        """Make the market wait for `consumer`.

        Raises:
            ConfigError: when the exchange does not have one of the symbols.
            VenueAuthError: when it does not admit the credentials.
            BrokerUnavailableError: when it does not answer as it should.
        """
        answer = self._request("POST", "/consumers", {"consumer": consumer, "symbols": list(symbols)})
        if answer.status_code == 200:
            return
        message = _message(answer)
        if answer.status_code in (401, 403):
            raise VenueAuthError(f"the exchange at {self._url} refused the credentials: {message}", http_status=401)
        if answer.status_code in (404, 422):
            raise ConfigError(f"the exchange at {self._url}: {message}")
        raise BrokerUnavailableError(f"{self._url}: {message}", http_status=answer.status_code)

    def unregister(self, consumer: str) -> None:
        """Let the market go on without `consumer`.

        Raises:
            BrokerUnavailableError: when nobody answers.
        """
        self._request("DELETE", f"/consumers/{quote(consumer, safe='')}")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _request(self, method: str, path: str, body: object = None) -> requests.Response:
        try:
            return self._http.request(method, self._base + path, json=body, timeout=self._timeout_s)
        except requests.RequestException as error:
            raise BrokerUnavailableError(
                f"{self._url} does not answer ({type(error).__name__}); is ALPACA_URL right and the exchange running?"
            ) from error


def _message(answer: requests.Response) -> str:
    try:
        found = answer.json().get("message")
    except (ValueError, AttributeError):
        found = None
    return str(found or f"HTTP {answer.status_code}")
