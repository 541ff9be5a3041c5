"""Attaches files that were stored before their records, once the records exist.

Every process looks after all of them: it reads them once a second, and it sees the records that it commits
itself. If several processes try one file, it is attached once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog

from engine.commit.ports import WorkQueue
from engine.model.rows import Record, RecordKey
from engine.model.uploads import Upload, UploadRef
from engine.plan.attachments import attaching
from engine.plan.work import Outcome
from engine.runtime.ports import Clock, StoreError
from engine.uploads.blobs import PendingStore
from engine.wire.errors import SyncError

_LOOK_S: Final = 1.0
#: Files in one read, and the tenants that share it equally, so that 20,000 files of one tenant do not delay
#: another's. If a tenant has more, its next read goes on behind them.
FILES_PER_READ: Final = 500
TENANTS_PER_READ: Final = 100
#: Files that are known by their records, of one tenant and of all; others are found by a later read.
_KNOWN: Final = 2000
_KNOWN_OF_ALL: Final = 50_000
_log = structlog.get_logger()


class PendingAttachments:
    """The pending files by their records, as of the last reads."""

    def __init__(self, store: PendingStore, clock: Clock, work_queue: WorkQueue) -> None:
        self._store = store
        self._clock = clock
        self._work_queue = work_queue
        self._known: dict[int, dict[RecordKey, list[Upload]]] = {}
        self._counts: dict[int, int] = {}
        self._last: dict[int, Upload] = {}
        self._last_tenant = 0
        self._seen_tenants: set[int] = set()
        self._submitted: set[UploadRef] = set()

    async def run(self) -> None:
        """Read pending files every second, until cancelled."""
        away = False
        while True:
            try:
                await self.look()
                away = False
            except StoreError as error:
                if not away:
                    _log.warning("pending_attachments_unread", reason=type(error).__name__)
                away = True
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Read the next page of pending files, and attach those whose records exist. Raises StoreError."""
        tenants = await self._store.tenants(self._last_tenant, TENANTS_PER_READ)
        if tenants:
            await self._read(tenants)
            self._seen_tenants.update(tenants)
        if len(tenants) == TENANTS_PER_READ:
            self._last_tenant = tenants[-1]
            return
        # The round is over: a tenant that it did not meet has no pending files.
        self._last_tenant = 0
        for tenant_id in self._known.keys() - self._seen_tenants:
            self._forget(tenant_id)
        self._seen_tenants.clear()

    async def _read(self, tenants: list[int]) -> None:
        share = max(1, FILES_PER_READ // len(tenants))
        found = await self._store.pending({one: self._last.get(one) for one in tenants}, share)
        counts = dict.fromkeys(tenants, 0)
        for tenant_id in tenants:
            if tenant_id not in self._last:
                self._forget(tenant_id)
        for one in found:
            tenant_id = one.upload.ref.tenant_id
            counts[tenant_id] += 1
            self._last[tenant_id] = one.upload
            if one.due:
                self._attach(one.upload)
            else:
                self._remember(one.upload)
        for tenant_id, count in counts.items():
            if count < share:  # the tenant's next read begins at its first file
                self._last.pop(tenant_id, None)

    def _remember(self, upload: Upload) -> None:
        tenant_id = upload.ref.tenant_id
        count = self._counts.get(tenant_id, 0)
        if count < _KNOWN and sum(self._counts.values()) < _KNOWN_OF_ALL:
            self._known.setdefault(tenant_id, {}).setdefault(_record_of(upload), []).append(upload)
            self._counts[tenant_id] = count + 1

    def _forget(self, tenant_id: int) -> None:
        self._known.pop(tenant_id, None)
        self._counts.pop(tenant_id, None)

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Attach the known files of records that this process has just written."""
        if not self._known:
            return
        for record, _ in changes:
            if record.data is None:
                continue
            known = self._known.get(record.tenant_id)
            if known is None:
                continue
            for upload in known.pop(RecordKey(record.tenant_id, record.domain, record.id), ()):
                self._attach(upload)

    def _attach(self, upload: Upload) -> None:
        if upload.ref in self._submitted:
            return
        work = attaching(upload, self._clock.now_us())
        self._submitted.add(upload.ref)
        try:
            self._work_queue.submit(work, partial(self._answered, upload.ref))
        except SyncError:  # overloaded: the next look tries again
            self._submitted.discard(upload.ref)

    def _answered(self, ref: UploadRef, _: Outcome) -> None:
        self._submitted.discard(ref)


def _record_of(upload: Upload) -> RecordKey:
    assert upload.domain is not None
    assert upload.record_id is not None
    return RecordKey(upload.ref.tenant_id, upload.domain, upload.record_id)
