"""Which keys the settings name, and the secret that is made once."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from engine.runtime.settings import Auth
from handlers.http.keys import key_set, make_secret_file, replace_secret_file, signing_key
from handlers.http.tokens import UnusableKeyError, Verifier, issue_token

_SECRET = "0123456789abcdef0123456789abcdef"


def auth(**given: str) -> Auth:
    """Settings of keys with all others unset."""
    unset = {"audience": "tidemark", "secret": "", "secret_file": "", "key_file": "", "jwks_file": ""}
    return Auth(**(unset | given), token_ttl_s=60, leeway_s=30)


def _secret_of(given: Auth, generated: Path | None) -> object:
    key = key_set(given, None if generated is None else lambda: generated).default
    assert key is not None
    return key.private


def test_keys_secret_comes_from_the_setting_or_its_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{_SECRET}\n")
    assert (
        _secret_of(auth(secret=_SECRET), None)
        == _secret_of(auth(secret_file=str(file)), None)
        == _SECRET.encode()
    )


def test_keys_generated_secret_is_made_once_and_private(tmp_path: Path) -> None:
    place = tmp_path / "auth.secret"
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(lambda _: _secret_of(auth(), place), range(8)))
    assert len(made) == 1
    assert made == {place.read_bytes().strip()}
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["auth.secret"]
    assert _secret_of(auth(), tmp_path / "other") not in made


@pytest.mark.parametrize("put", [make_secret_file, replace_secret_file])
def test_secret_file_its_name_is_durable_too(
    put: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "auth.secret"
    if put is replace_secret_file:
        place.write_bytes(b"before")
    synced: list[tuple[bool, bool]] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        in_place = place.exists() and place.read_bytes() == b"secret"
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), in_place))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    put(place, b"secret")
    assert synced == [(False, False), (True, True)], "the content first, the name once it is there"


def test_keys_without_a_key_a_database_of_ones_own_is_refused() -> None:
    with pytest.raises(UnusableKeyError, match=r"auth\.secret_file"):
        key_set(auth(), None)


def test_keys_two_keys_for_one_thing_are_refused() -> None:
    with pytest.raises(UnusableKeyError, match=r"auth\.secret and auth\.key_file are both set"):
        key_set(auth(secret=_SECRET, key_file="key.pem"), None)


@pytest.mark.parametrize("setting", ["secret_file", "key_file", "jwks_file"])
def test_keys_missing_file_is_named(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(UnusableKeyError, match=f"{path}: No such file or directory"):
        key_set(auth(**{setting: str(path)}), None)


def test_keys_private_key_signs_and_a_public_one_only_verifies(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    pem = tmp_path / "key.pem"
    pem.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = tmp_path / "public.pem"
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    signing = signing_key(key_set(auth(key_file=str(pem)), None))
    token = issue_token(signing, audience="tidemark", ttl_s=60, tenant="acme", device_id="phone")
    keys = key_set(auth(key_file=str(public)), None)
    assert Verifier(keys, "tidemark", frozenset(), 0).verify(token).tenant == "acme"
    with pytest.raises(UnusableKeyError, match="no key here can sign"):
        signing_key(keys)
