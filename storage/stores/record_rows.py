"""A record as ``records`` keeps it, for reads that bring one along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from engine.model.rows import Record, RecordKey
from storage.stores.sealed.sealing import RECORD_DATA, RECORD_LAST_DATA, Sealing

#: In the order of ``record_of``, of ``records AS r``.
RECORD_COLUMNS: Final = (
    "r.version, r.seq, r.at_us, r.device_id, r.chain_from, r.data::text, r.last_data::text"
)


def record_of(key: RecordKey, columns: Sequence[Any], sealing: Sealing) -> Record | None:
    """Return the record of ``RECORD_COLUMNS``; None where an outer join found no row.

    Raises as ``Sealing.open``.
    """
    version, seq, at_us, device_id, chain_from, data, last_data = columns
    if version is None:
        return None
    return Record(
        *key,
        version,
        seq,
        at_us,
        device_id,
        chain_from,
        sealing.open(RECORD_DATA, *key, version, data),
        last_data=sealing.open(RECORD_LAST_DATA, *key, version, last_data),
    )
