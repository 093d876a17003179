"""Identity tokens as Google makes them, with a key and a certificate of this process."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID


class TokenMaker:
    """Signs tokens with one key, whose certificate it has."""

    def __init__(self, key_id: str = "key-1") -> None:
        self.key_id = key_id
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens.example.com")])
        now = dt.datetime.now(dt.UTC)
        built = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = built.public_bytes(serialization.Encoding.PEM).decode()
        self.public_pem = (
            self._key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def firebase(self, user_id: str, *, project: str = "my-project", **changes: Any) -> str:
        """Return a Firebase ID token; changes replace claims, None removes one."""
        return self.sign(
            {"iss": f"https://securetoken.google.com/{project}", "aud": project, "sub": user_id, **_times(), **changes}
        )

    def google(self, user_id: str, audience: str, **changes: Any) -> str:
        """Return a Google identity token."""
        claims = {"iss": "https://accounts.google.com", "aud": audience, "sub": user_id, **_times(), **changes}
        return self.sign(claims)

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """Return a signed token with these claims."""
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self._key, algorithm="RS256", headers={"kid": self.key_id, **header})


def _times() -> dict[str, int]:
    now = int(time.time())
    return {"iat": now - 60, "exp": now + 3600, "auth_time": now - 120}
