"""Who may use the hub: on loopback everybody on the machine, elsewhere those who have the token. Pure."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Mapping

from dry_work.addresses import is_loopback_host
from dry_work.errors import ConfigError

_BEARER = "bearer "


class Access:
    """What the listeners of the hub ask of their clients.

    Args:
        host: address that the listeners are bound to.
        token: what clients have to give; empty: nothing, which only a loopback address allows.
        tls: certificate of the listeners; None: plain connections.

    Raises:
        ConfigError: no token for an address that others reach.
    """

    def __init__(self, host: str, token: str = "", *, tls: ssl.SSLContext | None = None) -> None:
        if not token and not is_loopback_host(host):
            raise ConfigError(
                f"the hub would listen on {host} (HUB_BIND_HOST), which other machines reach: "
                "set HUB_TOKEN, or bind to 127.0.0.1"
            )
        self.host = host
        self.tls = tls
        self._token = "" if is_loopback_host(host) else token

    def __repr__(self) -> str:
        return f"Access({self.host!r}, token={'***' if self._token else ''!r})"

    def admits(self, token: object) -> bool:
        """Tell whether a client that gives `token` is let in."""
        if not self._token:
            return True
        return isinstance(token, str) and hmac.compare_digest(token.encode(), self._token.encode())

    def admits_header(self, authorization: str | None) -> bool:
        """Tell whether a client with this `authorization` header (`Bearer <token>`) is let in."""
        value = authorization or ""
        return self.admits(value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else "")

    def admits_headers(self, headers: Mapping[str, str]) -> bool:
        """Tell the same of the headers of a request."""
        return self.admits_header(headers.get("authorization") or headers.get("Authorization"))
