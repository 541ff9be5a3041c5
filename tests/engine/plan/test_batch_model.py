"""``engine.plan.batch.plan`` against the model of the contract, in worlds that Hypothesis draws."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.commit.validation import MessageValidator, Session
from engine.model.commit_counts import OTHER_DOMAIN
from engine.model.domains import DomainPolicy
from engine.model.rows import Conflict, ConflictRef, EventKey, OpenConflictRef, Record, RecordKey, TenantUsage
from engine.model.tenants import Tenant
from engine.model.uploads import UploadRef
from engine.plan.batch import Plan, plan, read_set
from engine.plan.context import PlanContext
from engine.plan.held_changes import applied, changes_of
from engine.plan.work import Attach, AttachAnswer, Outcome, Push, PushAnswer, Resolution, ResolveAnswer, Work
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from engine.wire.messages import Attachment, Resolve, Sync
from engine.wire.timestamps import EARLIEST_US, to_text, to_us
from tests.harness.contract_model import File, Logged, Policy, World, canonical, chain_applied, own_sent_us
from tests.harness.memory_store import Memory
from tests.harness.strategies import (
    ENGINE_DOMAINS,
    MODEL_DOMAINS,
    RECORD_BYTES,
    AttachSketch,
    Batch,
    Command,
    ItemSketch,
    Repeat,
    RepeatResolve,
    ResolveSketch,
    SyncSketch,
    worlds,
)

Json = dict[str, Any]

START_US = 1_767_323_045_000_000
_SECOND_US = 1_000_000
#: So little that some data are left out.
KEPT_DATA_BYTES = 60

#: ``HYPOTHESIS_PROFILE=deep`` hunts for minutes.
MAX_EXAMPLES = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 400


@dataclass(frozen=True)
class Sent:
    """A message on its way to the engine, beside what the model answered."""

    work: Work
    expected: Any


@dataclass(frozen=True)
class SentSync:
    """A sync as it was sent, so that it can be sent again."""

    tenant: int
    device: str
    key: str
    atomic: bool
    clock_offset_us: int
    items: list[Any]


@dataclass(frozen=True)
class SentResolve:
    """A resolve as it was sent, so that it can be sent again."""

    tenant: int
    device: str
    supervisor: bool
    serial: int
    choice: str
    version: int
    data: Json | None
    changes: int | None


class Duel:
    """The engine and the model, fed with the same messages and compared after every batch."""

    def __init__(self, opening: dict[int, dict[str, Policy]], record_fields: int) -> None:
        ids = itertools.count(1)
        self.policies = {tenant: dict(by_domain) for tenant, by_domain in opening.items()}
        self.world = World(MODEL_DOMAINS, RECORD_BYTES, KEPT_DATA_BYTES, record_fields)
        self.memory = Memory()
        self.validator = MessageValidator(ENGINE_DOMAINS, 500, record_fields)
        self.context = PlanContext(
            ENGINE_DOMAINS,
            self._policies,
            lambda: f"id-{next(ids)}",
            RECORD_BYTES,
            1_048_576,
            kept_data_bytes=KEPT_DATA_BYTES,
            record_fields=record_fields,
        )
        self.now_us = START_US
        self.fresh_keys = itertools.count(1)
        self.syncs: list[SentSync] = []
        self.resolves: list[SentResolve] = []
        self.conflict_ids: dict[int, str] = {}
        self.told = Told()
        self.uploads: dict[tuple[int, int], tuple[str, str]] = {}

    def _policies(self, tenant: int) -> dict[str, DomainPolicy]:
        return {
            domain: msgspec.convert({"policy": one.policy, "fallback": one.fallback}, DomainPolicy)
            for domain, one in self.policies[tenant].items()
        }

    def batch(self, batch: Batch) -> None:
        """Run one batch through both and compare all that they answer and hold."""
        if batch.switch is not None:
            tenant, domain, policy = batch.switch
            self.policies[tenant][domain] = policy
        if batch.empties:
            self.world.empty()
            for key, row in self.memory.records.items():
                self.memory.usage[key.tenant_id].record_bytes -= len(row.last_data or b"")
                self.memory.records[key] = msgspec.structs.replace(row, last_data=None)
        sent: list[Sent] = []
        for step_s, command in batch.commands:
            self.now_us += step_s * _SECOND_US
            one = self._send(command)
            if one is not None:
                sent.append(one)
        works = [one.work for one in sent]
        planned = self._planned(works)
        assert len(planned.outcomes) == len(works)
        self._feed(planned)
        before = dict(self.memory.conflicts)
        self.memory.apply(planned.writes, {work.tenant_id for work in works})
        self._compare_counts(works, planned, before)
        for one, outcome in zip(sent, planned.outcomes, strict=True):
            self._compare_answer(one.expected, outcome)
            self.told.take(one.work, outcome)
        self._compare_state()
        self._compare_chains()
        self._compare_usage()
        self._nothing_is_lost()

    def _compare_counts(self, works: list[Work], planned: Plan, before: dict[ConflictRef, Conflict]) -> None:
        """See that what is counted is what was answered and logged."""
        items, syncs, sent_bytes = Counter[tuple[int, str, str]](), Counter[int](), Counter[int]()
        for work, outcome in zip(works, planned.outcomes, strict=True):
            if isinstance(work, Push) and isinstance(outcome, PushAnswer) and not outcome.replayed:
                syncs[work.tenant_id] += 1
                sent_bytes[work.tenant_id] += len(work.raw_items)
                for item in json.loads(outcome.results):
                    known = item["domain"] if item["domain"] in MODEL_DOMAINS else OTHER_DOMAIN
                    items[work.tenant_id, known, item["status"]] += 1
        counted = planned.writes.counts
        assert {tenant: counts.syncs for tenant, counts in counted.items()} == syncs
        assert {tenant: counts.sent_bytes for tenant, counts in counted.items()} == sent_bytes
        assert items == {
            (tenant, domain, status): count
            for tenant, counts in counted.items()
            for domain, by_status in counts.by_domain().items()
            for status, count in by_status.items()
            if count
        }
        answers = [one for one in planned.outcomes if isinstance(one, PushAnswer) and not one.replayed]
        statuses = Counter(item["status"] for one in answers for item in json.loads(one.results))
        assert Counter(planned.statuses) == statuses
        rows = self.memory.conflicts.items()
        assert planned.conflicts == Counter(
            (row.policy, row.outcome if row.settled_by is None else "open")
            for ref, row in rows
            if ref not in before
        )
        assert planned.settled == Counter(
            row.outcome
            for ref, row in rows
            if row.settled_by is not None and (ref not in before or before[ref].settled_by is None)
        )

    def _planned(self, batch: list[Work]) -> Plan:
        """Plan a batch, again as long as it needs open conflicts that it has not read."""
        extra_conflicts: set[OpenConflictRef] = set()
        while True:
            state = self.memory.snapshot(read_set(batch, self.context, extra_conflicts))
            planned = plan(batch, state, self.context, extra_conflicts)
            if not planned.unread_conflicts:
                return planned
            assert not extra_conflicts & set(planned.unread_conflicts)
            extra_conflicts.update(planned.unread_conflicts)

    # -- sending ------------------------------------------------------------------------------

    def _send(self, command: Command) -> Sent | None:
        match command:
            case SyncSketch():
                return self._sync(self._sketched(command))
            case Repeat() if self.syncs:
                again = self.syncs[-1 - command.which % len(self.syncs)]
                if command.spoiled:
                    again = _spoiled(again)
                return self._sync(again)
            case ResolveSketch():
                sketched = self._sketched_resolve(command)
                return None if sketched is None else self._resolve(sketched)
            case RepeatResolve() if self.resolves:
                again_resolve = self.resolves[-1 - command.which % len(self.resolves)]
                if command.device is not None:
                    again_resolve = replace(again_resolve, device=command.device)
                return self._resolve(again_resolve)
            case AttachSketch():
                return self._attach(command)
        return None

    def _sketched(self, sketch: SyncSketch) -> SentSync:
        key = f"few-{sketch.key}" if sketch.key is not None else f"key-{next(self.fresh_keys)}"
        offset_us = sketch.clock_offset_s * _SECOND_US
        items = [self._item(sketch.tenant, item, offset_us) for item in sketch.items]
        return SentSync(sketch.tenant, sketch.device, key, sketch.atomic, offset_us, items)

    def _item(self, tenant: int, sketch: ItemSketch, offset_us: int) -> Json:
        history = self.world.tenant(tenant).records.get((sketch.domain, sketch.id), ())
        item: Json = {"domain": sketch.domain, "id": sketch.id, "op": sketch.op}
        if sketch.base is not None and len(history) + sketch.base >= 1:
            item["base"] = len(history) + sketch.base
        if sketch.at is not None:
            anchor, offset_s = sketch.at
            start_us = history[-1].at_us if anchor == "stored" and history else self.now_us
            if anchor == "start":
                start_us = START_US
            if anchor == "sent" and history and history[-1].sent_us is not None:
                start_us = history[-1].sent_us + offset_us
            item["at"] = to_text(start_us + offset_s * _SECOND_US - offset_us)
        if sketch.data is not None:
            item["data"] = sketch.data
        if sketch.changed is not None:
            item["changed"] = sketch.changed
        return item | (sketch.spoil or {})

    def _sync(self, sent: SentSync) -> Sent | None:
        self.syncs.append(sent)
        frame = {
            "type": "sync",
            "id": "1",
            "key": sent.key,
            "atomic": sent.atomic,
            "items": sent.items,
        }
        request = JSON.decode(json.dumps(frame).encode())
        assert isinstance(request, Sync)
        session = self._session(sent.tenant, sent.device, clock_offset_us=sent.clock_offset_us)
        work = self.validator.push(request, session, self.now_us)
        assert isinstance(work, Push)
        expected = self.world.sync(
            sent.tenant,
            sent.device,
            sent.key,
            sent.atomic,
            sent.items,
            self.now_us,
            sent.clock_offset_us,
            self.policies[sent.tenant],
        )
        return Sent(work, expected)

    def _sketched_resolve(self, sketch: ResolveSketch) -> SentResolve | None:
        """Pick a conflict that the device has been told of, if there is any; open ones first."""
        known = [
            (tenant_id, serial, conflict)
            for tenant_id, tenant in self.world.tenants.items()
            for serial, conflict in tenant.conflicts.items()
            if serial in self.conflict_ids
        ]
        if not known:
            return None
        known.sort(key=lambda one: (one[2].outcome != "open", -one[1]))
        tenant, serial, conflict = known[sketch.which % len(known)]
        history = self.world.tenant(tenant).records[conflict.domain, conflict.record_id]
        return SentResolve(
            tenant if sketch.tenant is None else sketch.tenant,
            conflict.device if sketch.device is None else sketch.device,
            sketch.supervisor,
            serial,
            sketch.choice,
            max(1, len(history) - sketch.behind),
            sketch.data if sketch.choice == "merged" else None,
            None if sketch.more is None else max(1, conflict.count + sketch.more),
        )

    def _resolve(self, sent: SentResolve) -> Sent | None:
        self.resolves.append(sent)
        ref = ConflictRef(sent.tenant, self.conflict_ids[sent.serial])
        expected = self.world.resolve(
            sent.tenant,
            sent.device,
            sent.supervisor,
            sent.serial,
            sent.choice,
            sent.version,
            sent.data,
            sent.changes,
            self.now_us,
            self.policies[sent.tenant],
        )
        row = self.memory.conflicts.get(ref)
        if row is None:
            assert expected == "not_found"
            return None
        frame = {
            "type": "resolve",
            "id": "1",
            "conflict_id": row.conflict_id,
            "choice": sent.choice,
            "version": sent.version,
            "data": sent.data,
            "changes": sent.changes,
        }
        request = JSON.decode(json.dumps(frame).encode())
        assert isinstance(request, Resolve)
        session = self._session(sent.tenant, sent.device, supervisor=sent.supervisor)
        work = self.validator.resolution(request, session, row, self.now_us)
        assert isinstance(work, Resolution)
        return Sent(work, expected)

    def _attach(self, sketch: AttachSketch) -> Sent:
        """A file is of one record for ever; of six two are sent again, some share a name or content."""
        number = sketch.number
        tenant = self.world.tenant(sketch.tenant)
        record = self.uploads.setdefault((sketch.tenant, number % 4), (sketch.domain, sketch.id))
        file = File(f"{number:032x}", f"name-{number % 2}", f"{number % 4 // 2:064x}")
        if number < 6 and file.upload not in tenant.uploads:
            tenant.uploads[file.upload] = "stored"
            tenant.sent[file.upload] = (record, file.name, file.content)
            ref = UploadRef(sketch.tenant, file.upload)
            self.memory.uploads[ref] = "stored"
            self.memory.contents[ref] = (*record, file.name, file.content)
        shown = Attachment(file.upload, file.name, "image/png", number, file.content, "phone", "")
        work = Attach(
            sketch.tenant,
            "phone",
            *record,
            file.upload,
            None if sketch.out else msgspec.json.encode(shown),
            self.now_us,
        )
        if sketch.out:
            return Sent(work, self.world.free(sketch.tenant, record, file.upload))
        return Sent(work, self.world.attach(sketch.tenant, record, file))

    def _session(
        self, tenant: int, device: str, *, supervisor: bool = False, clock_offset_us: int = 0
    ) -> Session:
        return Session(
            tenant=Tenant(tenant, f"tenant-{tenant}"),
            device_id=device,
            session_id=_session_of(device),
            supervisor=supervisor,
            clock_offset_us=clock_offset_us,
        )

    # -- comparing ----------------------------------------------------------------------------

    def _compare_answer(self, expected: Any, outcome: Outcome) -> None:
        if isinstance(outcome, AttachAnswer):
            assert outcome.state == expected
        elif isinstance(expected, str):
            assert isinstance(outcome, SyncError), (expected, outcome)
            assert outcome.code == expected, outcome.message
        elif isinstance(outcome, SyncError):
            data: Any = outcome.details["data"]
            standing = {
                "stale_version": outcome.details["version"],
                "data": None if data is None else json.loads(bytes(data)),
                "changes": outcome.details["changes"],
            }
            assert outcome.code == "conflict_stale", (expected, outcome.message)
            assert canonical(standing) == canonical(expected)
        elif isinstance(outcome, ResolveAnswer):
            assert {"version": outcome.version, "seq": outcome.seq} == expected
        else:
            results, replayed = expected
            assert outcome.replayed is replayed
            answered = json.loads(outcome.results)
            assert len(answered) == len(results)
            for want, got in zip(results, answered, strict=True):
                self._compare_result(want, got)

    def _compare_result(self, want: Json, got: Json) -> None:
        want, got = dict(want), dict(got)
        assert ("conflict_id" in want) is ("conflict_id" in got), (want, got)
        if "conflict_id" in want:
            self._same_conflict(want.pop("conflict_id"), got.pop("conflict_id"))
        if got["status"] == "conflict":
            got.pop("policy", None)
        if "error" in got:
            assert got["error"].pop("message")
        assert canonical(got) == canonical(want), (want, got)

    def _same_conflict(self, serial: int, conflict_id: str) -> None:
        assert self.conflict_ids.setdefault(serial, conflict_id) == conflict_id
        assert list(self.conflict_ids.values()).count(conflict_id) == 1

    def _feed(self, planned: Plan) -> None:
        """Every new version is announced once, in the order of its tenant's seqs, without gaps."""
        announced: dict[int, list[int]] = {}
        versions = {key: record.version for key, record in self.memory.records.items()}
        for record, session_id in planned.changes:
            key = RecordKey(record.tenant_id, record.domain, record.id)
            writer = _writer(record)
            of_files = versions.get(key) == record.version
            assert session_id == ("" if writer is None or of_files else _session_of(writer))
            announced.setdefault(record.tenant_id, []).append(record.seq)
            versions[key] = record.version
        for tenant, seq in planned.writes.seqs.items():
            before = self.memory.seqs.get(tenant, 0)
            assert announced.pop(tenant, []) == list(range(before + 1, seq + 1))
        assert not announced
        latest = {
            RecordKey(record.tenant_id, record.domain, record.id): record
            for record, _session_id in planned.changes
        }
        written = {RecordKey(row.tenant_id, row.domain, row.id): row for row in planned.writes.records}
        assert latest.keys() <= written.keys()
        for key, row in written.items():
            told = latest[key] if key in latest else self.memory.records[key]
            if row.data is None:  # of its files nobody need have been told
                told = msgspec.structs.replace(told, attachments=row.attachments)
            assert row == told

    def _compare_state(self) -> None:
        expected_records: dict[RecordKey, Any] = {}
        expected_events: dict[EventKey, Any] = {}
        uploads: dict[UploadRef, str] = {}
        keys = 0
        conflicts: list[Any] = []
        quarantine: list[Any] = []
        for tenant_id, tenant in self.world.tenants.items():
            assert self.memory.seqs.get(tenant_id, 0) == tenant.seq
            uploads |= {UploadRef(tenant_id, name): state for name, state in tenant.uploads.items()}
            keys += len(tenant.keys)
            for (domain, record_id), history in tenant.records.items():
                top = history[-1]
                expected_records[RecordKey(tenant_id, domain, record_id)] = (
                    len(history),
                    top.seq,
                    top.at_us,
                    top.device,
                    canonical(top.data),
                    None if top.device is None else own_sent_us(history),
                    [file.upload for file in tenant.files.get((domain, record_id), ())],
                    canonical(
                        self.world.last_data(tenant, (domain, record_id)) if top.data is None else None
                    ),
                )
            for (domain, event_id, sent_us), event in tenant.events.items():
                expected_events[EventKey(tenant_id, domain, event_id, sent_us)] = (
                    event.at_us,
                    event.device,
                    canonical(event.data),
                )
            conflicts += [
                [*_logged(tenant_id, logged), logged.joined and self.conflict_ids[logged.joined]]
                for logged in tenant.conflicts.values()
            ]
            quarantine += [
                [tenant_id, one.device, one.code, canonical(one.item)] for one in tenant.quarantine
            ]
        memory = self.memory
        assert {
            key: (
                row.version,
                row.seq,
                row.at_us,
                _writer(row),
                _canonical_bytes(row.data),
                None if row.sent_at_us == EARLIEST_US else row.sent_at_us,
                _files(row),
                _canonical_bytes(row.last_data),
            )
            for key, row in memory.records.items()
        } == expected_records
        assert memory.uploads == uploads
        assert {
            key: (row.at_us, row.device_id, _canonical_bytes(row.data)) for key, row in memory.events.items()
        } == expected_events
        assert len(memory.keys) == keys
        assert sorted(map(str, map(_stored_conflict, memory.conflicts.values()))) == sorted(
            map(str, conflicts)
        )
        assert sorted(
            [row.tenant_id, row.device_id, row.code, _canonical_bytes(row.item)] for row in memory.quarantine
        ) == sorted(quarantine)

    def _compare_chains(self) -> None:
        """What would stand if the device's side won is all that it changed, one after the other."""
        for tenant_id, tenant in self.world.tenants.items():
            for serial, logged in tenant.conflicts.items():
                if logged.outcome != "open":
                    continue
                row = self.memory.conflicts[ConflictRef(tenant_id, self.conflict_ids[serial])]
                record = self.memory.records[RecordKey(tenant_id, row.domain, row.record_id)]
                standing = tenant.records[logged.domain, logged.record_id][-1].data
                wanted = applied(changes_of(row), record.data)
                assert canonical(wanted) == canonical(chain_applied(logged.chain, standing))

    def _compare_usage(self) -> None:
        """What each tenant is said to hold is what is stored of it."""
        stored: defaultdict[int, TenantUsage] = defaultdict(TenantUsage)
        for key, row in self.memory.records.items():
            stored[key.tenant_id].record_rows += 1
            texts = (row.data, row.fields, row.last_data)
            stored[key.tenant_id].record_bytes += sum(len(text) for text in texts if text is not None)
        for event in self.memory.events.values():
            stored[event.tenant_id].event_rows += 1
            stored[event.tenant_id].event_bytes += len(event.data)
        for ref, kept in self.memory.keys.items():
            stored[ref.tenant_id].answer_rows += 1
            stored[ref.tenant_id].answer_bytes += len(kept.results)
        for conflict in self.memory.conflicts.values():
            stored[conflict.tenant_id].conflict_rows += 1
            changes = [change.data for change in conflict.client_changes or ()]
            sizes = [len(data) for data in (conflict.server_data, conflict.client_data, *changes) if data]
            stored[conflict.tenant_id].conflict_bytes += sum(sizes)
        for item in self.memory.quarantine:
            stored[item.tenant_id].quarantine_rows += 1
            stored[item.tenant_id].quarantine_bytes += len(item.item)
        for tenant, usage in self.memory.usage.items():
            assert usage == stored[tenant]
        assert stored.keys() <= self.memory.usage.keys()

    def _nothing_is_lost(self) -> None:
        """What stands as attached, or as a duplicate, is in its record's entry, and its bytes are there."""
        for ref, state in self.memory.uploads.items():
            if state not in {"attached", "duplicate", "retained"}:
                continue
            *record, name, content = self.memory.contents[ref]
            row = self.memory.records[RecordKey(ref.tenant_id, *record)]
            shown = [
                one["file_id"]
                for one in json.loads(row.attachments or b"[]")
                if (one["filename"], one["sha256"]) == (name, content)
            ]
            assert len(shown) == 1, (ref, state)
            holder = self.memory.uploads[UploadRef(ref.tenant_id, shown[0])]
            assert holder in {"attached", "retained"}, (ref, state, holder)
            assert state == "duplicate" or shown == [ref.upload_id]


