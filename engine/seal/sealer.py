"""The keys of one tenant: they seal what is stored, and open it again.

A sealed value is, in this order:

| bytes | content |
|---|---|
| 1 | the version of this format, 1 |
| 4 | the number of the key, big-endian |
| 12 | the nonce, random |
| 64 n | AES-256-GCM of the plain bytes: their length in 4 bytes, they, and zeros up to a multiple of 64 |
| 16 | the tag |

Padding hides lengths: ``true`` and ``false`` look alike. The associated data are the tenant and the place of
the value: table NUL length of domain NUL domain NUL version NUL id. They are the same for no two places,
whatever domain and id contain, so that no value opens in another place than its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

FORMAT: Final = 1
KEY_BYTES: Final = 32
#: A sealed value is a multiple of this, plus ``OVERHEAD_BYTES``.
BLOCK_BYTES: Final = 64
LENGTH_BYTES: Final = 4
OVERHEAD_BYTES: Final = 1 + 4 + 12 + 16
#: Nonces are 96 random bits: past so many values of one key two may share one (NIST SP 800-38D, 8.3).
MOST_SEALS: Final = 1 << 32

NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 5
#: Zeros by their number.
_FILL: Final = [bytes(size) for size in range(BLOCK_BYTES)]
_LAST: Final = BLOCK_BYTES - 1
_DIGEST_BYTES: Final = 32
_BODY: Final = _HEAD_BYTES + NONCE_BYTES


class SealError(Exception):
    """A value cannot be opened, or cannot be sealed."""


class UnknownKeyError(SealError):
    """A value was sealed by a key that is not known here: read the keys again. ``number`` is the key's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the value was sealed by key {number}, which is not known here")
        self.number = number


class BrokenSealError(SealError):
    """A value is not sealed as this version does, was changed, or is of another place or tenant."""


