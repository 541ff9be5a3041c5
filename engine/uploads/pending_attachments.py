"""Files that are stored before their records: each is attached once its record is there.

Every process looks after all of them, by what it reads each second and by what it commits itself. That one
file is tried by several does no harm: it is attached once.
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
#: Files that are looked at in one read, of so many tenants: each has an equal part, so that 20,000 files of
#: one do not keep another's waiting. Where more wait, the next read goes on behind them.
LOOKED_AT: Final = 500
TENANTS: Final = 100
#: Files of one tenant that are known by their records; those beyond are met by a read.
_KNOWN: Final = 2000
#: The same of all tenants.
_KNOWN_OF_ALL: Final = 50_000
_log = structlog.get_logger()


class PendingAttachments:
    """The files that wait, by their records, as of the last reads."""

    def __init__(self, store: PendingStore, clock: Clock, work_queue: WorkQueue) -> None:
        self._store = store
        self._clock = clock
        self._work_queue = work_queue
        self._known: dict[int, dict[RecordKey, list[Upload]]] = {}
        self._counts: dict[int, int] = {}
        self._last: dict[int, Upload] = {}
        self._last_tenant = 0
        self._round: set[int] = set()
        self._tried: set[UploadRef] = set()

    async def run(self) -> None:
        """Look, until cancelled."""
        away = False
        while True:
            try:
                await self.look()
                away = False
            except StoreError as error:
                if not away:
                    _log.warning("waiting_files_unread", reason=type(error).__name__)
                away = True
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Read what waits of the next tenants, behind what was read of them before, and attach what is due.

        Raises StoreError.
        """
        tenants = await self._store.tenants(self._last_tenant, TENANTS)
        if tenants:
            await self._read(tenants)
            self._round.update(tenants)
        if len(tenants) == TENANTS:
            self._last_tenant = tenants[-1]
            return
        self._last_tenant = 0
        for tenant_id in self._known.keys() - self._round:
            self._forget(tenant_id)
        self._round.clear()

    async def _read(self, tenants: list[int]) -> None:
        part = max(1, LOOKED_AT // len(tenants))
        found = await self._store.waiting({one: self._last.get(one) for one in tenants}, part)
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
                self._know(one.upload)
        for tenant_id, count in counts.items():
            if count < part:  # the next read begins anew
                self._last.pop(tenant_id, None)

    def _know(self, upload: Upload) -> None:
        tenant_id = upload.ref.tenant_id
        count = self._counts.get(tenant_id, 0)
        if count < _KNOWN and sum(self._counts.values()) < _KNOWN_OF_ALL:
            self._known.setdefault(tenant_id, {}).setdefault(_record_of(upload), []).append(upload)
            self._counts[tenant_id] = count + 1

    def _forget(self, tenant_id: int) -> None:
        self._known.pop(tenant_id, None)
        self._counts.pop(tenant_id, None)

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Attach what waited for records that were just written."""
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
        if upload.ref in self._tried:
            return
        work = attaching(upload, self._clock.now_us())
        self._tried.add(upload.ref)
        try:
            self._work_queue.submit(work, partial(self._settled, upload.ref))
        except SyncError:  # the next look tries again
            self._tried.discard(upload.ref)

    def _settled(self, ref: UploadRef, _: Outcome) -> None:
        self._tried.discard(ref)


def _record_of(upload: Upload) -> RecordKey:
    assert upload.domain is not None
    assert upload.record_id is not None
    return RecordKey(upload.ref.tenant_id, upload.domain, upload.record_id)
