"""Files that are stored before their records: each is attached once its record is there.

Every process looks after all of them, by what it reads each second and by what it commits itself. That one
file is tried by several does no harm: it is attached once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog

from engine.attachments import attaching
from engine.errors import SyncError
from engine.jobs import Outcome
from engine.ports import Clock, StoreError, WaitingStore
from engine.rows import Record, RecordKey
from engine.submitting import Jobs
from engine.uploads import Upload, UploadRef

_LOOK_S: Final = 1.0
#: Files that are looked at in one read; where more wait, the next read goes on behind them.
LOOKED_AT: Final = 500
#: Files that are known by their records; those beyond are met by a read.
_KNOWN: Final = 20_000
_log = structlog.get_logger()


class WaitingFiles:
    """The files that wait, by their records, as of the last reads."""

    def __init__(self, store: WaitingStore, clock: Clock, jobs: Jobs) -> None:
        self._store = store
        self._clock = clock
        self._jobs = jobs
        self._known: dict[RecordKey, list[Upload]] = {}
        self._count = 0
        self._tried: set[UploadRef] = set()

    async def run(self) -> None:
        """Look, until cancelled."""
        last: Upload | None = None
        away = False
        while True:
            try:
                last = await self.look(last)
                away = False
            except StoreError as error:
                if not away:
                    _log.warning("waiting_files_unread", reason=type(error).__name__)
                away = True
            await asyncio.sleep(_LOOK_S)

    async def look(self, after: Upload | None) -> Upload | None:
        """Read what waits behind ``after``, attach what is due and give the last one, None for the end.

        Raises StoreError.
        """
        found = await self._store.waiting(after, LOOKED_AT)
        if after is None:
            self._known.clear()
            self._count = 0
        for one in found:
            if one.due:
                self._attach(one.upload)
            elif self._count < _KNOWN:
                self._known.setdefault(_record_of(one.upload), []).append(one.upload)
                self._count += 1
        return found[-1].upload if len(found) == LOOKED_AT else None

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Attach what waited for records that were just written."""
        if not self._known:
            return
        for record, _ in changes:
            if record.data is None:
                continue
            for upload in self._known.pop(RecordKey(record.tenant_id, record.domain, record.id), ()):
                self._attach(upload)

    def _attach(self, upload: Upload) -> None:
        if upload.ref in self._tried:
            return
        job = attaching(upload, self._clock.now_us())
        self._tried.add(upload.ref)
        try:
            self._jobs.submit(job, partial(self._settled, upload.ref))
        except SyncError:  # the next look tries again
            self._tried.discard(upload.ref)

    def _settled(self, ref: UploadRef, _: Outcome) -> None:
        self._tried.discard(ref)


def _record_of(upload: Upload) -> RecordKey:
    assert upload.domain is not None
    assert upload.record_id is not None
    return RecordKey(upload.ref.tenant_id, upload.domain, upload.record_id)
