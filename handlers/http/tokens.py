"""Authentication: JSON Web Tokens, their keys, and the origins of browsers.

A key has one algorithm. The algorithm that a token names is only compared with that.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import jwt
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from engine.model.tenants import Tenant
from engine.wire.errors import SyncError
from engine.wire.floats import json_decoder
from handlers.http.headers import Headers, combined, elements

Algorithm = Literal["HS256", "EdDSA", "ES256", "RS256"]
Role = Literal["device", "supervisor", "operator", "viewer"]

MIN_SECRET_BYTES: Final = 32
MIN_RSA_BITS: Final = 2048
REMEMBERED_TOKENS: Final = 10_000
#: A longer token is refused unread: checking 30 KB takes 5 ms, and tokens have about 300 bytes.
MAX_TOKEN_CHARS: Final = 8192
_BEARER_SUBPROTOCOL: Final = "bearer."
DEVICE_ID = re.compile(r"[A-Za-z0-9_-]{1,255}\Z")
#: Characters that no text of the database can hold.
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
#: Seconds beyond which a number is not exact in JSON everywhere: 285 million years.
_LAST_S: Final = 1 << 53


class UnusableKeyError(Exception):
    """A key that cannot be used, in one sentence for the operator."""


class Key(msgspec.Struct, frozen=True):
    """Key material with its one algorithm. ``private`` is None for a key that can only verify."""

    algorithm: Algorithm
    public: Any
    private: Any = None


class KeySet(msgspec.Struct, frozen=True):
    """The keys of a server: ``default`` verifies tokens without a ``kid``, ``by_id`` those with one."""

    default: Key | None
    by_id: Mapping[str, Key]


class Claims(msgspec.Struct, frozen=True):
    """The claims of a verified token.

    Attributes:
        role: What the token may do.
        tenant: The name of its tenant; set for devices and supervisors.
        device_id: Its device; set for devices and supervisors.
        user: Its ``sub``.
        expires_at_s: Its ``exp`` plus the leeway: the token is valid until then, over HTTP and on sockets.
        token_id: Its ``jti``.
        issued_at_s: Its ``iat``; None without one that is a number.
        begins_at_s: Its ``nbf``; None without one that is a number.
        tenant_number: The number of its tenant; None without one.
    """

    role: Role
    tenant: str | None
    device_id: str | None
    user: str | None
    expires_at_s: int
    token_id: str
    issued_at_s: int | None = None
    begins_at_s: int | None = None
    tenant_number: int | None = None


def secret_key(secret: bytes) -> Key:
    """Make an HS256 key. Raises UnusableKeyError for a short secret."""
    if len(secret) < MIN_SECRET_BYTES:
        raise UnusableKeyError(
            f"the token secret has {len(secret)} bytes, at least {MIN_SECRET_BYTES} are needed"
        )
    return Key("HS256", secret, secret)


def pem_key(path: Path) -> Key:
    """Read a public or private key from a PEM file. Raises UnusableKeyError."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise UnusableKeyError(f"{path}: {error.strerror}") from None
    try:
        if b"PRIVATE KEY" in pem:
            private = serialization.load_pem_private_key(pem, None)
            public: Any = private.public_key()
        else:
            private, public = None, serialization.load_pem_public_key(pem)
    except (ValueError, TypeError):
        raise UnusableKeyError(f"{path}: neither a public nor an unencrypted private key in PEM") from None
    return Key(_algorithm(public, str(path)), public, private)