class Told:
    """What devices were told of their changes, to be found again in the tables, once."""

    def __init__(self) -> None:
        self.versions: defaultdict[RecordKey, list[int]] = defaultdict(list)
        self.events: Counter[EventKey] = Counter()
        self.rejected: Counter[Any] = Counter()
        self.held: Counter[Any] = Counter()
        self.settled: Counter[Any] = Counter()
        self.by_person: dict[ConflictRef, int] = {}

    def take(self, work: Work, outcome: Outcome) -> None:
        """Take in the answer to one message; one that is told again tells nothing new."""
        if isinstance(outcome, ResolveAnswer):
            assert isinstance(work, Resolution)
            ref = ConflictRef(work.tenant_id, work.conflict_id)
            assert self.by_person.setdefault(ref, outcome.version) == outcome.version
        elif isinstance(outcome, PushAnswer) and not outcome.replayed:
            assert isinstance(work, Push)
            sent = json.loads(work.raw_items)
            for item, result in zip(sent, json.loads(outcome.results), strict=True):
                self._take(work, item, result)

    def _take(self, push: Push, item: Json, result: Json) -> None:
        status = result["status"]
        change = _change_of(push.tenant_id, push.device_id, item) if result["domain"] else ()
        if status == "rejected":
            if not push.atomic:
                self.rejected[push.tenant_id, push.device_id, result["error"]["code"], canonical(item)] += 1
        elif item["op"] == "append":
            assert status in {"applied", "unchanged"}
            if status == "applied":
                at_us = to_us(datetime.fromisoformat(item["at"]))
                self.events[EventKey(push.tenant_id, item["domain"], item["id"], at_us)] += 1
        elif status == "conflict":
            self.held[change] += not push.atomic
        else:
            if status == "resolved":
                self.settled[*change, result["winner"]] += 1
            if status == "applied" or result.get("winner") in {"client", "merged"}:
                key = RecordKey(push.tenant_id, item["domain"], item["id"])
                self.versions[key].append(result["version"])

    def audit(self, memory: Memory) -> None:
        """Find every change that was acknowledged: applied, settled with a row, held, or in quarantine."""
        for ref, version in self.by_person.items():
            row = memory.conflicts[ref]
            self.versions[RecordKey(row.tenant_id, row.domain, row.record_id)].append(version)
        assert {key: sorted(told) for key, told in self.versions.items()} == {
            key: list(range(1, record.version + 1)) for key, record in memory.records.items()
        }
        assert self.events == Counter(memory.events.keys())
        assert self.rejected == Counter(
            (row.tenant_id, row.device_id, row.code, _canonical_bytes(row.item)) for row in memory.quarantine
        )
        held: Counter[Any] = Counter()
        settled: Counter[Any] = Counter()
        for row in memory.conflicts.values():
            data = _canonical_bytes(row.client_data)
            change = (row.tenant_id, row.device_id, row.domain, row.record_id, row.client_op, data)
            if row.outcome == "held":
                assert row.held_in is not None
                conflict = memory.conflicts[ConflictRef(row.tenant_id, row.held_in)]
                assert conflict.outcome == "open" or conflict.settled_by is not None
            if row.outcome in {"open", "held"} or row.settled_by is not None:
                held[change] += 1
            else:
                settled[*change, row.outcome] += 1
        assert +self.held == held
        assert self.settled == settled


