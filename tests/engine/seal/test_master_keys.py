"""Wrapping of data keys, against AES-256-GCM of the library; and what is refused."""

from __future__ import annotations

import os
import re
from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.seal.master_keys import (
    MasterKeyError,
    MasterKeys,
    master_key_id,
    missing_sentence,
    parse_master_keys,
)

ONE, TWO = b"1" * 32, b"2" * 32
TENANT, OTHER = b"t" * 16, b"o" * 16

keys = st.binary(min_size=32, max_size=32)
tenants = st.binary(min_size=16, max_size=16)
numbers = st.integers(1, 65_535)


@given(st.lists(keys, min_size=1, max_size=3, unique=True), tenants, numbers, keys)
def test_wrap_any_key_unwraps_by_every_set_that_holds_its_master_key(
    masters: list[bytes], tenant: bytes, number: int, data_key: bytes
) -> None:
    wrapped = MasterKeys(masters).wrap(tenant, number, data_key, os.urandom(12))
    assert wrapped.master_key_id == master_key_id(masters[0])
    assert MasterKeys(masters[::-1]).unwrap(tenant, wrapped) == data_key
    assert data_key not in wrapped.wrapped


def test_wrap_is_aes_gcm_of_tenant_and_number() -> None:
    wrapped = MasterKeys([ONE]).wrap(TENANT, 7, TWO, b"n" * 12)
    place = b"tidemark tenant key\0" + TENANT + b"\0\0\0\x07"
    assert wrapped.wrapped == b"n" * 12 + AESGCM(ONE).encrypt(b"n" * 12, TWO, place)


@pytest.mark.parametrize("change", ["tenant", "number", "bytes", "cut", "empty"])
def test_unwrap_of_another_place_or_changed_bytes_is_refused(change: str) -> None:
    masters = MasterKeys([ONE])
    key = masters.wrap(TENANT, 7, TWO, os.urandom(12))
    changed = {
        "number": replace(key, number=8),
        "bytes": replace(key, wrapped=key.wrapped[:-1] + bytes([key.wrapped[-1] ^ 1])),
        "cut": replace(key, wrapped=key.wrapped[:-1]),
        "empty": replace(key, wrapped=b""),
    }.get(change, key)
    with pytest.raises(MasterKeyError, match="was changed in the database: restore the table tenant_keys"):
        masters.unwrap(OTHER if change == "tenant" else TENANT, changed)


def test_unwrap_without_its_master_key_names_both_ids_and_the_settings() -> None:
    key = MasterKeys([ONE]).wrap(TENANT, 1, TWO, os.urandom(12))
    with pytest.raises(MasterKeyError) as refused:
        MasterKeys([TWO]).unwrap(TENANT, key)
    assert str(refused.value) == missing_sentence([master_key_id(ONE)], [master_key_id(TWO)])
    assert re.search("set sealing.master_key_file", str(refused.value))


def test_master_key_id_differs_by_key_and_is_no_part_of_it() -> None:
    assert master_key_id(ONE) != master_key_id(TWO)
    assert re.fullmatch("[0-9a-f]{16}", master_key_id(ONE))
    assert ONE.decode() not in repr(MasterKeys([ONE]))


def test_parse_several_keys_the_first_one_wraps() -> None:
    text = f"  {b64encode(TWO).decode()}\n{b64encode(ONE).decode()}\r\n"
    assert parse_master_keys(text).ids == [master_key_id(TWO), master_key_id(ONE)]
    assert parse_master_keys(text).active == master_key_id(TWO)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is no master key in it"),
        ("hush!", "a master key is 32 bytes as base64: `openssl rand -base64 32` makes one"),
        ("é", "a master key is 32 bytes as base64"),
        (b64encode(b"short").decode(), "a master key has 32 bytes, and this one 5"),
    ],
)
def test_parse_of_no_key_is_refused_without_showing_it(text: str, sentence: str) -> None:
    with pytest.raises(MasterKeyError, match=sentence) as refused:
        parse_master_keys(text)
    assert not text or text not in str(refused.value)
