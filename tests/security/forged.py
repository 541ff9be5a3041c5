"""Tokens that nobody signed who may, or that say what no token may say."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from handlers.http.tokens import Key
from tests.harness.in_process_server import SHARED_KEYS
from tests.harness.ws_device import SECRET, Json

#: Keys of the server that verify tokens with a ``kid``: what an attacker has of them is public.
SERVERS: Final[dict[str, Any]] = {
    "ed": ed25519.Ed25519PrivateKey.generate(),
    "es": ec.generate_private_key(ec.SECP256R1()),
}
#: A key of the attacker's own.
OWN: Final = ec.generate_private_key(ec.SECP256R1())
SHARED_KEYS["ed"] = Key("EdDSA", SERVERS["ed"].public_key())
SHARED_KEYS["es"] = Key("ES256", SERVERS["es"].public_key())


def claims(tenant: str, **change: Any) -> Json:
    """Make the claims of a device's token, changed; ``...`` leaves a claim out."""
    usual = {
        "aud": "tidemark",
        "exp": int(time.time()) + 3600,
        "jti": "forged",
        "tid": tenant,
        "did": "owner",
    }
    return {name: value for name, value in (usual | change).items() if value is not ...}


def part(value: Any) -> str:
    """Write a part of a token; a text is written as it is."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(
    payload: Any, secret: bytes = SECRET, digest: str = "sha256", head: Any = None, **header: Any
) -> str:
    """Sign whatever it is with HMAC; ``head`` stands in place of a whole header."""
    body = f"{part({'typ': 'JWT', 'alg': 'HS256', **header} if head is None else head)}.{part(payload)}"
    return f"{body}.{part(hmac.new(secret, body.encode(), digest).digest())}"


def _pem(key: str) -> bytes:
    return _public(key, serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _raw(key: str) -> bytes:
    encoding, form = serialization.Encoding, serialization.PublicFormat
    if key == "ed":
        return _public(key, encoding.Raw, form.Raw)
    return _public(key, encoding.X962, form.UncompressedPoint)


def _public(key: str, *form: Any) -> bytes:
    written: bytes = SERVERS[key].public_key().public_bytes(*form)
    return written


def _unsigned(tenant: str, **header: Any) -> str:
    return f"{part({'typ': 'JWT', **header})}.{part(claims(tenant))}."


def _by(key: Any, tenant: str, **header: Any) -> str:
    return jwt.encode(claims(tenant), key, "ES256", header)


def _jwk() -> Json:
    written: Json = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(OWN.public_key()))
    return written


def _changed(tenant: str, **change: Any) -> str:
    """Put other claims into a token that was signed."""
    head, _, mac = signed(claims("nobody")).split(".")
    return f"{head}.{part(claims(tenant, **change))}.{mac}"


#: The numbers 0 and 0 as a signature.
_DER: Final = bytes([48, 6, 2, 1, 0, 2, 1, 0])
Forge = Callable[[str], str]
NOT_VALID: Final = "the token is not valid"
ODD_DID: Final = "did: 1 to 255 of A-Z a-z 0-9 _ - are required"
ODD_TID: Final = "tid: control characters and lone surrogates are not allowed"

#: How a token for a tenant is forged, and the sentence that refuses it.
SIGNATURES: Final[dict[str, tuple[Forge, str]]] = {
    name: (forge, NOT_VALID)
    for name, forge in {
        "alg none": lambda tenant: _unsigned(tenant, alg="none"),
        "alg None": lambda tenant: _unsigned(tenant, alg="None"),
        "alg NONE": lambda tenant: _unsigned(tenant, alg="NONE"),
        "alg nOnE": lambda tenant: _unsigned(tenant, alg="nOnE"),
        "alg none of a kid": lambda tenant: _unsigned(tenant, alg="none", kid="es"),
        "an empty alg": lambda tenant: _unsigned(tenant, alg=""),
        "no alg": _unsigned,
        "alg null": lambda tenant: _unsigned(tenant, alg=None),
        "a list of algs": lambda tenant: _unsigned(tenant, alg=["none", "HS256"]),
        "no signature": lambda tenant: signed(claims(tenant)).rpartition(".")[0] + ".",
        "two parts": lambda tenant: signed(claims(tenant)).rpartition(".")[0],
        "an empty secret": lambda tenant: signed(claims(tenant), b""),
        "a guessed secret": lambda tenant: signed(claims(tenant), b"secret"),
        "a secret of zeros": lambda tenant: signed(claims(tenant), bytes(32)),
        "half of the signature": lambda tenant: signed(claims(tenant))[:-20],
        "the signature of other claims": _changed,
        "the right secret by SHA-384": lambda tenant: signed(claims(tenant), SECRET, "sha384", alg="HS384"),
        "the right secret by SHA-512": lambda tenant: signed(claims(tenant), SECRET, "sha512", alg="HS512"),
        "the right secret under RS256": lambda tenant: signed(claims(tenant), alg="RS256"),
        "the right secret for another kid": lambda tenant: signed(claims(tenant), kid="es"),
        "a public key as a secret": lambda tenant: signed(claims(tenant), _pem("es"), kid="es"),
        "a public key without its last line": lambda tenant: signed(
            claims(tenant), _pem("es").strip(), kid="es"
        ),
        "the bytes of a public key": lambda tenant: signed(claims(tenant), _raw("es"), kid="es"),
        "the bytes of another public key": lambda tenant: signed(claims(tenant), _raw("ed"), kid="ed"),
        "a public key as the default": lambda tenant: signed(claims(tenant), _pem("es")),
        "another key": lambda tenant: _by(OWN, tenant, kid="es"),
        "another key and its jwk": lambda tenant: _by(OWN, tenant, jwk=_jwk()),
        "another key, its jwk and a kid": lambda tenant: _by(OWN, tenant, kid="es", jwk=_jwk()),
        "another key's address": lambda tenant: _by(OWN, tenant, jku="http://127.0.0.1:1/jwks.json"),
        "another certificate's address": lambda tenant: _by(OWN, tenant, x5u="http://127.0.0.1:1/a.pem"),
        "another certificate": lambda tenant: _by(OWN, tenant, x5c=[part(_pem("es"))]),
        "a null signature": lambda tenant: (
            f"{part({'alg': 'ES256', 'kid': 'es'})}.{part(claims(tenant))}.{part(bytes(64))}"
        ),
        "a signature of DER": lambda tenant: (
            f"{part({'alg': 'ES256', 'kid': 'es'})}.{part(claims(tenant))}.{part(_DER)}"
        ),
        "an unknown kid": lambda tenant: signed(claims(tenant), kid="other"),
        "a kid that is a path": lambda tenant: signed(claims(tenant), b"", kid="../../../../dev/null"),
        "a kid that is a statement": lambda tenant: signed(claims(tenant), kid="x' UNION SELECT 'a"),
        "a kid that is a command": lambda tenant: signed(claims(tenant), kid="es;id"),
        "an empty kid": lambda tenant: signed(claims(tenant), kid=""),
        "a kid that is null": lambda tenant: signed(claims(tenant), kid=None),
        "a kid that is a number": lambda tenant: signed(claims(tenant), kid=0),
        "a kid that is a list": lambda tenant: signed(claims(tenant), kid=["es"]),
        "an extension that is critical": lambda tenant: signed(claims(tenant), crit=["exp"], exp=1),
        "an unknown extension": lambda tenant: signed(claims(tenant), crit=["x"], x=1),
        "critical, and nothing": lambda tenant: signed(claims(tenant), crit=[]),
        "critical, and no list": lambda tenant: signed(claims(tenant), crit="b64"),
        "a payload without base64": lambda tenant: signed(claims(tenant), b64=False, crit=["b64"]),
        "a header that is a list": lambda tenant: signed(claims(tenant), head=[]),
        "a header that is a text": lambda tenant: signed(claims(tenant), head="HS256"),
        "a header that is deep": lambda tenant: signed(claims(tenant), head=b"[" * 3000),
        "claims that are a list": lambda tenant: signed([claims(tenant)]),
        "claims that are a text": lambda tenant: signed(json.dumps(claims(tenant))),
        "claims that are deep": lambda _: signed(b"[" * 3000),
        "an encrypted token": lambda tenant: (
            f"{part({'alg': 'dir', 'enc': 'A256GCM'})}..{'A' * 16}.{part(claims(tenant))}.{'A' * 22}"
        ),
        "a token of JSON": lambda tenant: json.dumps({"payload": part(claims(tenant)), "signatures": []}),
        "padding": lambda tenant: signed(claims(tenant)).replace(".", "=.") + "=",
        "a dot more": lambda tenant: signed(claims(tenant)) + ".",
    }.items()
}

#: What a rightly signed token says wrong, and the sentence that refuses it.
CLAIMS: Final[dict[str, tuple[Json, str]]] = {
    "no exp": ({"exp": ...}, "the token has no exp"),
    "exp null": ({"exp": None}, "the token has no exp"),
    "exp in the past": ({"exp": 1_000_000_000}, "the token has expired"),
    "exp just past its leeway": ({"exp": int(time.time()) - 31}, "the token has expired"),
    "exp of a text": ({"exp": "never"}, NOT_VALID),
    "exp of a list": ({"exp": [4_000_000_000]}, NOT_VALID),
    "exp past all clocks": ({"exp": 1 << 60}, "exp: seconds since 1970 are required"),
    "exp infinite": ({"exp": float("inf")}, NOT_VALID),
    "exp that is no number": ({"exp": float("nan")}, NOT_VALID),
    "exp in milliseconds of 1970": ({"exp": -1}, "the token has expired"),
    "no aud": ({"aud": ...}, "the token has no aud"),
    "another aud": ({"aud": "tidemark-admin"}, "the token is meant for another audience"),
    "a list of other auds": ({"aud": ["other", "tidemark2"]}, "the token is meant for another audience"),
    "aud as a prefix": ({"aud": "tidemar"}, "the token is meant for another audience"),
    "aud of a cell": ({"aud": "tidemark/north"}, "the token is meant for another audience"),
    "aud in capitals": ({"aud": "TIDEMARK"}, "the token is meant for another audience"),
    "no aud in the list": ({"aud": []}, "the token has no aud"),
    "aud as an object": ({"aud": {"tidemark": 1}}, "the token is meant for another audience"),
    "no jti": ({"jti": ...}, "the token has no jti"),
    "an empty jti": ({"jti": ""}, "the token has no jti"),
    "jti of a number": ({"jti": 1}, NOT_VALID),
    "no tid": ({"tid": ...}, "the token has no tid"),
    "an empty tid": ({"tid": ""}, "the token has no tid"),
    "tid of a number": ({"tid": 1}, "the token has no tid"),
    "tid of a list": ({"tid": ["acme"]}, "the token has no tid"),
    "tid of an operator": ({"tid": {"$ne": ""}}, "the token has no tid"),
    "tid with a line": (
        {"tid": "acme\nglobex"},
        ODD_TID,
    ),
    "tid with a NUL": ({"tid": "acme\0"}, ODD_TID),
    "no did": ({"did": ...}, "the token has no did"),
    "an empty did": ({"did": ""}, ODD_DID),
    "did of a path": ({"did": "../owner"}, ODD_DID),
    "did with a NUL": ({"did": "owner\0key"}, ODD_DID),
    "did with a line": ({"did": "owner\n"}, ODD_DID),
    "did of a list": ({"did": ["owner"]}, "the token has no did"),
    "a long did": ({"did": "a" * 256}, ODD_DID),
    "a role of nobody": ({"role": "admin"}, "the token's role is not known"),
    "a role in capitals": ({"role": "Supervisor"}, "the token's role is not known"),
    "several roles": ({"role": ["supervisor", "operator"]}, "the token's role is not known"),
    "sub of a number": ({"sub": 1}, "sub: a text without U+0000 and lone surrogates is required"),
    "sub with a NUL": ({"sub": "a\0b"}, "sub: a text without U+0000 and lone surrogates is required"),
    "nbf of a list": ({"nbf": [0]}, NOT_VALID),
    "nbf in ten years": ({"nbf": 1 << 60}, "the token's nbf is far ahead of the server's clock"),
}