def _change_of(tenant: int, device: str, item: Json) -> tuple[Any, ...]:
    data = None if item["op"] == "delete" else item.get("data")
    return tenant, device, item["domain"], item["id"], item["op"], canonical(data)


def _session_of(device: str) -> str:
    return f"session-of-{device}"


def _files(row: Record) -> list[str]:
    return [one["file_id"] for one in json.loads(row.attachments or b"[]")]


def _writer(row: Record) -> str | None:
    """Whose the latest version is: a settled conflict's is nobody's."""
    return None if row.chain_from > row.version else row.device_id


def _spoiled(sent: SentSync) -> SentSync:
    """Use the same key for other bytes: another flag, or an item less."""
    if len(sent.items) == 1:
        return SentSync(sent.tenant, sent.device, sent.key, not sent.atomic, sent.clock_offset_us, sent.items)
    return SentSync(sent.tenant, sent.device, sent.key, sent.atomic, sent.clock_offset_us, sent.items[:-1])


def _logged(tenant_id: int, logged: Logged) -> list[Any]:
    settled = logged.settled
    return [
        tenant_id,
        logged.domain,
        logged.record_id,
        logged.device,
        logged.policy,
        logged.outcome,
        logged.server_version,
        canonical(logged.server_data),
        logged.base,
        logged.op,
        logged.at_us,
        canonical(logged.data),
        logged.sent_us,
        logged.count,
        [[one.op, one.base, one.at_us, one.sent_us, canonical(one.data)] for one in logged.chain],
        settled and [settled.version, settled.seq, settled.by],
    ]


def _stored_conflict(row: Conflict) -> list[Any]:
    return [
        row.tenant_id,
        row.domain,
        row.record_id,
        row.device_id,
        row.policy,
        row.outcome,
        row.server_version,
        _canonical_bytes(row.server_data),
        row.client_base,
        row.client_op,
        row.client_at_us,
        _canonical_bytes(row.client_data),
        row.client_sent_at_us,
        row.client_count,
        [
            [one.op, one.base, one.at_us, one.sent_at_us, _canonical_bytes(one.data)]
            for one in (changes_of(row) if row.outcome == "open" or row.settled_by else ())
        ],
        row.settled_by and [row.settled_version, row.settled_seq, row.settled_by],
        row.held_in,
    ]


def _canonical_bytes(data: bytes | None) -> str:
    return canonical(None if data is None else json.loads(data))


@settings(
    max_examples=MAX_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(world=worlds(), record_fields=st.sampled_from([1000, 1000, 1000, 3]))
def test_plan_engine_and_model_agree(
    world: tuple[dict[int, dict[str, Policy]], list[Batch]], record_fields: int
) -> None:
    opening, run = world
    duel = Duel(opening, record_fields)
    for batch in run:
        duel.batch(batch)
    duel.told.audit(duel.memory)
