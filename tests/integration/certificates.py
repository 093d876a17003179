"""A certificate for tests: self-signed, of this machine."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dry_work.hub.access import Certificate


def make_certificate() -> Certificate:
    """Return a certificate of localhost and 127.0.0.1, good for two days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    today = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Certificate(chain=built.public_bytes(pem), key=private)


def write_certificate(folder: Path) -> tuple[Certificate, Path, Path]:
    """Make a certificate; return it with the paths of its two PEM files."""
    made = make_certificate()
    chain, key = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(made.chain)
    key.write_bytes(made.key)
    return made, chain, key
