"""Master keys: they wrap the data keys of tenants, and seal nothing else.

A deployment has one, or while it is rotated several: the first one wraps, all of them unwrap.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode
from collections.abc import Collection, Iterable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
#: The nonce of a wrapped key.
NONCE_BYTES: Final = 12
_NAME: Final = b"tidemark master key\0"
_PURPOSE: Final = b"tidemark tenant key\0"


class MasterKeyError(Exception):
    """A master key that is missing or cannot be used, in one sentence for the operator."""


class WrappedKey(msgspec.Struct, frozen=True):
    """A data key of a tenant as it is stored: encrypted by the master key of that id.

    ``retired`` is one that only opens. ``key_id`` tells it from another key of its number, as there may be
    one after a failover; it is empty until the key is stored.
    """

    number: int
    master_key_id: str
    wrapped: bytes
    retired: bool
    key_id: str = ""


class MasterKeys:
    """The master keys of a deployment.

    Args:
        keys: Each 32 bytes; the first one wraps.

    Raises:
        MasterKeyError: There is none, or one of another length.
    """

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._ciphers: dict[str, AESGCM] = {}
        for key in keys:
            if len(key) != KEY_BYTES:
                raise MasterKeyError(f"a master key has {KEY_BYTES} bytes, and this one {len(key)}")
            self._ciphers[master_key_id(key)] = AESGCM(key)
        if not self._ciphers:
            raise MasterKeyError("there is no master key in it")

    def __repr__(self) -> str:
        """Show the ids alone."""
        return f"MasterKeys({', '.join(self._ciphers)})"

    @property
    def ids(self) -> list[str]:
        """The ids of all, the one that wraps first."""
        return list(self._ciphers)

    @property
    def active(self) -> str:
        """The id of the key that wraps."""
        return next(iter(self._ciphers))

    def wrap(self, tenant_uuid: bytes, number: int, data_key: bytes, nonce: bytes) -> WrappedKey:
        """Encrypt a data key with the active master key.

        Args:
            tenant_uuid: The tenant, as 16 bytes.
            number: The number of the data key.
            data_key: The key.
            nonce: ``NONCE_BYTES`` random bytes, which must be new for each call.
        """
        master_key_id = self.active
        sealed = self._ciphers[master_key_id].encrypt(nonce, data_key, _associated(tenant_uuid, number))
        return WrappedKey(number, master_key_id, nonce + sealed, retired=False)

    def unwrap(self, tenant_uuid: bytes, key: WrappedKey) -> bytes:
        """Decrypt a data key.

        Raises:
            MasterKeyError: Its master key is not among these, or it is of another tenant or number.
        """
        cipher = self._ciphers.get(key.master_key_id)
        if cipher is None:
            raise MasterKeyError(missing_sentence([key.master_key_id], self.ids))
        nonce, sealed = key.wrapped[:NONCE_BYTES], key.wrapped[NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, sealed, _associated(tenant_uuid, key.number))
        except (InvalidTag, ValueError):
            raise MasterKeyError(
                f"key {key.number} of tenant {tenant_uuid.hex()} was changed in the database: restore the"
                " table tenant_keys from a backup"
            ) from None


def master_key_id(key: bytes) -> str:
    """Return the id of a master key: 16 hex digits that are derived from it, and tell nothing of it."""
    return hmac.digest(key, _NAME, "sha256")[:8].hex()


def parse_master_keys(text: str) -> MasterKeys:
    """Read master keys, each 32 bytes as base64, separated by lines or spaces.

    Raises:
        MasterKeyError: There is none, or one is no base64 of 32 bytes.
    """
    keys = []
    for word in text.split():
        try:
            keys.append(b64decode(word, validate=True))
        except (binascii.Error, ValueError):
            raise MasterKeyError(
                f"a master key is {KEY_BYTES} bytes as base64: `openssl rand -base64 {KEY_BYTES}` makes one"
            ) from None
    return MasterKeys(keys)


def require_given(in_use: Iterable[str], given: Collection[str]) -> None:
    """See that master keys in use are given, by their ids. Raises MasterKeyError."""
    if missing := set(in_use).difference(given):
        raise MasterKeyError(missing_sentence(missing, given))


def missing_sentence(missing: Iterable[str], given: Iterable[str]) -> str:
    """Return the sentence on master keys that wrapped keys of tenants and are not given."""
    here = ", ".join(given) or "none"
    return (
        f"the master key {', '.join(sorted(missing))} is needed to open sealed data, and given is {here}: set"
        " sealing.master_key_file (or master_key, or master_key_command) to the key that this database was"
        " sealed with; without it sealed data cannot be read. If it wraps no key of a tenant,"
        " `run.py keys rotate-master` retires it"
    )


def _associated(tenant_uuid: bytes, number: int) -> bytes:
    return _PURPOSE + tenant_uuid + number.to_bytes(4)
