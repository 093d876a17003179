"""Who calls: tokens signed with a key of this process, and every way in which one does not hold."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from deploy.errors import ConfigurationError, NotPermittedError, UnauthenticatedError, UnavailableError
from deploy.identity import (
    FIREBASE_CERTIFICATES,
    GOOGLE_CERTIFICATES,
    CertificateCache,
    Certificates,
    IdentityTokenVerifier,
    LocalTokenVerifier,
    authenticate,
    build_verifier,
    fetch_certificates,
    write_token_file,
)
from deploy.ports import Caller
from tests.deploy.tokens import TokenMaker

AUDIENCE = "https://deploy.example.com"
NOW = int(time.time())


@pytest.fixture(scope="module")
def maker() -> TokenMaker:
    return TokenMaker()


@pytest.fixture(scope="module")
def verifier(maker: TokenMaker) -> IdentityTokenVerifier:
    def fetch(address: str) -> Certificates:
        assert address in (FIREBASE_CERTIFICATES, GOOGLE_CERTIFICATES)
        return Certificates(by_key={maker.key_id: maker.certificate}, max_age_s=3600)

    return build_verifier("my-project", (AUDIENCE,), fetch=fetch)


def test_firebase_and_google_tokens_name_their_user(maker: TokenMaker, verifier: IdentityTokenVerifier) -> None:
    token = maker.firebase("ann", email="ann@example.com", email_verified=True)
    assert authenticate(verifier, f"Bearer {token}") == Caller(user_id="ann", email="ann@example.com")
    assert authenticate(verifier, f"bearer  {maker.firebase('ann', email='x@example.com')}") == Caller(user_id="ann")
    assert verifier.verify(maker.google("1234", AUDIENCE)) == Caller(user_id="1234")


def test_google_tokens_are_refused_without_a_configured_audience(maker: TokenMaker) -> None:
    closed = build_verifier(
        "my-project", (), fetch=lambda _: Certificates(by_key={maker.key_id: maker.certificate}, max_age_s=60)
    )
    with pytest.raises(UnauthenticatedError):
        closed.verify(maker.google("1234", AUDIENCE))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exp": NOW - 60}, "has expired"),
        ({"iat": NOW + 3600}, "does not hold"),
        ({"aud": "other-project"}, "made for another service"),
        ({"aud": None}, "does not hold|another service"),
        ({"exp": None}, "does not hold"),
        ({"iat": None}, "does not hold"),
        ({"iss": "https://securetoken.google.com/other-project"}, "does not hold"),
        ({"iss": "https://evil.example.com"}, "does not hold"),
        ({"iss": "https://accounts.google.com"}, "made for another service"),
        ({"sub": ""}, "does not hold"),
        ({"sub": None}, "does not hold"),
        ({"sub": "x" * 129}, "does not hold"),
        ({"sub": 5}, "does not hold"),
    ],
)
def test_a_token_with_a_wrong_claim_does_not_hold(
    maker: TokenMaker, verifier: IdentityTokenVerifier, changes: dict[str, Any], told: str
) -> None:
    token = _assembled(maker, changes) if changes.get("sub") == 5 else maker.firebase("ann", **changes)
    with pytest.raises(UnauthenticatedError, match=told) as caught:
        verifier.verify(token)
    assert token not in str(caught.value)
    assert token not in repr(caught.value.__cause__)


def _assembled(maker: TokenMaker, changes: dict[str, Any]) -> str:
    """Return a token with claims that PyJWT would not write, whose signature does not fit."""
    header, claims, signature = maker.firebase("ann").split(".")
    read = json.loads(base64.urlsafe_b64decode(claims + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**read, **changes}).encode()).decode().rstrip("=")
    return f"{header}.{changed}.{signature}"


def test_forged_tokens_do_not_hold(maker: TokenMaker, verifier: IdentityTokenVerifier) -> None:
    claims = jwt.decode(maker.firebase("ann"), options={"verify_signature": False})
    good = maker.firebase("ann")
    key = {"kid": maker.key_id}
    forged = [
        TokenMaker(maker.key_id).firebase("ann"),  # another key by the same name
        TokenMaker("key-2").firebase("ann"),  # a key that Google does not have
        _assembled(maker, {"sub": "ben"}),
        jwt.encode(claims, "", algorithm="none", headers=key),
        jwt.encode(claims, "a secret of thirty-two bytes or more", algorithm="HS256", headers=key),
        _signed_with_the_certificate(maker, claims),
        good[:-4],
        good + ".x",
        good.replace(".", ""),
        "..",
        "a.b.c",
        "e30.e30.",
        "W10.W10.x",
        "x" * 20_000,
        good.rpartition(".")[0] + ".",
    ]
    for token in forged:
        with pytest.raises(UnauthenticatedError):
            verifier.verify(token)
    for header in ("", "Bearer", "Bearer ", f"Basic {good}", good):
        with pytest.raises(UnauthenticatedError, match="no identity token"):
            authenticate(verifier, header)


def _signed_with_the_certificate(maker: TokenMaker, claims: dict[str, Any]) -> str:
    """Return a token whose shared secret is the public certificate, and whose header says so."""
    import hashlib
    import hmac

    def encode(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head = f"{encode({'alg': 'HS256', 'kid': maker.key_id})}.{encode(claims)}"
    signature = hmac.new(maker.certificate.encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def test_an_account_that_cannot_be_a_folder_owns_nothing(maker: TokenMaker, verifier: IdentityTokenVerifier) -> None:
    for user_id in ("a/b", "..", "*", "a\nb"):
        with pytest.raises(NotPermittedError, match="cannot own agents"):
            verifier.verify(maker.firebase(user_id))


def test_certificates_are_kept_and_fetched_again_for_a_new_key_but_not_for_every_bad_one() -> None:
    now, fetched, held = [1000.0], [], {"a": "A"}

    def fetch(address: str) -> Certificates:
        fetched.append(address)
        return Certificates(by_key=dict(held), max_age_s=600)

    cache = CertificateCache("x", fetch, monotonic=lambda: now[0])
    assert cache.get("a") == {"a": "A"}
    for _ in range(5):
        cache.get("unknown")
    assert len(fetched) == 1
    now[0] += 61
    held["b"] = "B"
    assert cache.get("b") == {"a": "A", "b": "B"}
    now[0] += 599
    cache.get("a")
    assert len(fetched) == 2
    now[0] += 2
    cache.get("a")
    assert len(fetched) == 3


def test_certificates_that_cannot_be_fetched_are_told_and_no_token_holds(maker: TokenMaker) -> None:
    with pytest.raises(UnavailableError, match="certificates cannot be fetched"):
        fetch_certificates("http://127.0.0.1:1/certs", timeout_s=2)

    def fetch(address: str) -> Certificates:
        raise UnavailableError(address)

    with pytest.raises(UnavailableError):
        build_verifier("my-project", (), fetch=fetch).verify(maker.firebase("ann"))


# The local target's token


def test_the_local_token_is_that_of_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "state/token"
    write_token_file(path, "t" * 40)
    write_token_file(path, "u" * 40)
    assert path.stat().st_mode & 0o777 == 0o600
    verifier = LocalTokenVerifier(path)
    assert authenticate(verifier, f"Bearer {'t' * 40}") == Caller(user_id="local")
    for header in ("", "Bearer x", f"Bearer {'u' * 40}", "Bearer " + "é" * 40):
        with pytest.raises(UnauthenticatedError):
            authenticate(verifier, header)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="can be read by others: chmod 600"):
        LocalTokenVerifier(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(ConfigurationError, match="at least 20 characters"):
        LocalTokenVerifier(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        LocalTokenVerifier(tmp_path / "none")
