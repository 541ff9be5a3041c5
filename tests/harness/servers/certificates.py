"""A certificate authority of a test's own, and a server's certificate that it signed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from storage.embedded.account import Account

_DAY: Final = timedelta(days=1)


class Certificates(NamedTuple):
    """Files in PEM: of the authority, of the server, and of the server's key."""

    authority: Path
    server: Path
    key: Path


def certificates(place: Path, account: Account, host: str = "127.0.0.1") -> Certificates:
    """Make an authority, and the certificate of a server at ``host`` whose key ``account`` can read."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = _name("the tests' authority")
    authority = (
        _begun(authority_name, authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _begun(_name(host), authority_name, server_key)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made = Certificates(place / "authority.pem", place / "server.pem", place / "server.key")
    contents: Mapping[Path, bytes] = {
        made.authority: authority.public_bytes(pem),
        made.server: server.public_bytes(pem),
        made.key: key,
    }
    for path, content in contents.items():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            account.own(descriptor)
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
    return made


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )
