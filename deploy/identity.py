"""Who calls: Firebase and Google identity tokens checked against Google's certificates, or the local target's token.

No error, log line or answer repeats a token.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deploy.errors import ConfigurationError, UnauthenticatedError, UnavailableError
from deploy.ids import check_user_id
from deploy.ports import Caller, TokenVerifier

FIREBASE_CERTIFICATES = "https://www.googleapis.com/robot/v1/metadata/x509/securetoken@system.gserviceaccount.com"
GOOGLE_CERTIFICATES = "https://www.googleapis.com/oauth2/v1/certs"

MAX_TOKEN_LENGTH = 16_384
_CLOCK_SKEW_S = 10
_MAX_AGE = re.compile(r"max-age=(\d{1,7})")
_RETRY_AFTER_S = 60.0  # certificates are not fetched more often than this for keys that are not among them

_NO_TOKEN = "no identity token: send Authorization: Bearer <token>"  # noqa: S105
_BAD_TOKEN = "the identity token does not hold: sign in again"  # noqa: S105


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Certificates by key id, as PEM, and for how long they may be kept."""

    by_key: Mapping[str, str]
    max_age_s: float


FetchCertificates = Callable[[str], Certificates]


def fetch_certificates(address: str, *, timeout_s: float = 5.0) -> Certificates:
    """Fetch certificates from one of Google's addresses.

    Raises:
        UnavailableError: when there are none to be had.
    """
    import requests

    try:
        answer = requests.get(address, timeout=timeout_s)
        answer.raise_for_status()
        found = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise UnavailableError(f"Google's certificates cannot be fetched: {type(error).__name__}") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UnavailableError("Google's certificates cannot be read")
    match = _MAX_AGE.search(answer.headers.get("Cache-Control", ""))
    return Certificates(by_key=found, max_age_s=float(match[1]) if match else 300.0)


class CertificateCache:
    """Certificates of one address, fetched again when they are too old or a key is not among them. Thread-safe."""

    def __init__(self, address: str, fetch: FetchCertificates, *, monotonic: Callable[[], float] = time.monotonic):
        self._address, self._fetch, self._monotonic = address, fetch, monotonic
        self._lock = threading.Lock()
        self._found: Certificates | None = None
        self._fetched_s = 0.0

    def get(self, key: str) -> Mapping[str, str]:
        """Return the certificates by key id, with `key` among them if Google has it."""
        with self._lock:
            age_s = self._monotonic() - self._fetched_s
            if (
                self._found is None
                or age_s > self._found.max_age_s
                or (key not in self._found.by_key and age_s > _RETRY_AFTER_S)
            ):
                self._found = self._fetch(self._address)
                self._fetched_s = self._monotonic()
            return self._found.by_key


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """Whose tokens are taken, and for whom they are to be made."""

    names: tuple[str, ...]
    audiences: tuple[str, ...]
    certificates: CertificateCache


class IdentityTokenVerifier:
    """Checks signature, issuer, audience and times of an identity token."""

    def __init__(self, issuers: list[Issuer]) -> None:
        self._issuers = [issuer for issuer in issuers if issuer.audiences]

    def verify(self, token: str) -> Caller:
        """Return the caller whom a token stands for."""
        from google.auth import exceptions, jwt

        if not token:
            raise UnauthenticatedError(_NO_TOKEN)
        header, claims = _peek(token)
        # Only RS256, which Google signs with: no `none`, no shared secret in the place of a key.
        key = header.get("kid")
        if header.get("alg") != "RS256" or not isinstance(key, str):
            raise UnauthenticatedError(_BAD_TOKEN)
        for issuer in self._issuers:
            if claims.get("iss") not in issuer.names:
                continue
            certificates = issuer.certificates.get(key)
            if key not in certificates:
                break
            try:
                held = jwt.decode(  # type: ignore[no-untyped-call]
                    token,
                    certs={key: certificates[key]},
                    audience=list(issuer.audiences),
                    clock_skew_in_seconds=_CLOCK_SKEW_S,
                )
            except (ValueError, TypeError, exceptions.GoogleAuthError) as error:
                raise UnauthenticatedError(_explain(error)) from None
            return _caller(cast(dict[str, Any], held), issuer)
        raise UnauthenticatedError(_BAD_TOKEN)