def jwks_keys(path: Path) -> dict[str, Key]:
    """Read a JWKS file: ``kid`` → key. Raises UnusableKeyError."""
    try:
        document = json_decoder(dict[str, Any]).decode(path.read_bytes())
    except OSError as error:
        raise UnusableKeyError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnusableKeyError(f"{path}: not a JSON object") from None
    entries = document.get("keys")
    if not isinstance(entries, list) or not entries:
        raise UnusableKeyError(f'{path}: "keys" must be a list of at least one key')
    keys: dict[str, Key] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: keys[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
            raise UnusableKeyError(f"{where}: a kid is required")
        if entry["kid"] in keys:
            raise UnusableKeyError(f"{where}: a second key with kid {entry['kid']!r}")
        keys[entry["kid"]] = _jwk(entry, where)
    return keys


def _jwk(entry: dict[str, Any], where: str) -> Key:
    try:
        material = jwt.PyJWK(entry).key
    except Exception:  # of many kinds, some of them of programming: what is in the file is not checked before
        raise UnusableKeyError(f"{where}: not a usable key") from None
    if isinstance(material, bytes):
        key = secret_key(material)
    else:
        private = material if hasattr(material, "private_bytes") else None
        public = material if private is None else private.public_key()
        key = Key(_algorithm(public, where), public, private)
    if entry.get("alg", key.algorithm) != key.algorithm:
        raise UnusableKeyError(
            f"{where}: alg {entry['alg']!r} does not fit the key, which takes {key.algorithm}"
        )
    return key


def _algorithm(public: Any, where: str) -> Algorithm:
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "EdDSA"
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return "ES256"
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= MIN_RSA_BITS:
        return "RS256"
    raise UnusableKeyError(f"{where}: Ed25519, P-256 or RSA of at least {MIN_RSA_BITS} bits is required")


class Verifier:
    """Verifies tokens and origins.

    Args:
        keys: The keys.
        audience: The ``aud`` that tokens must have.
        origins: The origins of browsers' pages that are allowed.
        leeway_s: How far the clock of the host that signs tokens may be off: ``exp`` counts so much later and
            ``nbf`` so much earlier. ``iat`` alone decides nothing.
    """

    def __init__(self, keys: KeySet, audience: str, origins: frozenset[str], leeway_s: int) -> None:
        self._keys = keys
        self._audience = audience
        self._origins = origins
        self._leeway_s = leeway_s
        self._verified: dict[str, Claims] = {}

    def verify(self, token: str) -> Claims:
        """Verify a token. Raises SyncError ``unauthenticated``.

        A verified token is remembered until it expires: an upload sends its token with every chunk, and
        verifying it takes longer than all other work on a chunk in this thread.
        """
        if len(token) > MAX_TOKEN_CHARS:
            raise _unauthenticated(f"the token is too long: the limit is {MAX_TOKEN_CHARS} characters")
        claims = self._verified.get(token)
        if claims is None or claims.expires_at_s <= time.time():
            claims = self._checked(token)
            if len(self._verified) >= REMEMBERED_TOKENS:
                del self._verified[next(iter(self._verified))]
            self._verified[token] = claims
        return claims

    def check_tenant(self, claims: Claims, tenant: Tenant) -> None:
        """Refuse a token that may belong to an earlier tenant of the same name.

        The token has to have this tenant's number, or it must have been signed after the tenant was added.
        The leeway for that never reaches back before the removal of the earlier tenant.

        Raises:
            SyncError: ``unauthenticated``.
        """
        reused = tenant.reused
        if reused is None or claims.tenant_number == tenant.tenant_id:
            return
        since_s = max(reused.made_s - self._leeway_s, reused.removed_s)
        # A time in the future comes from a wrong clock, and tells nothing.
        latest_s = time.time() + self._leeway_s
        # A token signed in advance for the earlier tenant begins after the new one was added.
        signed_s = claims.begins_at_s if claims.issued_at_s is None else claims.issued_at_s
        is_since = signed_s is not None and since_s <= signed_s <= latest_s
        if claims.tenant_number is not None or not is_since:
            raise _unauthenticated(
                "the name of the tenant was an earlier one's, and the token may be of that: get a new one"
            )

    def _checked(self, token: str) -> Claims:
        try:
            key = self._key(jwt.get_unverified_header(token).get("kid"))
            payload = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                audience=self._audience,
                leeway=self._leeway_s,
                # The library refuses null where it means that a claim is missing.
                options={
                    "require": ["exp", "aud", "jti"],
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_sub": False,
                },
            )
            begins_at_s = 0 if payload.get("nbf") is None else int(payload["nbf"])
            expires_at_s = int(payload["exp"])
        except jwt.ExpiredSignatureError:
            raise _unauthenticated("the token has expired") from None
        except jwt.InvalidAudienceError:
            raise _unauthenticated("the token is meant for another audience") from None
        except jwt.MissingRequiredClaimError as error:
            raise _unauthenticated(f"the token has no {error.claim}") from None
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError):
            raise _unauthenticated("the token is not valid") from None
        if expires_at_s > _LAST_S:
            raise _unauthenticated("exp: seconds since 1970 are required")
        ahead_s = begins_at_s - int(time.time())
        if ahead_s > self._leeway_s:
            ahead = f"{ahead_s} s ahead" if ahead_s < _LAST_S else "far ahead"
            raise _unauthenticated(f"the token's nbf is {ahead} of the server's clock")
        return _claims(payload, self._leeway_s)

    def _key(self, kid: object) -> Key:
        key = self._keys.default if kid is None else None
        if isinstance(kid, str):
            key = self._keys.by_id.get(kid)
        if key is None:
            raise jwt.InvalidKeyError
        return key

    def check_origin(self, origin: str | None) -> None:
        """Check the origin of a browser's page. Raises SyncError ``forbidden``."""
        if origin is not None and origin not in self._origins:
            raise SyncError("forbidden", "this origin is not allowed: add it to server.origins")


