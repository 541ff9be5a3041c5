"""Tokens: what is required of them, whose key signs them, and what never gets through."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from engine.model.tenants import Reused, Tenant
from engine.wire.errors import SyncError
from handlers.http.tokens import (
    Claims,
    Key,
    KeySet,
    Role,
    UnusableKeyError,
    Verifier,
    device_claims,
    issue_token,
    jwks_keys,
    offered_subprotocols,
    pem_key,
    secret_key,
    token_of,
)
from tests.security.catalogue import against

Json = dict[str, Any]

SECRET = b"0123456789abcdef0123456789abcdef"
HOUR_S = 3600


def generated() -> dict[str, Any]:
    """Make a private key of each kind."""
    return {
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }


PRIVATE = generated()
ASYMMETRIC = pytest.mark.parametrize("algorithm", sorted(PRIVATE))


def verifier(key: Key | None = None, by_id: dict[str, Key] | None = None, leeway_s: int = 0) -> Verifier:
    """Make a verifier of one key, an HS256 one by default."""
    default = key if key is not None or by_id is not None else secret_key(SECRET)
    origins = frozenset({"https://app.example.org"})
    return Verifier(KeySet(default, by_id or {}), "tidemark", origins, leeway_s)


def payload(**change: Any) -> Json:
    """Make the claims of a good device token, changed; ``...`` leaves a claim out."""
    claims: Json = {
        "aud": "tidemark",
        "exp": int(time.time()) + HOUR_S,
        "jti": "j1",
        "tid": "acme",
        "did": "phone-1",
    }
    return {name: value for name, value in (claims | change).items() if value is not ...}


def signed(claims: Any, secret: bytes = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """Sign whatever it is, past the checks of the library."""
    head = {"typ": "JWT", "alg": algorithm, **header}
    body = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims)
    )
    mac = hmac.new(secret, body, hashlib.sha256).digest()
    return (body + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def refusal(token: str, by: Verifier | None = None) -> str:
    """Give the sentence that a token is refused with."""
    with pytest.raises(SyncError) as caught:
        (by or verifier()).verify(token)
    assert caught.value.code == "unauthenticated"
    return caught.value.message


def pem(key: Any, *, private: bool) -> bytes:
    """Write a key as PEM."""
    if private:
        written: bytes = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    else:
        written = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return written


# -- claims -----------------------------------------------------------------------------------


def test_token_of_a_device_is_accepted() -> None:
    claims = verifier().verify(signed(payload(sub="ann")))
    assert claims == Claims("device", "acme", "phone-1", "ann", payload()["exp"], "j1")
    assert device_claims(claims) == ("acme", "phone-1")


@pytest.mark.parametrize("claim", ["exp", "aud", "jti", "tid", "did"])
@against("API2:2023", "V9.2")
def test_token_missing_claim_is_named(claim: str) -> None:
    assert refusal(signed(payload(**{claim: ...}))) == f"the token has no {claim}"
    assert claim in refusal(signed(payload(**{claim: None}))) or claim == "aud"


@pytest.mark.parametrize(
    "change",
    [
        {"exp": 1_000_000_000},
        {"exp": 0},
        {"exp": -1},
        {"exp": True},
        {"exp": "soon"},
        {"exp": [1]},
        {"exp": {}},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"nbf": 4_000_000_000},
        {"nbf": [1]},
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": []},
        {"aud": 5},
        {"aud": "tidemar"},
        {"jti": ""},
        {"jti": 5},
        {"jti": ["a"]},
        {"sub": 5},
        {"sub": ["ann"]},
        {"tid": ""},
        {"tid": 7},
        {"tid": ["acme"]},
        {"tid": "ac\0me"},
        {"tid": "\ud800"},
        {"tid": "a\nb"},
        {"did": ""},
        {"did": 7},
        {"did": "a" * 256},
        {"did": "phone 1"},
        {"did": "phone\n"},
        {"did": "téléphone"},
        {"did": "../phone"},
        {"did": ["phone"]},
        {"role": "device"},
        {"role": "admin"},
        {"role": ["operator"]},
        {"role": {}},
        {"role": "Operator"},
    ],
    ids=str,
)
@against("API2:2023", "V9.2")
def test_token_wrong_claim_is_refused(change: Json) -> None:
    assert refusal(signed(payload(**change)))


@pytest.mark.parametrize("device_id", ["a", "A-Z_09", "x" * 255, "-"])
def test_token_device_id_within_the_rule_is_accepted(device_id: str) -> None:
    assert verifier().verify(signed(payload(did=device_id))).device_id == device_id


def test_token_audience_may_be_one_of_several() -> None:
    assert verifier().verify(signed(payload(aud=["other", "tidemark"]))).tenant == "acme"


def test_token_expired_says_so() -> None:
    assert refusal(signed(payload(exp=int(time.time()) - 1))) == "the token has expired"


@pytest.mark.parametrize("iat", [None, 0, 4_000_000_000, 10**400, "2026-01-02", [1]], ids=str)
def test_verify_iat_of_any_value_decides_nothing(iat: Any) -> None:
    claims = verifier().verify(signed(payload(iat=iat)))
    assert claims.tenant == "acme"
    verifier().check_tenant(claims, Tenant(1, "acme"))


@pytest.mark.parametrize(
    ("claim", "value"), [("sub", "a\0b"), ("sub", "a\ud800"), ("exp", 10**30), ("exp", 1e300)]
)
@against("API2:2023", "V9.2")
def test_verify_claims_that_the_database_cannot_hold_are_refused(claim: str, value: Any) -> None:
    assert refusal(signed(payload(**{claim: value}))).startswith(f"{claim}: ")


MADE_S = 1_800_000_000
#: Number 7 is the present tenant, made 100 s after the earlier one of its name was removed.
REUSED = Tenant(7, "acme", Reused(MADE_S, MADE_S - 100))


@pytest.mark.parametrize(
    ("of_tenant", "good"),
    [
        ({}, False),
        ({"tnr": 7}, True),
        ({"tnr": 7, "iat": MADE_S - 900}, True),
        ({"tnr": 6, "iat": MADE_S + 1}, False),
        ({"tnr": True, "iat": MADE_S - 900}, False),
        ({"iat": MADE_S - 31}, False),
        ({"iat": MADE_S - 30}, True),
        ({"nbf": MADE_S}, True),
        ({"nbf": MADE_S, "iat": MADE_S - 900}, False),  # signed ahead of its time, for the earlier tenant
        ({"nbf": MADE_S - 900}, False),
        ({"iat": MADE_S + 1000}, False),  # ahead of the clock: it tells nothing
        ({"iat": "2027-01-15"}, False),
    ],
    ids=str,
)
def test_check_tenant_used_name_wants_the_number_or_a_later_signature(
    monkeypatch: pytest.MonkeyPatch, of_tenant: Json, good: bool
) -> None:
    monkeypatch.setattr("handlers.http.tokens.time.time", lambda: MADE_S + 60.0)
    by = verifier(leeway_s=30)
    claims = by.verify(signed(payload(exp=MADE_S + 10**9, **of_tenant)))
    by.check_tenant(claims, Tenant(7, "acme"))  # of a name that no other had, all of them are
    if good:
        by.check_tenant(claims, REUSED)
        return
    with pytest.raises(SyncError) as caught:
        by.check_tenant(claims, REUSED)
    assert caught.value.code == "unauthenticated"


def test_check_tenant_leeway_ends_where_the_earlier_tenant_was_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("handlers.http.tokens.time.time", lambda: MADE_S + 60.0)
    by = verifier(leeway_s=30)
    claims = by.verify(signed(payload(exp=MADE_S + 10**9, iat=MADE_S - 11)))
    by.check_tenant(claims, Tenant(7, "acme", Reused(MADE_S, MADE_S - 11)))
    with pytest.raises(SyncError):
        by.check_tenant(claims, Tenant(7, "acme", Reused(MADE_S, MADE_S - 10)))


LEEWAY_S = 30


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> int:
    """Stop the clock by which tokens are checked."""
    now = datetime.fromtimestamp(1_800_000_000, UTC)

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]  # the same for every zone
            return now.astimezone(tz)

    monkeypatch.setattr("jwt.api_jwt.datetime", Stopped)
    monkeypatch.setattr("handlers.http.tokens.time.time", now.timestamp)
    return int(now.timestamp())


@pytest.mark.parametrize("late_s", [-HOUR_S, 0, 1, LEEWAY_S - 1])
def test_verify_exp_within_the_leeway_counts_to_its_end(late_s: int, now_s: int) -> None:
    claims = verifier(leeway_s=LEEWAY_S).verify(signed(payload(exp=now_s - late_s)))
    assert claims.expires_at_s == now_s - late_s + LEEWAY_S > now_s


@pytest.mark.parametrize("late_s", [LEEWAY_S, LEEWAY_S + 1, HOUR_S])
@against("API2:2023", "V9.2")
def test_verify_exp_past_the_leeway_is_refused(late_s: int, now_s: int) -> None:
    late = signed(payload(exp=now_s - late_s))
    assert refusal(late, verifier(leeway_s=LEEWAY_S)) == "the token has expired"


@pytest.mark.parametrize("nbf", [None, 0, -5, "0", 1_800_000_000, 1_800_000_000 + LEEWAY_S])
def test_verify_nbf_within_the_leeway_counts(nbf: Any, now_s: int) -> None:
    claims = payload(nbf=nbf, exp=now_s + HOUR_S)
    assert verifier(leeway_s=LEEWAY_S).verify(signed(claims)).tenant == "acme"


def test_verify_nbf_past_the_leeway_says_how_far_ahead_it_is(now_s: int) -> None:
    early = signed(payload(nbf=now_s + LEEWAY_S + 1, exp=now_s + HOUR_S))
    assert (
        refusal(early, verifier(leeway_s=LEEWAY_S)) == "the token's nbf is 31 s ahead of the server's clock"
    )


@pytest.mark.parametrize("claim", ["sub", "role", "nbf", "iat"])
def test_verify_an_optional_claim_of_null_is_missing(claim: str) -> None:
    without = verifier().verify(signed(payload(**{claim: ...})))
    assert verifier().verify(signed(payload(**{claim: None}))) == without
    assert without.role == "device"


@pytest.mark.parametrize("role", ["operator", "viewer"])
def test_token_of_a_person_needs_no_device_and_is_none(role: str) -> None:
    for claims in ({"tid": ..., "did": ...}, {"tid": "acme", "did": ...}, {}):
        verified = verifier().verify(signed(payload(role=role, **claims)))
        assert verified.role == role
        with pytest.raises(SyncError) as caught:
            device_claims(verified)
        assert caught.value.code == "forbidden"
    assert refusal(signed(payload(role=role, did="no such id!")))
    assert refusal(signed(payload(role=role, tid="")))


def test_token_supervisor_is_a_device() -> None:
    claims = verifier().verify(signed(payload(role="supervisor")))
    assert (claims.role, device_claims(claims)) == ("supervisor", ("acme", "phone-1"))
    assert refusal(signed(payload(role="supervisor", tid=...)))
    assert refusal(signed(payload(role="supervisor", did=...)))


@pytest.mark.parametrize("claims", [[], "claims", 5, None])
@against("API2:2023", "V9.2")
def test_token_claims_that_are_no_object_are_refused(claims: Any) -> None:
    assert refusal(signed(claims))


# -- signatures -------------------------------------------------------------------------------


@against("API2:2023", "V9.1")
def test_token_wrong_secret_or_a_changed_claim_is_refused() -> None:
    assert refusal(signed(payload(), b"another secret of thirty-two byte"))
    head, body, mac = signed(payload()).split(".")
    other = signed(payload(did="phone-2")).split(".")[1]
    assert refusal(f"{head}.{other}.{mac}")
    assert refusal(f"{head}.{body}.")
    assert refusal(f"{head}.{body}")


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS384", "HS512", "RS256", "EdDSA", None, 5]
)
@against("API2:2023", "V9.1")
def test_token_own_algorithm_decides_nothing(algorithm: Any) -> None:
    assert refusal(signed(payload(), algorithm=algorithm))
    head, body, _ = signed(payload(), algorithm=algorithm).split(".")
    assert refusal(f"{head}.{body}.")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
@against("API2:2023", "V9.1")
def test_token_secret_takes_one_of_its_algorithms(algorithm: str) -> None:
    secret = SECRET * 2
    assert verifier(secret_key(secret)).verify(jwt.encode(payload(), secret, "HS256")).tenant == "acme"
    assert refusal(jwt.encode(payload(), secret, algorithm), verifier(secret_key(secret)))


@ASYMMETRIC
@against("API2:2023", "V9.1")
def test_token_public_key_is_no_secret(algorithm: str) -> None:
    private = PRIVATE[algorithm]
    by = verifier(Key(algorithm, private.public_key()))  # type: ignore[arg-type]
    written = pem(private, private=False)
    for secret in (written, written.strip()):
        assert refusal(signed(payload(), secret), by)
        assert refusal(signed(payload(), secret, algorithm), by)
    assert by.verify(jwt.encode(payload(), private, algorithm)).tenant == "acme"


@ASYMMETRIC
@against("API2:2023", "V9.1")
def test_token_another_key_of_the_same_kind_is_refused(algorithm: str) -> None:
    other = generated()[algorithm]
    by = verifier(Key(algorithm, PRIVATE[algorithm].public_key()))  # type: ignore[arg-type]
    assert refusal(jwt.encode(payload(), other, algorithm), by)


@against("API2:2023", "V9.1")
def test_token_rsa_key_takes_one_of_its_algorithms() -> None:
    by = verifier(Key("RS256", PRIVATE["RS256"].public_key()))
    for algorithm in ("RS384", "RS512", "PS256"):
        assert refusal(jwt.encode(payload(), PRIVATE["RS256"], algorithm), by)


@given(token=st.text(max_size=60) | st.lists(st.text(max_size=20), min_size=3, max_size=3).map(".".join))
@against("API2:2023", "V9.1")
def test_token_of_any_text_is_refused_in_one_way(token: str) -> None:
    assert refusal(token)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    name=st.sampled_from(["exp", "nbf", "aud", "jti", "sub", "tid", "did", "role", "iss", "iat"]),
    value=_json,
    header=st.dictionaries(st.sampled_from(["kid", "typ", "crit", "b64", "jwk", "x5c"]), _json, max_size=2),
)
@against("API2:2023", "V9.2")
def test_token_of_any_signed_claims_is_read_or_refused(name: str, value: Any, header: Json) -> None:
    try:
        claims = verifier().verify(signed(payload(**{name: value}), **header))
    except SyncError as error:
        code = error.code
    else:
        code = "unauthenticated"
        assert claims.tenant
    assert code == "unauthenticated"


# -- keys -------------------------------------------------------------------------------------


@ASYMMETRIC
@pytest.mark.parametrize("private", [False, True])
def test_pem_key_of_each_file_is_read(tmp_path: Path, algorithm: str, private: bool) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(PRIVATE[algorithm], private=private))
    key = pem_key(path)
    assert key.algorithm == algorithm
    assert verifier(key).verify(jwt.encode(payload(), PRIVATE[algorithm], algorithm)).tenant == "acme"
    if private:
        token = issue_token(key, audience="tidemark", ttl_s=60, tenant="acme", device_id="d")
        assert verifier(key).verify(token).device_id == "d"
    else:
        with pytest.raises(UnusableKeyError, match="not sign"):
            issue_token(key, audience="tidemark", ttl_s=60, tenant="acme", device_id="d")


def test_pem_key_of_a_useless_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(UnusableKeyError, match="No such file"):
        pem_key(path)
    for content in (b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        path.write_bytes(content)
        with pytest.raises(UnusableKeyError, match="neither a public nor"):
            pem_key(path)
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it is to be refused
    for weak in (short, ec.generate_private_key(ec.SECP384R1())):
        path.write_bytes(pem(weak, private=True))
        with pytest.raises(UnusableKeyError, match="Ed25519, P-256 or RSA"):
            pem_key(path)
    locked = PRIVATE["EdDSA"].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    path.write_bytes(locked)
    with pytest.raises(UnusableKeyError, match="unencrypted"):
        pem_key(path)


@against("API2:2023", "V9.1")
def test_token_short_secret_is_refused() -> None:
    with pytest.raises(UnusableKeyError, match="31 bytes"):
        secret_key(b"x" * 31)
    assert secret_key(b"x" * 32).algorithm == "HS256"


def jwk(algorithm: str, kid: str, /, **change: Any) -> Json:
    """Write a public key as a JWK."""
    to_jwk = jwt.get_algorithm_by_name(algorithm).to_jwk
    written: Json = json.loads(to_jwk(PRIVATE[algorithm].public_key()))
    return {name: value for name, value in (written | {"kid": kid} | change).items() if value is not ...}


def jwks(path: Path, *entries: Any) -> Path:
    """Write a JWKS file."""
    path.write_text(json.dumps({"keys": list(entries)}))
    return path


def test_token_kid_chooses_the_key(tmp_path: Path) -> None:
    secret = base64.urlsafe_b64encode(SECRET).decode().rstrip("=")
    keys = jwks_keys(
        jwks(
            tmp_path / "jwks.json",
            jwk("EdDSA", "ed"),
            jwk("ES256", "es", alg="ES256"),
            jwk("RS256", "rs"),
            {"kty": "oct", "kid": "hs", "k": secret, "alg": "HS256"},
        )
    )
    assert {kid: key.algorithm for kid, key in keys.items()} == {
        "ed": "EdDSA",
        "es": "ES256",
        "rs": "RS256",
        "hs": "HS256",
    }
    by = verifier(by_id=keys)
    for kid, algorithm in (("ed", "EdDSA"), ("es", "ES256"), ("rs", "RS256")):
        token = jwt.encode(payload(), PRIVATE[algorithm], algorithm, {"kid": kid})
        assert by.verify(token).tenant == "acme"
        for other in keys.keys() - {kid}:
            assert refusal(jwt.encode(payload(), PRIVATE[algorithm], algorithm, {"kid": other}), by)
        assert refusal(jwt.encode(payload(), PRIVATE[algorithm], algorithm), by)
        assert refusal(jwt.encode(payload(), PRIVATE[algorithm], algorithm, {"kid": "no"}), by)
        assert refusal(signed(payload(), pem(PRIVATE[algorithm], private=False), kid=kid), by)
    assert by.verify(signed(payload(), kid="hs")).tenant == "acme"


@against("API2:2023", "V9.1")
def test_token_with_a_kid_is_not_checked_with_the_default_key(tmp_path: Path) -> None:
    keys = jwks_keys(jwks(tmp_path / "jwks.json", jwk("EdDSA", "ed")))
    by = verifier(secret_key(SECRET), keys)
    assert by.verify(signed(payload())).tenant == "acme"
    assert refusal(signed(payload(), kid="ed"), by)
    assert refusal(signed(payload(), kid="other"), by)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([], "at least one key"),
        ([5], "a kid is required"),
        ([jwk("EdDSA", "a", kid=...)], "a kid is required"),
        ([jwk("EdDSA", "a", kid=5)], "a kid is required"),
        ([jwk("EdDSA", "a"), jwk("ES256", "a")], "a second key with kid 'a'"),
        ([jwk("EdDSA", "a", x="!")], "not a usable key"),
        ([jwk("EdDSA", "a", kty="magic")], "not a usable key"),
        ([jwk("EdDSA", "a", kty=...)], "not a usable key"),
        ([jwk("RS256", "a", alg="RS512")], "does not fit the key"),
        ([jwk("RS256", "a", alg="none")], "not a usable key"),
        ([jwk("RS256", "a", n=5)], "not a usable key"),
        ([jwk("ES256", "a", crv=["P-256"])], "not a usable key"),
        ([{"kty": "oct", "kid": "a", "k": "c2hvcnQ", "alg": "HS256"}], "5 bytes"),
        ([{"kty": "oct", "kid": "a", "k": "c2hvcnQ" * 9, "alg": "HS512"}], "does not fit the key"),
    ],
)
def test_jwks_of_useless_keys_are_refused(tmp_path: Path, entries: list[Any], match: str) -> None:
    with pytest.raises(UnusableKeyError, match=match):
        jwks_keys(jwks(tmp_path / "jwks.json", *entries))


def test_jwks_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(UnusableKeyError, match="No such file"):
        jwks_keys(path)
    for content in (b"", b"[]", b"\xff", b'{"keys":{}}', b"{}"):
        path.write_bytes(content)
        with pytest.raises(UnusableKeyError, match=r"JSON object|list of at least one"):
            jwks_keys(path)


# -- issuing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "tenant", "device"),
    [
        ("device", "acme", "d"),
        ("supervisor", "acme", "d"),
        ("operator", None, None),
        ("viewer", "acme", None),
    ],
)
def test_token_issued_is_accepted(role: Role, tenant: str | None, device: str | None) -> None:
    token = issue_token(
        secret_key(SECRET),
        audience="tidemark",
        ttl_s=60,
        role=role,
        tenant=tenant,
        device_id=device,
        user="ann",
    )
    claims = verifier().verify(token)
    assert (claims.role, claims.tenant, claims.device_id, claims.user) == (role, tenant, device, "ann")
    assert 0 < claims.expires_at_s - time.time() <= 60
    assert ("role" in jwt.decode(token, options={"verify_signature": False})) is (role != "device")


def test_token_ids_are_unique() -> None:
    tokens = {
        verifier()
        .verify(issue_token(secret_key(SECRET), audience="tidemark", ttl_s=60, tenant="a", device_id="d"))
        .token_id
        for _ in range(10)
    }
    assert len(tokens) == 10


@pytest.mark.parametrize(("tenant", "device"), [(None, "d"), ("acme", None), ("acme", "no such id!")])
def test_token_claims_that_no_server_takes_are_not_issued(tenant: str | None, device: str | None) -> None:
    with pytest.raises(UnusableKeyError):
        issue_token(secret_key(SECRET), audience="tidemark", ttl_s=60, tenant=tenant, device_id=device)


# -- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"Authorization": "bearer  abc "}, "abc"),
        ({"Sec-WebSocket-Protocol": "tidemark.v1.json, bearer.abc"}, "abc"),
        ({"Sec-WebSocket-Protocol": "bearer.a.b.c,tidemark.v1.msgpack"}, "a.b.c"),
        ({"Authorization": "Bearer abc", "Sec-WebSocket-Protocol": "bearer.def"}, "abc"),
        ({"Authorization": "Basic x", "Sec-WebSocket-Protocol": "bearer.def"}, "def"),
    ],
)
def test_token_is_found_in_each_place(headers: dict[str, str], token: str) -> None:
    assert token_of(CIMultiDict(headers)) == token


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer  "},
        {"Authorization": "Basic abc"},
        {"Authorization": "abc"},
        {"Sec-WebSocket-Protocol": "tidemark.v1.json"},
    ],
)
def test_token_missing_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(SyncError) as caught:
        token_of(CIMultiDict(headers))
    assert caught.value.code == "unauthenticated"


def test_offered_subprotocols_keep_their_order() -> None:
    lines = [("Sec-WebSocket-Protocol", " a,b , ,c,"), ("sec-websocket-protocol", "d")]
    assert offered_subprotocols(CIMultiDict(lines)) == ["a", "b", "c", "d"]
    assert offered_subprotocols(CIMultiDict()) == []


def test_origin_each_case_has_its_outcome() -> None:
    by = verifier()
    by.check_origin(None)
    by.check_origin("https://app.example.org")
    for origin in (
        "null",
        "",
        "http://app.example.org",
        "https://app.example.org.evil",
        "https://APP.example.org",
    ):
        with pytest.raises(SyncError) as caught:
            by.check_origin(origin)
        assert caught.value.code == "forbidden"


@against("API2:2023", "V7.4")
def test_token_cached_is_accepted_until_it_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = verifier()
    token = signed(payload())
    claims = checks.verify(token)
    assert checks.verify(token) is claims
    monkeypatch.setattr("handlers.http.tokens.time.time", lambda: claims.expires_at_s - 0.1)
    assert checks.verify(token) is claims
    monkeypatch.setattr("handlers.http.tokens.time.time", lambda: float(claims.expires_at_s))
    assert checks.verify(token) is not claims, "it was not checked again"


def test_token_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.http.tokens.REMEMBERED_TOKENS", 2)
    checks = verifier()
    tokens = [signed(payload(jti=str(number))) for number in range(3)]
    first, *_ = [checks.verify(token) for token in tokens]
    assert len(checks._verified) == 2
    assert checks.verify(tokens[0]) is not first