def build_verifier(
    project: str,
    audiences: tuple[str, ...],
    *,
    fetch: FetchCertificates = fetch_certificates,
    monotonic: Callable[[], float] = time.monotonic,
) -> IdentityTokenVerifier:
    """Return what checks Firebase tokens of a project, and Google identity tokens for `audiences` if there are any."""
    return IdentityTokenVerifier(
        [
            Issuer(
                names=(f"https://securetoken.google.com/{project}",),
                audiences=(project,),
                certificates=CertificateCache(FIREBASE_CERTIFICATES, fetch, monotonic=monotonic),
            ),
            Issuer(
                names=("https://accounts.google.com", "accounts.google.com"),
                audiences=audiences,
                certificates=CertificateCache(GOOGLE_CERTIFICATES, fetch, monotonic=monotonic),
            ),
        ]
    )


class LocalTokenVerifier:
    """Takes the one token of a file that only its owner can read. For the local target.

    Raises:
        ConfigurationError: when the file is not there, is empty, or can be read by others.
    """

    def __init__(self, path: Path, *, user_id: str = "local") -> None:
        try:
            mode = path.stat().st_mode
            self._token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: the token file cannot be read: {type(error).__name__}") from None
        if os.name == "posix" and mode & 0o077:
            raise ConfigurationError(f"{path}: the token file can be read by others: chmod 600 {path}")
        if len(self._token) < 20:
            raise ConfigurationError(f"{path}: the token file is to hold one line of at least 20 characters")
        self._user_id = check_user_id(user_id)

    def verify(self, token: str) -> Caller:
        """Return the caller whom the token stands for."""
        if not token:
            raise UnauthenticatedError(_NO_TOKEN)
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise UnauthenticatedError("the token is not that of the token file")
        return Caller(user_id=self._user_id)


def write_token_file(path: Path, token: str) -> None:
    """Write a token file that only its owner can read; one that is there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "w", encoding="ascii") as target:
        target.write(f"{token}\n")


def bearer_token(authorization: str) -> str:
    """Return the token of an `Authorization` header; empty when it has none."""
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authenticate(verifier: TokenVerifier, authorization: str) -> Caller:
    """Return who calls, by an `Authorization` header.

    Raises:
        UnauthenticatedError: when it has no token, or one that does not hold.
    """
    return verifier.verify(bearer_token(authorization))


def _caller(claims: Mapping[str, Any], issuer: Issuer) -> Caller:
    subject = claims.get("sub")
    if claims.get("iss") not in issuer.names or not isinstance(subject, str) or not 0 < len(subject) <= 128:
        raise UnauthenticatedError(_BAD_TOKEN)
    email = claims.get("email") if claims.get("email_verified") is True else ""
    return Caller(user_id=check_user_id(subject), email=email if isinstance(email, str) else "")


def _peek(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a token as they are written; nothing of it is believed yet."""
    parts = token.split(".")
    if len(token) > MAX_TOKEN_LENGTH or len(parts) != 3:
        raise UnauthenticatedError(_BAD_TOKEN)
    found: list[dict[str, Any]] = []
    for part in parts[:2]:
        try:
            value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except (ValueError, RecursionError):
            raise UnauthenticatedError(_BAD_TOKEN) from None
        if not isinstance(value, dict):
            raise UnauthenticatedError(_BAD_TOKEN)
        found.append(value)
    return found[0], found[1]


def _explain(error: Exception) -> str:
    text = str(error).lower()
    if "expired" in text:
        return "the identity token has expired: sign in again"
    if "audience" in text:
        return "the identity token was made for another service"
    return _BAD_TOKEN
