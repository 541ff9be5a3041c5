"""Kept answers, which are sealed with the hash of their request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from engine.model.rows import IdempotencyKey, IdempotencyRecord
from storage.stores.sealed.sealing import ANSWER, ANY_DOMAIN, HASH_IN_RESULTS, REQUEST, Sealing

_HASH_BYTES: Final = 32


def seal_answers(
    sealing: Sealing, answers: Sequence[IdempotencyRecord]
) -> tuple[list[str], list[bytes | None]]:
    """Return the hashes of the requests and the results of answers, as their columns have them.

    A plain hash of a request tells a score of two digits at once. A personal answer with data or errors is
    sealed, and the hash with it in one value. All others tell nothing: only the hash is made with a key, in a
    third of the time, and the row is 200 bytes shorter.

    Raises:
        StoreRetryError: As ``Sealing.seal``.
    """
    hashes: list[str] = []
    results: list[bytes | None] = []
    hashers: dict[int, Callable[[bytes], bytes] | None] = {}
    for one in answers:
        request_sha256: str = one.request_sha256
        stored: bytes | None = one.results
        if one.personal:
            tenant_id, plain = one.tenant_id, bytes.fromhex(request_sha256)
            if not one.bare:
                whole = plain + one.results
                stored = sealing.seal(ANSWER, tenant_id, ANY_DOMAIN, one.key_hash, 0, whole)
                request_sha256 = HASH_IN_RESULTS
            else:
                if tenant_id not in hashers:
                    hashers[tenant_id] = sealing.hasher(REQUEST, tenant_id)
                hasher = hashers[tenant_id]
                if hasher is not None:
                    request_sha256 = hasher(plain).hex()
        hashes.append(request_sha256)
        results.append(stored)
    return hashes, results


def keyed_request(sealing: Sealing, tenant_id: int, stored: str, request_sha256: str) -> str | None:
    """Return the hash of a request by the key that made a stored one; None if there is no master key.

    Raises:
        StoreRetryError: As ``Sealing.seal``.
    """
    hasher = sealing.hasher(REQUEST, tenant_id, stored)
    return None if hasher is None else hasher(bytes.fromhex(request_sha256)).hex()


def open_answer(sealing: Sealing, key: IdempotencyKey, stored: str) -> tuple[str, bytes]:
    """Return the hash of the request, and the results. Raises as ``Sealing.open``."""
    plain = sealing.open(ANSWER, key.tenant_id, ANY_DOMAIN, key.key_hash, 0, stored)
    assert plain is not None
    return plain[:_HASH_BYTES].hex(), plain[_HASH_BYTES:]
