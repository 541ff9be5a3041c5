"""Every method of the stores, run once for one tenant: for tests about each of their statements."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec

from engine.cache.device_health import Counts, DeviceKey, Facts, Health
from engine.cache.ports import MinuteRow
from engine.model.audit import Actor, AuditRow
from engine.model.commit_counts import HOUR_US, CommitCounts, Unit
from engine.model.domains import DomainPolicy
from engine.model.minutes import Minute
from engine.model.rows import (
    Conflict,
    ConflictRef,
    DeviceRecordKey,
    Event,
    EventKey,
    HeldChange,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    Quarantined,
    QuarantineRef,
    ReadSet,
    Record,
    RecordKey,
    TenantUsage,
    WriteSet,
)
from engine.model.telemetry import TelemetryRow
from engine.model.uploads import Upload, UploadRef
from engine.operate.figures.voice import Result, Verification
from engine.operate.retention import Position
from engine.runtime.ports import StoreError
from engine.seal.master_keys import WrappedKey
from engine.uploads.ports import Claim, NewUpload, OffsetUpdate, Quota, StoredFile
from engine.wire.messages import ItemError
from storage.postgres.plain_bytes import TEXT_MARK
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.conflicts import PostgresConflicts
from storage.stores.devices import PostgresDevices
from storage.stores.export import PostgresExport
from storage.stores.feed import PostgresFeed
from storage.stores.jobs.retention import PostgresRetention
from storage.stores.jobs.upload_cleanup import PostgresCleanup
from storage.stores.keys.admin import PostgresKeyAdmin
from storage.stores.keys.verify import PostgresVerify
from storage.stores.keys.wrapped import PostgresTenantKeys
from storage.stores.monitoring.aggregation import PostgresAggregation
from storage.stores.monitoring.analytics import PostgresAnalytics
from storage.stores.monitoring.minutes import PostgresMinutes
from storage.stores.monitoring.reads import PostgresMonitorReads
from storage.stores.monitoring.telemetry import PostgresTelemetry
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.policies import PostgresPolicies
from storage.stores.quarantine import PostgresQuarantine
from storage.stores.sealed.checked import checked_transaction
from storage.stores.sealed.sealing import Sealing
from storage.stores.tenants import PostgresTenants
from storage.stores.upload_reads import PostgresFileList, PostgresFiles, PostgresPending
from storage.stores.uploads import PostgresUploads
from storage.stores.usage import PostgresUsage
from tests.harness.in_process_server import settings_with
from tests.harness.key_ring import sealing_of

OWN: Final = 1
DAY_US: Final = 86_400_000_000
GONE: Final[tuple[Literal["attached", "stored"], ...]] = ("attached", "stored")
UNITS: Final[tuple[Unit, ...]] = ("hour", "day")


def _record(number: int, **changed: Any) -> Record:
    one = Record(OWN, "task", f"r{number}", 1, number, number, "phone", 1, b'{"n":1}', b"{}", None, 1)
    return msgspec.structs.replace(one, **changed)


def _conflict(name: str, **changed: Any) -> Conflict:
    one = Conflict(
        tenant_id=OWN,
        conflict_id=name,
        domain="task",
        record_id="r1",
        device_id="phone",
        policy="manual",
        outcome="open",
        server_version=1,
        server_data=b"{}",
        client_base=1,
        client_op="put",
        client_at_us=1,
        client_data=b"{}",
        client_changes=(HeldChange("put", 1, 1, 1, b"{}"),),
        opened_at_us=1,
    )
    return msgspec.structs.replace(one, **changed)


def _item(name: str, **changed: Any) -> Quarantined:
    one = Quarantined(
        tenant_id=OWN,
        quarantine_id=name,
        device_id="phone",
        domain="task",
        record_id="r1",
        item=b"{}",
        code="invalid_item",
        message="",
        at_us=1,
    )
    return msgspec.structs.replace(one, **changed)


def _upload(**changed: Any) -> Upload:
    one = Upload(
        ref=UploadRef(OWN, uuid.uuid4().hex),
        device_id="phone",
        user=None,
        kind="single",
        file_name="a.jpg",
        content_type="image/jpeg",
        domain="task",
        record_id="r1",
        metadata="",
        size_bytes=4,
        reserved_bytes=4,
        expected_sha256=None,
    )
    return msgspec.structs.replace(one, **changed)


class EveryMethod:
    """Runs every method of the stores for one tenant."""

    def __init__(self, database: Database, now_us: int, hour_ends: Callable[[], None]) -> None:
        self.database = database
        self.hour_ends = hour_ends
        self.now_us = now_us
        self.key = "1" * 32
        self.uploads = PostgresUploads(database, Sealing())

    async def run(self) -> None:
        """Write, and read it all back."""
        await PostgresTenants(self.database).add("acme")
        await self._uploads()
        await self._batches()
        await self._for_devices()
        await self._monitoring()
        await self._for_people()
        await self._verified()

    async def _uploads(self) -> None:
        quota = Quota(1 << 30, 100, 100, 1000)
        single, part = _upload(), _upload(kind="partial", file_name=None, domain=None, record_id=None)
        uploads = self.uploads
        self.single, self.same = single, _upload()
        self.open = _upload(record_id="r2")
        await uploads.create([NewUpload(one, quota) for one in (single, self.same, self.open, part)], 60)
        await uploads.create([NewUpload(_upload(), Quota(1 << 30, 1, 1, 1000))], 60)
        final = _upload(kind="final", parts=(part.ref.upload_id,), record_id="r3")
        await uploads.concatenate(NewUpload(final, quota), 60)
        for one in (single, self.same):
            await uploads.claim([Claim(one.ref, "phone", "a1")])
            await uploads.save_offsets([OffsetUpdate(one.ref, "a1", 4, 4, (), release=False)], 60)
        await uploads.steal(Claim(self.open.ref, "phone", "a2"))
        await uploads.mark_stored(
            [StoredFile(one.ref, "task", "ab", "image/jpeg") for one in (single, self.same)]
        )
        await uploads.find(single.ref)
        await uploads.discard(final.ref, None, "cancelled")

    async def _batches(self) -> None:
        store = PostgresStore(self.database, 720, Sealing())
        far_us = self.now_us + 30 * DAY_US
        first = await store.begin(ReadSet([OWN], [], [], [], [], []))
        ref = self.single.ref
        await first.commit(
            WriteSet(
                {OWN: 4},
                [_record(1), _record(2), _record(3), _record(4, data=None, last_data=b"{}")],
                [
                    Event(OWN, "voice", "e1", at, at, "phone", b'{"verified":true}')
                    for at in (self.now_us, far_us)
                ],
                [IdempotencyRecord(OWN, self.key, "00" * 32, b"[]")],
                [_conflict("c1"), _conflict("c2", outcome="server_wins", record_id="r2")],
                [_item("q1"), _item("q2", code="creation_rejected"), _item("q3", record_id="r2")],
                usage={OWN: TenantUsage(record_rows=4, event_rows=2)},
                counts={OWN: CommitCounts(1, items={"voice": [1, 0, 0, 0, 0]})},
            )
        )
        everything = ReadSet(
            [OWN],
            [IdempotencyKey(OWN, self.key)],
            [RecordKey(OWN, "task", f"r{n}") for n in range(1, 6)],
            [EventKey(OWN, "voice", "e1", at) for at in (self.now_us, far_us)],
            [OpenConflictRef(OWN, "phone", "task", "r1")],
            [ConflictRef(OWN, "c2")],
            [ref],
            [ref],
            [IdempotencyKey(OWN, self.key)],
            [DeviceRecordKey(OWN, "phone", "task", "r1")],
            [QuarantineRef(OWN, "q1")],
        )
        await (await store.begin(everything)).rollback()
        self.hour_ends()
        everything.usage_above = (0,) * 11
        second = await store.begin(everything)
        await second.commit(
            WriteSet(
                {OWN: 8},
                [
                    _record(1, version=2, seq=5),
                    _record(2, version=2, seq=6, attachments=b"[]"),
                    _record(3, version=2, seq=7, data=None, last_data=b"{}"),
                    _record(5, seq=8),
                ],
                [],
                [],
                [_conflict("c1", client_count=2)],
                [],
                [QuarantineRef(OWN, "q3")],
                [(ref, "attached")],
                {OWN: TenantUsage(record_rows=1)},
                [AuditRow("conflict_resolved", Actor("user", "ann"), "c1", None, OWN)],
                {OWN: CommitCounts(1, items={"voice": [1, 0, 0, 0, 0]})},
            )
        )
        with suppress(StoreError):  # a tenant that is not there: its counter is made, which its row forbids
            await store.begin(ReadSet([OWN, 2], [], [], [], [], []))

    async def _monitoring(self) -> None:
        database, now_us = self.database, self.now_us
        minutes, voice = PostgresMinutes(database), PostgresVoice(database, Sealing())
        hour_us = now_us // HOUR_US * HOUR_US
        rows = [
            MinuteRow(OWN, at_us, uuid.uuid4().hex, Minute(syncs=1)) for at_us in (hour_us, hour_us - HOUR_US)
        ]
        await minutes.put(rows)
        await minutes.windows("acme", now_us - DAY_US, now_us + 1)
        telemetry = PostgresTelemetry(database)
        row = TelemetryRow(OWN, "phone", now_us // HOUR_US, self.key, ("a",), (1,), ("b",), (1,), (1,), (1,))
        for _ in range(2):
            await telemetry.put([row])
        await telemetry.telemetry("acme", now_us - DAY_US, now_us + DAY_US, "hour")
        result = Verification("e1", "phone", None, now_us, Result(verified=True))
        await voice.put(OWN, [result])
        aggregation = PostgresAggregation(database)
        await aggregation.due()
        self.hour_ends()
        await aggregation.end_hours([OWN])
        await voice.hours([OWN], 0, now_us + DAY_US)
        await voice.events(OWN, hour_us, None, 10)
        await voice.voice("acme", 0, now_us + DAY_US)
        await aggregation.sum_hours([OWN], hour_us - HOUR_US, hour_us + HOUR_US)
        await aggregation.sum_day([OWN], now_us // DAY_US * DAY_US)
        analytics = PostgresAnalytics(database)
        await analytics.hours("acme", now_us - DAY_US, now_us + DAY_US)
        for by in UNITS:
            await analytics.uniques("acme", now_us - DAY_US, now_us + DAY_US, by)
        monitor = PostgresMonitorReads(database)
        await monitor.devices_seen("acme")
        await monitor.uploads_ended("acme", 0)
        for page in (voice.delete, telemetry.delete, telemetry.delete_names, aggregation.delete_minutes):
            await page(1, 10)
        await aggregation.delete_counts(1, 10)
        await aggregation.delete_device_hours(1, 10)
        await aggregation.summed(hour_us)

    async def _for_devices(self) -> None:
        database = self.database
        devices, cleanup = PostgresDevices(database), PostgresCleanup(database)
        key = DeviceKey(OWN, "phone")
        await devices.add(
            [Health(key, Counts(1), self.now_us, seen=True, facts=Facts(1, queue_depth=1), user_id="ann")]
        )
        await devices.introduce([key, DeviceKey(OWN, "phone of tomorrow")], 10)
        await devices.health([key])
        await devices.latest(10)
        await devices.revoked()
        feed = PostgresFeed(database, Sealing())
        await feed.heads([OWN])
        for domains in (None, ["task"]):
            await feed.page(OWN, 0, domains, 10, 1 << 20)
        await feed.page_of_rare_domains(OWN, 0, ["task"], 10, 1 << 20)
        await feed.pages_after({OWN: 0}, 10, 1 << 20)
        conflicts = PostgresConflicts(database, Sealing())
        await conflicts.open_conflicts(OWN, None, None, 10, 1 << 20)
        await conflicts.open_conflicts(OWN, "phone", "c0", 10, 1 << 20)
        await conflicts.conflict(OWN, "c1")
        pending = PostgresPending(database, Sealing())
        await pending.tenants(0, 10)
        await pending.pending({OWN: None}, 10)
        await PostgresFiles(database, Sealing()).file(OWN, self.single.ref.upload_id)
        await PostgresFiles(database, Sealing()).file(OWN, self.same.ref.upload_id)
        await PostgresFileList(database).files("acme", None, 10)
        await PostgresFileList(database).files(None, self.single.ref, 10)
        await cleanup.list_open(None, 10, self.now_us)
        await cleanup.expire(OWN, [self.open.ref.upload_id], self.now_us + DAY_US)
        await cleanup.mark_gone(None, 10, self.now_us)
        for state in GONE:
            await cleanup.list_gone(state, None, 10)
        await cleanup.unmark([self.single.ref])
        await cleanup.states([self.single.ref])
        await cleanup.delete_ended(1, 10)
        await cleanup.abandonment(0, "acme")
        retention = PostgresRetention(database)
        for delete in (retention.drop_last_data, retention.delete_conflicts, retention.delete_quarantined):
            await delete(1, Position(0, 0), 10)

    async def _keys(self) -> None:
        database = self.database
        keys = PostgresTenantKeys(database)
        await keys.replace(OWN, None, WrappedKey(1, "m1", b"k", retired=False), ["m1"])
        before = (await keys.read([OWN]))[OWN].keys[0]
        await keys.replace(OWN, before, WrappedKey(2, "m1", b"k", retired=False), ["m1"], reseal=True)
        await keys.lease({OWN: (await keys.read([OWN]))[OWN].keys[1].key_id}, 10)
        await PostgresStore(database, 720, Sealing())._name_keys([OWN])
        async with checked_transaction(database, Sealing(), [OWN]):
            pass
        admin = PostgresKeyAdmin(database)
        await admin.tenants()
        await admin.master_keys_in_use()
        await admin.nothing_is_stored()
        others = await admin.wrapped_by_others("m2")
        await admin.retire_unused(["m1"])
        await admin.rewrap(["m2", "m1"], [(one, b"k") for one in others])
        await admin.end_rotation(["m2", "m1"], 2)

    async def _for_people(self) -> None:
        database = self.database
        tenants, devices = PostgresTenants(database), PostgresDevices(database)
        await tenants.find("acme")
        await tenants.reread([OWN])
        await tenants.newest(1)
        await tenants.tenants()
        await tenants.revoke_token("t1", "acme")
        await tenants.revoke_token("t1", None)
        await self._keys()
        await devices.device("acme", "phone")
        for name in ("acme", None):
            await devices.devices(name)
        await devices.revoke("acme", "phone")
        await devices.restore("acme", "phone")
        policies = PostgresPolicies(database, {"task": DomainPolicy("manual")})
        await policies.set("acme", "task", DomainPolicy("server_wins"))
        for name in ("acme", None):
            await policies.policies(name)
        await policies.unset("acme", "task")
        await policies.set("acme", "task", DomainPolicy("server_wins"))
        conflicts = PostgresConflicts(database, Sealing())
        for name in ("acme", None):
            await conflicts.list_open(name)
            await conflicts.list_settled(name, 10)
        await conflicts.find("c1", "acme")
        quarantine = PostgresQuarantine(database, Sealing())
        await quarantine.items("acme")
        case = await quarantine.find("q1", "acme")
        await quarantine.behind(case.row)
        await quarantine.record(case.row)
        error = ItemError("invalid_item", "")
        await quarantine.note_retry(QuarantineRef(OWN, "q1"), error, corrected=False)
        await quarantine.drop(await quarantine.find("q2", "acme"))
        await tenants.add("gone")
        await tenants.remove("gone", erase=True)
        usage = PostgresUsage(database)
        await usage.usage("acme")
        await usage.totals()
        export = PostgresExport(database, settings_with().domains, Sealing())
        for domain in ("task", "voice"):
            async for _ in export.pages("acme", domain, None, None, print):
                pass

    async def _verified(self) -> None:
        """Verify before and after a value is damaged: the last that is done, for the value stays so."""
        for page_rows in (200, 1):
            await PostgresVerify(self.database, sealing_of(), page_rows).verify(OWN, lambda _: None)
            damaged = _upload(metadata=f"{TEXT_MARK}damaged")
            await self.uploads.create([NewUpload(damaged, Quota(1 << 30, 100, 100, 1000))], 60)