def _claims(payload: dict[str, Any], leeway_s: int) -> Claims:
    """Check the claims. A claim that is null counts as missing."""
    role: Role = "device"
    if (named := payload.get("role")) is not None:
        if named not in ("supervisor", "operator", "viewer"):
            raise _unauthenticated("the token's role is not known")
        role = named
    tenant, device_id, user = payload.get("tid"), payload.get("did"), payload.get("sub")
    if user is not None and not (isinstance(user, str) and _UNSTORABLE.search(user) is None):
        raise _unauthenticated("sub: a text without U+0000 and lone surrogates is required")
    is_person = role in ("operator", "viewer")
    if not (isinstance(tenant, str) and tenant) and not (is_person and tenant is None):
        raise _unauthenticated("the token has no tid")
    if tenant is not None and not tenant.isprintable():
        raise _unauthenticated("tid: control characters and lone surrogates are not allowed")
    if device_id is not None or not is_person:
        if not isinstance(device_id, str):
            raise _unauthenticated("the token has no did")
        if not DEVICE_ID.match(device_id):
            raise _unauthenticated("did: 1 to 255 of A-Z a-z 0-9 _ - are required")
    token_id = payload["jti"]
    if not isinstance(token_id, str) or not token_id:
        raise _unauthenticated("the token has no jti")
    expires_at_s = int(payload["exp"]) + leeway_s
    issued_at_s, begins_at_s = _number(payload.get("iat")), _number(payload.get("nbf"))
    number = _number(payload.get("tnr"))
    return Claims(role, tenant, device_id, user, expires_at_s, token_id, issued_at_s, begins_at_s, number)


def _number(claim: object) -> int | None:
    """Return a claim that is a number; None for any other value."""
    if isinstance(claim, bool):
        return None
    if isinstance(claim, float):
        return int(claim) if math.isfinite(claim) else None
    return claim if isinstance(claim, int) else None


def _unauthenticated(message: str) -> SyncError:
    return SyncError("unauthenticated", message)


def token_of(headers: Headers) -> str:
    """Return the token in the headers of a request. Raises SyncError ``unauthenticated``.

    It comes as ``Authorization: Bearer …`` or as the subprotocol ``bearer.…``, never in the URL.
    """
    scheme, _, token = next(iter(headers.getall("Authorization", ())), "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    for offered in offered_subprotocols(headers):
        if offered.startswith(_BEARER_SUBPROTOCOL):
            return offered.removeprefix(_BEARER_SUBPROTOCOL)
    raise _unauthenticated("a token is required: Authorization: Bearer …")


def offered_subprotocols(headers: Headers) -> list[str]:
    """Return the subprotocols that a client offers, in its order."""
    return elements(combined(headers, "Sec-WebSocket-Protocol"))


def device_claims(claims: Claims) -> tuple[str, str]:
    """Return (tenant's name, device_id). Raises SyncError ``forbidden`` for people's tokens."""
    if claims.role in ("operator", "viewer") or claims.tenant is None or claims.device_id is None:
        raise SyncError("forbidden", "this is not the token of a device: it needs a tid and a did")
    return claims.tenant, claims.device_id


def issue_token(
    key: Key,
    *,
    audience: str,
    ttl_s: int,
    role: Role = "device",
    tenant: str | None = None,
    number: int | None = None,
    device_id: str | None = None,
    user: str | None = None,
) -> str:
    """Sign a token.

    Args:
        key: The key that signs.
        audience: The ``aud``.
        ttl_s: How long the token is valid.
        role: What it may do.
        tenant: The name of its tenant.
        number: The number of its tenant. Without it only the time of signing tells an earlier tenant of the
            same name apart.
        device_id: Its device.
        user: Its ``sub``.

    Raises:
        UnusableKeyError: The key can only verify, or no server would accept the claims.
    """
    if key.private is None:
        raise UnusableKeyError("this key can verify tokens but not sign them")
    now_s = int(time.time())
    payload: dict[str, Any] = {
        "aud": audience,
        "iat": now_s,
        "exp": now_s + ttl_s,
        "jti": uuid.uuid4().hex,
    }
    named = {
        "tid": tenant,
        "tnr": number,
        "did": device_id,
        "sub": user,
        "role": role if role != "device" else None,
    }
    payload.update({name: value for name, value in named.items() if value is not None})
    try:
        _claims(payload, 0)
    except SyncError as error:
        raise UnusableKeyError(error.message.replace("the token has no", "needed for this token:")) from None
    return jwt.encode(payload, key.private, algorithm=key.algorithm)
