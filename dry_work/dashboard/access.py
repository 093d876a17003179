"""Who may read the dashboard and act on it. Pure.

A browser carries requests of any page that its user visits to this machine, so what comes over the loopback interface
is not trusted either: the host that it names must be this machine (no DNS rebinding), another page's request is
refused (its origin, and a header that no form can send), and over any other interface every request needs a token.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

HEADER = "X-Dry-Work"  # a request that has it was made by a script that may read the answer
TOKEN_VARIABLE = "DRY_WORK_DASHBOARD_TOKEN"  # noqa: S105 - the name, not the token
TOKEN_LENGTH = 16  # at least

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is refused."""

    status: int
    text: str


class Access:
    """Judges requests.

    Args:
        host: that the server listens on.
        token: that a request must carry; empty: none, on the loopback interface only.
    """

    def __init__(self, host: str, token: str = "") -> None:
        self.is_local = is_loopback(host)
        if not self.is_local and not token:
            raise ValueError(f"{host}: a token is needed on anything but the loopback interface")
        self.token = token

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request is refused, None for one that is not.

        Args:
            headers: by name, in any case.
        """
        host = headers.get("Host", "")
        if self.is_local and not is_loopback(_host_of(host)):
            return Refusal(403, f"the host {host!r} is not this machine: use 127.0.0.1 or localhost")
        if not path.startswith("/api/"):
            return None if method in ("GET", "HEAD") else Refusal(405, "only GET is served here")
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return Refusal(403, f"requests of {origin!r} are not taken")
        if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return Refusal(403, "requests of another page are not taken")
        if not headers.get(HEADER):
            return Refusal(403, f"the header {HEADER} is missing")
        if self.token:
            given = headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return Refusal(401, "the token is missing or wrong")
        return None


def choose_token(host: str, given: str) -> str:
    """Return the token for a server on `host`: the given one, none on the loopback interface, otherwise a new one.

    Raises:
        ValueError: the given one is too short.
    """
    if given and (len(given) < TOKEN_LENGTH or not given.isascii() or any(sign.isspace() for sign in given)):
        raise ValueError(
            f"{TOKEN_VARIABLE}: expected at least {TOKEN_LENGTH} ASCII characters without spaces, not {len(given)}"
        )
    return given or ("" if is_loopback(host) else secrets.token_urlsafe(24))


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine's loopback interface."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _host_of(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""
