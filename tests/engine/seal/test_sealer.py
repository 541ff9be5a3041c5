"""Sealing, against its definition."""

import os
import tracemalloc
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.seal.sealer import (
    BLOCK_BYTES,
    OVERHEAD_BYTES,
    BrokenSealError,
    TenantKeys,
    UnknownKeyError,
    hash_key_number,
    key_number,
)

TENANT = bytes(range(16))
KEYS = {1: b"1" * 32, 2: b"2" * 32}


class Place(NamedTuple):
    """The arguments that name a place."""

    table: str
    domain: str
    value_id: str
    version: int


texts = st.text(st.sampled_from("ab0\0:") | st.characters(codec="utf-8"), max_size=6)
tables = st.text("ab.", max_size=3)
places = st.builds(Place, tables, texts, texts, st.integers(-(1 << 63), (1 << 63) - 1))


def tenant_keys(tenant: bytes = TENANT, active: int = 2) -> TenantKeys:
    return TenantKeys(tenant, KEYS, active, os.urandom)


@given(places, st.binary(max_size=200))
def test_seal_any_value_opens_to_the_same(place: Place, plain: bytes) -> None:
    keys = tenant_keys()
    sealed = keys.seal(*place, plain)
    assert keys.open(*place, sealed) == plain
    assert tenant_keys(active=1).open(*place, sealed) == plain
    assert (keys.seals, key_number(sealed)) == (1, 2)


@given(places, st.binary(max_size=200))
def test_sealer_gives_the_bytes_that_seal_gives(place: Place, plain: bytes) -> None:
    nonce = bytes(range(12))
    keys = TenantKeys(TENANT, KEYS, 2, lambda _: nonce)
    sealed = keys.sealer(place.table, place.domain)(place.value_id, place.version, plain, nonce)
    assert sealed == keys.seal(*place, plain)


def test_seal_of_ever_new_domains_keeps_nothing_of_them() -> None:
    keys = tenant_keys()
    keys.seal("quarantine", "0", "1", 0, b"{}")
    tracemalloc.start()
    try:
        for number in range(1000):
            keys.seal("quarantine", str(number), "1", 0, b"{}")
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 50_000, "a closure for each would be ten times as much"


@given(places, places, st.binary(max_size=70))
def test_open_of_another_place_is_refused(place: Place, other: Place, plain: bytes) -> None:
    assume(place != other)
    keys = tenant_keys()
    with pytest.raises(BrokenSealError):
        keys.open(*other, keys.seal(*place, plain))


def test_open_of_texts_shifted_between_domain_and_id_is_refused() -> None:
    keys = tenant_keys()
    sealed = keys.seal("records", "task", "s1", 1, b"{}")
    with pytest.raises(BrokenSealError):
        keys.open("records", "tasks", "1", 1, sealed)


def test_open_of_another_tenant_is_refused() -> None:
    sealed = tenant_keys().seal("records", "task", "1", 1, b"{}")
    with pytest.raises(BrokenSealError):
        tenant_keys(tenant=bytes(16)).open("records", "task", "1", 1, sealed)


@given(st.data(), st.binary(max_size=130))
def test_open_of_changed_bytes_is_refused(data: st.DataObject, plain: bytes) -> None:
    keys = tenant_keys()
    sealed = keys.seal("records", "task", "1", 1, plain)
    at = data.draw(st.integers(0, len(sealed) - 1))
    changed = bytearray(sealed)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((BrokenSealError, UnknownKeyError)):
        keys.open("records", "task", "1", 1, bytes(changed))
    with pytest.raises((BrokenSealError, UnknownKeyError)):
        keys.open("records", "task", "1", 1, sealed[:at])


def test_open_by_a_missing_key_names_its_number() -> None:
    sealed = TenantKeys(TENANT, {7: b"7" * 32}, 7, os.urandom).seal("records", "task", "1", 1, b"{}")
    with pytest.raises(UnknownKeyError, match="key 7") as refused:
        tenant_keys().open("records", "task", "1", 1, sealed)
    assert refused.value.number == 7


@given(st.integers(0, 300), st.integers(0, 300))
def test_seal_length_tells_only_the_block_of_the_plain_length(left: int, right: int) -> None:
    keys = tenant_keys()
    sizes = [len(keys.seal("records", "task", "1", 1, bytes(size))) for size in (left, right)]
    blocks = [(4 + size + BLOCK_BYTES - 1) // BLOCK_BYTES for size in (left, right)]
    assert sizes == [OVERHEAD_BYTES + BLOCK_BYTES * count for count in blocks]


@given(st.binary(max_size=130))
def test_seal_is_the_documented_format(plain: bytes) -> None:
    nonce = bytes(range(12))
    sealed = TenantKeys(TENANT, KEYS, 2, lambda _: nonce).seal("events", "voice", "e1", -5, plain)
    padded = len(plain).to_bytes(4, "big") + plain
    padded += bytes((64 - len(padded) % 64) % 64)
    associated = TENANT + b"events\x005\x00voice\x00-5\x00e1"
    assert sealed == b"\x01\x00\x00\x00\x02" + nonce + AESGCM(KEYS[2]).encrypt(nonce, padded, associated)


@given(st.binary(max_size=130))
def test_hasher_is_of_the_key_that_seals_and_says_which_made_a_hash(plain: bytes) -> None:
    keys = tenant_keys()
    keyed = keys.hasher("t")(plain)
    assert keyed[:5] == b"\x01\x00\x00\x00\x02"
    assert hash_key_number(keyed) == keys.active == 2
    assert len(keyed) == 37
    before = TenantKeys(TENANT, {1: KEYS[1]}, 1, os.urandom).hasher("t")(plain)
    assert keys.hasher("t", 1)(plain) == before
    others = {keys.hasher("u")(plain)[5:], before[5:], keys.hasher("t")(plain + b"x")[5:], keyed[5:]}
    assert len(others) == 4
    assert keys.former_numbers() == [number for number in KEYS if number != 2]
    with pytest.raises(UnknownKeyError, match="key 9"):
        keys.hasher("t", 9)


def test_seal_twice_gives_other_bytes() -> None:
    keys = tenant_keys()
    assert keys.seal("records", "task", "1", 1, b"{}") != keys.seal("records", "task", "1", 1, b"{}")


@pytest.mark.parametrize(("tenant", "key"), [(bytes(15), bytes(32)), (bytes(16), bytes(16))])
def test_tenant_keys_of_a_wrong_length_are_refused(tenant: bytes, key: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        TenantKeys(tenant, {1: key}, 1, os.urandom)