class TenantKeys:
    """The keys of one tenant. Sealing and opening take about 1 µs each, and neither waits nor locks.

    Args:
        tenant: 16 bytes that no other tenant ever has, as of a UUID.
        keys: The keys by their numbers, of 32 bytes each.
        active: The number of the key that seals. All keys open.
        random_bytes: Returns so many random bytes, fit for keys (``os.urandom``).
        active_id: The id of the key that seals, which no other key has, whatever its number.

    Attributes:
        active: As above.
        active_id: As above.
        seals: How many values this object has sealed. Its maker keeps the sum of a key below ``MOST_SEALS``.
    """

    __slots__ = (
        "_encrypt",
        "_hashers",
        "_head",
        "_keys",
        "_openers",
        "_random_bytes",
        "_sealers",
        "_tenant",
        "active",
        "active_id",
        "seals",
    )

    def __init__(
        self,
        tenant: bytes,
        keys: Mapping[int, bytes],
        active: int,
        random_bytes: Callable[[int], bytes],
        active_id: str = "",
    ) -> None:
        if len(tenant) != 16 or any(len(key) != KEY_BYTES for key in keys.values()):
            raise ValueError(f"a tenant has 16 bytes, a key {KEY_BYTES}")
        ciphers = {number: AESGCM(key) for number, key in keys.items()}
        self.active = active
        self.active_id = active_id
        self.seals = 0
        self._keys = keys
        self._sealers: dict[tuple[str, str], Callable[[str, int, bytes, bytes], bytes]] = {}
        self._hashers: dict[tuple[str, int], Callable[[bytes], bytes]] = {}
        self._tenant = tenant
        self._random_bytes = random_bytes
        self._encrypt = ciphers[active].encrypt
        self._head = head_of(active)
        self._openers = {head_of(number): cipher.decrypt for number, cipher in ciphers.items()}

    def seal(self, table: str, domain: str, value_id: str, version: int, plain: bytes) -> bytes:
        """Seal a value for one place. The same value gives other bytes each time.

        Args:
            table: The table, with the column where a row has several values.
            domain: The domain, empty where none is known.
            value_id: What names the row in its table.
            version: What tells apart the values that a row has one after the other; 0 for rows with one.
            plain: The value.
        """
        # Nothing is kept for the place: the domain of a rejected item is any text that a device sent.
        known = self._sealers.get((table, domain)) or self._new_sealer(table, domain)
        return known(value_id, version, plain, self._random_bytes(NONCE_BYTES))

    def sealer(self, table: str, domain: str) -> Callable[[str, int, bytes, bytes], bytes]:
        """Return what seals many values of a table and domain in two thirds of the time.

        It takes the id, the version, the value, and a nonce: ``NONCE_BYTES`` random bytes that were used for
        no other value. It is kept as long as the keys are: ask for configured domains alone.
        """
        known = self._sealers.get((table, domain))
        if known is None:
            known = self._sealers[table, domain] = self._new_sealer(table, domain)
        return known

    def _new_sealer(self, table: str, domain: str) -> Callable[[str, int, bytes, bytes], bytes]:
        head, encrypt = self._head, self._encrypt
        place = self._tenant + _place(table, domain)

        def seal(value_id: str, version: int, plain: bytes, nonce: bytes) -> bytes:
            self.seals += 1
            size_bytes = len(plain)
            fill = _FILL[-(size_bytes + LENGTH_BYTES) & _LAST]
            padded = size_bytes.to_bytes(LENGTH_BYTES, "big") + plain + fill
            return head + nonce + encrypt(nonce, padded, place + f"\0{version}\0{value_id}".encode())

        return seal

    def open(self, table: str, domain: str, value_id: str, version: int, sealed: bytes) -> bytes:
        """Open a value; the arguments are those of ``seal``.

        Raises:
            UnknownKeyError: A key is missing.
            BrokenSealError: It is not the value that was sealed for this place.
        """
        decrypt = self._openers.get(sealed[:_HEAD_BYTES])
        if decrypt is None:
            raise UnknownKeyError(key_number(sealed))
        try:
            place = f"{table}\0{len(domain)}\0{domain}\0{version}\0{value_id}".encode()
            padded = decrypt(sealed[_HEAD_BYTES:_BODY], sealed[_BODY:], self._tenant + place)
        except (InvalidTag, ValueError):
            raise BrokenSealError(f"a value of {table} was changed, or is of another row or tenant") from None
        return padded[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(padded[:LENGTH_BYTES], "big")]

    def hasher(self, table: str, number: int | None = None) -> Callable[[bytes], bytes]:
        """Return what makes hashes by which nobody can guess a value without the key.

        A hash begins as values do that its key sealed, and has 32 bytes more. The same value has another hash
        in another table, and by another key.

        Args:
            table: The table, with the column where a row has several values.
            number: The number of the key; None is the one that seals.

        Raises:
            UnknownKeyError: There is no such key here.
        """
        number = self.active if number is None else number
        return self._hashers.get((table, number)) or self._new_hasher(table, number)

    def _new_hasher(self, table: str, number: int) -> Callable[[bytes], bytes]:
        if number not in self._keys:
            raise UnknownKeyError(number)
        key = HKDFExpand(SHA256(), KEY_BYTES, b"keyed hash").derive(self._keys[number])
        begun = blake2b(table.encode() + b"\0", key=key, digest_size=_DIGEST_BYTES)
        head = head_of(number)

        def keyed_hash(plain: bytes) -> bytes:
            state = begun.copy()
            state.update(plain)
            return head + state.digest()

        self._hashers[table, number] = keyed_hash
        return keyed_hash

    def former_numbers(self) -> list[int]:
        """Return the numbers of the keys that only open."""
        return [number for number in self._keys if number != self.active]


def hash_key_number(keyed: bytes) -> int:
    """Return the number of the key that made a hash."""
    return int.from_bytes(keyed[1:_HEAD_BYTES], "big")


def key_number(sealed: bytes) -> int:
    """Return the number of the key that sealed a value. Raises BrokenSealError."""
    if len(sealed) < OVERHEAD_BYTES + BLOCK_BYTES or sealed[0] != FORMAT:
        raise BrokenSealError("a value is not sealed as this version does")
    return int.from_bytes(sealed[1:_HEAD_BYTES], "big")


def _place(table: str, domain: str) -> bytes:
    return f"{table}\0{len(domain)}\0{domain}".encode()


def head_of(number: int) -> bytes:
    """Return the bytes with which values begin that a key sealed."""
    return bytes([FORMAT]) + number.to_bytes(4, "big")
