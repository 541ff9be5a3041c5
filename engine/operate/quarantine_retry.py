"""Quarantined items are sent again: checked and committed as from their device, stored once or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import compress
from typing import Final

import msgspec

from engine.commit.ports import Store, Transaction
from engine.commit.validation import MessageValidator, Session
from engine.model.audit import Actor, AuditRow
from engine.model.rows import Quarantined, QuarantineRef, ReadSet, Snapshot, TenantUsage, WriteSet
from engine.model.tenants import Tenant
from engine.operate.rows import Retried
from engine.plan.bounds.tenant_usage import conflict_bytes
from engine.plan.work import Push
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from engine.wire.floats import finite
from engine.wire.messages import Sync

#: Read from the answer that a device would get.
decode_results: Final = msgspec.json.Decoder(list[Retried]).decode


def retry_push(
    rows: Sequence[Quarantined], tenant: str, data: bytes | None, validator: MessageValidator, now_us: int
) -> Push:
    """Make the push that the device would send, ``data`` (JSON) in place of the first item's own if given.

    Its key is the first item's, so that what was stored under it is found again. The ``at`` of each is
    corrected as it was when the item first came, and an item without one is of then. Raises SyncError where
    an item, or ``data``, is no JSON that could be sent.
    """
    first, *behind = rows
    pushes = [
        _item_push(first, tenant, data, validator),
        *[_item_push(row, tenant, None, validator) for row in behind],
    ]
    raw = b"[%b]" % b",".join([push.raw_items[1:-1] for push in pushes])
    return msgspec.structs.replace(
        pushes[0],
        items=[item for push in pushes for item in push.items],
        raw_items=raw,
        request_sha256=hashlib.sha256(raw).hexdigest(),
        now_us=now_us,
    )


def _item_push(row: Quarantined, tenant: str, data: bytes | None, validator: MessageValidator) -> Push:
    item = row.item if data is None else _with_data(row.item, data)
    key = f"quarantine:{row.quarantine_id}".encode()
    frame = b'{"type":"sync","id":"1","key":%b,"items":[%b]}' % (msgspec.json.encode(key.decode()), item)
    sync = JSON.decode(frame)
    assert isinstance(sync, Sync)
    session = Session(
        tenant=Tenant(row.tenant_id, tenant),
        device_id=row.device_id,
        session_id="",
        clock_offset_us=row.clock_offset_us,
    )
    return validator.push(sync, session, row.at_us)


def _with_data(item: bytes, data: bytes) -> bytes:
    JSON.check_depth(data)
    try:
        given = json.loads(data, parse_float=finite)
    except ValueError as error:
        raise SyncError("invalid_message", f"data: not JSON: {error}") from None
    sent = json.loads(item)  # which reads NaN and lone surrogates, and may stand in what is replaced
    if not isinstance(sent, dict):
        raise SyncError("invalid_message", "the item as it was sent is no object")
    return json.dumps({**sent, "data": given}).encode()


def stays(result: Retried) -> bool:
    """Return whether an item stays in the quarantine: rejected again, or without effect on the record."""
    return result.status == "rejected" or (result.status == "resolved" and result.winner == "server")


class RetryStore:
    """A store (``engine.commit.ports.Store``) for one retry: of the first item, and of those behind it.

    What stores an item takes it out of the quarantine in the same transaction. Where the first one stays,
    nothing is written: neither the answer under its key, which other data or other rules may yet change,
    nor a second item in the quarantine. One of those behind it stays alone.
    """

    def __init__(
        self, store: Store, items: Sequence[QuarantineRef], sizes: Sequence[int], actor: Actor
    ) -> None:
        self._store = store
        self._items = items
        self._actor = actor
        #: How many bytes each item counts for in the quarantine.
        self._sizes = sizes
        #: Whether some of the items had left the quarantine before, so that nothing was written.
        self.late = False

    async def begin(self, read_set: ReadSet) -> Transaction:
        """Begin as the store does; what is recovered counts as set aside no more."""
        read_set.recovering = list(self._items)
        transaction = await self._store.begin(read_set)
        snapshot = transaction.snapshot
        ours = {item.quarantine_id for item in self._items}
        snapshot.rejected_before = {
            ref: first for ref, first in snapshot.rejected_before.items() if first not in ours
        }
        return _Recovery(transaction, self._items, self._sizes, self, self._actor)


class _Recovery:
    """One open try (``engine.commit.ports.Transaction``)."""

    def __init__(
        self,
        transaction: Transaction,
        items: Sequence[QuarantineRef],
        sizes: Sequence[int],
        store: RetryStore,
        actor: Actor,
    ) -> None:
        self._transaction = transaction
        self._items = items
        self._sizes = sizes
        self._store = store
        self._actor = actor
        self.snapshot: Snapshot = transaction.snapshot

    async def commit(self, writes: WriteSet) -> None:
        self._store.late = False
        if not writes.keys:  # stored before, or not judged at all
            await self._transaction.commit(writes)
            return
        results = decode_results(writes.keys[0].results)
        self._store.late = not self.snapshot.recovering.issuperset(self._items)
        if self._store.late or stays(results[0]):
            await self._transaction.rollback()
            return
        leaving = [not stays(result) for result in results]
        writes.recovered = [item for item, left in zip(self._items, leaving, strict=True) if left]
        writes.audit = [
            AuditRow("quarantine_retried", self._actor, item.quarantine_id, tenant_number=item.tenant_id)
            for item in writes.recovered
        ]
        usage = writes.usage.setdefault(self._items[0].tenant_id, TenantUsage())
        usage.quarantine_rows = -len(writes.recovered)
        usage.quarantine_bytes = -sum(compress(self._sizes, leaving))
        writes.quarantine = []
        lost = [conflict for conflict in writes.conflicts if conflict.outcome == "server"]
        usage.conflict_rows -= len(lost)
        usage.conflict_bytes -= sum(map(conflict_bytes, lost))
        writes.conflicts = [conflict for conflict in writes.conflicts if conflict.outcome != "server"]
        await self._transaction.commit(writes)

    async def rollback(self) -> None:
        await self._transaction.rollback()
