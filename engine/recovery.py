"""A quarantined item is sent again: checked and committed as from its device, stored once or not at all."""

from __future__ import annotations

import json

import msgspec

from engine.codec import JSON
from engine.errors import SyncError
from engine.intake import Intake, Session
from engine.jobs import Push
from engine.messages import Sync
from engine.ports import Store, Tenant, Transaction
from engine.rows import Lookups, Quarantined, QuarantineRef, State, Writes


def resent(row: Quarantined, tenant: str, data: bytes | None, intake: Intake, now_us: int) -> Push:
    """Make the push that the device would send, ``data`` (JSON) in place of the item's own if given.

    Its key is the item's, so that what was stored under it is found again. Its ``at`` is corrected as it was
    when the item first came, and an item without one is of then. Raises SyncError where the item, or
    ``data``, is no JSON that could be sent.
    """
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
    push = intake.push(sync, session, row.at_us)
    return msgspec.structs.replace(push, now_us=now_us)


def _with_data(item: bytes, data: bytes) -> bytes:
    JSON.check_depth(data)
    try:
        given = json.loads(data)
    except ValueError as error:
        raise SyncError("invalid_message", f"data: not JSON: {error}") from None
    sent = json.loads(item)  # which reads NaN and lone surrogates, and may stand in what is replaced
    if not isinstance(sent, dict):
        raise SyncError("invalid_message", "the item as it was sent is no object")
    return json.dumps({**sent, "data": given}).encode()


class RecoveryStore:
    """A store (``engine.ports.Store``) for the retry of one item.

    What stores the item takes it out of the quarantine in the same transaction. What rejects it again
    writes nothing: neither the answer under its key, which other data or other rules may yet change,
    nor a second item in the quarantine.
    """

    def __init__(self, store: Store, item: QuarantineRef) -> None:
        self._store = store
        self._item = item

    async def begin(self, lookups: Lookups) -> Transaction:
        """Begin as the store does."""
        return _Recovery(await self._store.begin(lookups), self._item)


class _Recovery:
    """One open try (``engine.ports.Transaction``)."""

    def __init__(self, transaction: Transaction, item: QuarantineRef) -> None:
        self._transaction = transaction
        self._item = item
        self.state: State = transaction.state

    async def commit(self, writes: Writes) -> None:
        if writes.quarantine:
            await self._transaction.rollback()
            return
        if writes.keys:  # else it was stored before, or not judged at all
            writes.recovered = [self._item]
        await self._transaction.commit(writes)

    async def rollback(self) -> None:
        await self._transaction.rollback()
