"""Who may use the hub: on loopback everybody on the machine, elsewhere those who have the token. Pure but for `read_*`.

The certificate, when there is one, is every listener's.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dry_work.addresses import is_loopback_host
from dry_work.errors import ConfigError

_BEARER = "bearer "


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener with TLS shows, in PEM. Its `repr` shows nothing of it."""

    chain: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Certificate(***)"


def read_certificate(chain: Path | None, key: Path | None) -> tuple[Certificate, ssl.SSLContext] | None:
    """Return certificate and private key of two PEM files, as bytes and ready for use; None when there are none.

    Raises:
        ConfigError: only one of the two is given, or one cannot be used: names variable and file.
    """
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        there, missing = ("HUB_TLS_CERT", "HUB_TLS_KEY") if key is None else ("HUB_TLS_KEY", "HUB_TLS_CERT")
        raise ConfigError(f"{there} is set, but {missing} is not: set both, or none for plain connections")
    certificate = Certificate(chain=_read_pem(chain, "HUB_TLS_CERT"), key=_read_pem(key, "HUB_TLS_KEY"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An encrypted key would otherwise ask for its passphrase on the terminal.
        context.load_cert_chain(chain, key, password="")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            f"HUB_TLS_CERT={str(chain)!r} and HUB_TLS_KEY={str(key)!r} are no certificate with its private key "
            f"({reason}): expected PEM files, the key without a passphrase"
        ) from None
    return certificate, context


def _read_pem(path: Path, variable: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{variable}={str(path)!r} cannot be read: {error.strerror or error}") from None
    if b"-----BEGIN " not in content:
        raise ConfigError(f"{variable}={str(path)!r} is no PEM file: expected one that has -----BEGIN ...-----")
    return content


class Access:
    """What the listeners of the hub ask of their clients.

    Args:
        host: address that the listeners are bound to.
        token: what clients have to give; empty: nothing, which only a loopback address allows.
        tls: certificate of the listeners; None: plain connections.
        certificate: the same one as bytes, for those that take no context.

    Raises:
        ConfigError: no token for an address that others reach.
    """

    def __init__(
        self,
        host: str,
        token: str = "",
        *,
        tls: ssl.SSLContext | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        if not token and not is_loopback_host(host):
            raise ConfigError(
                f"the hub would listen on {host} (HUB_BIND_HOST), which other machines reach: "
                "set HUB_TOKEN, or bind to 127.0.0.1"
            )
        self.host = host
        self.tls = tls
        self.certificate = certificate
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
