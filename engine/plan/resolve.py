"""A person settles a conflict: the decision becomes a new version that is nobody's."""

from __future__ import annotations

import msgspec

from engine.model.merge import Fields, decode_fields, encode_fields
from engine.model.rows import Conflict, ConflictRef, Record, RecordKey
from engine.plan.context import PlanContext
from engine.plan.held_changes import applied, changes_of
from engine.plan.unit_of_work import UnitOfWork
from engine.plan.versions import last_data, next_versions
from engine.plan.work import Outcome, Resolution, ResolveAnswer
from engine.wire.errors import SyncError


def resolve(job: Resolution, working: UnitOfWork, rules: PlanContext) -> Outcome:
    """Write the chosen side, or say why the decision does not hold."""
    conflict = working.conflicts.get(ConflictRef(job.tenant_id, job.conflict_id))
    if conflict is None or not (job.supervisor or conflict.device_id == job.device_id):
        return SyncError("not_found", "there is no such conflict")
    if conflict.outcome != "open":
        return _settled_before(job, conflict)
    policy = rules.policies(job.tenant_id).get(conflict.domain)
    if policy is None:
        return SyncError(
            "invalid_message",
            f"domain {conflict.domain} is configured no longer; configure it again to settle this conflict",
        )
    key = RecordKey(job.tenant_id, conflict.domain, conflict.record_id)
    row = working.records[key]
    if row.version != job.version:
        return _stale(f"the record is at version {row.version} now, not {job.version}", row, conflict)
    if job.changes is not None and job.changes != conflict.client_count:
        made = conflict.client_count
        return _stale(f"the device has made {made} changes, not {job.changes}", row, conflict)
    server = None if row.data is None else decode_fields(row.data)
    outcome = _chosen(job, conflict, row, server)
    data = None if outcome is None else encode_fields(outcome)
    if outcome is not None and data is not None and job.choice != "server":
        fault = rules.fault(conflict.domain, outcome, server, data)
        if fault is not None:
            code, sentence = fault
            return SyncError("too_large" if code == "too_large" else "invalid_message", sentence)
    version = row.version + 1
    seq = working.next_seq(job.tenant_id)
    record = Record(
        job.tenant_id,
        conflict.domain,
        conflict.record_id,
        version,
        seq,
        job.now_us,
        job.device_id,
        version + 1,
        data,
        next_versions(policy, row, server, outcome, job.now_us),
        row.attachments,
        last_data=last_data(rules, row, data),
    )
    working.put(key, record, "")
    working.log(
        msgspec.structs.replace(
            conflict,
            outcome=job.choice,
            settled_by=job.device_id,
            settled_at_us=job.now_us,
            settled_sha256=job.request_sha256,
            settled_version=version,
            settled_seq=seq,
        )
    )
    return ResolveAnswer(conflict.conflict_id, version, seq)


def _stale(sentence: str, row: Record, conflict: Conflict) -> SyncError:
    return SyncError(
        "conflict_stale",
        sentence,
        version=row.version,
        changes=conflict.client_count,
        data=None if row.data is None else msgspec.Raw(row.data),
    )


def _settled_before(job: Resolution, conflict: Conflict) -> Outcome:
    if conflict.held_in is not None:
        return SyncError("conflict_closed", f"this change is part of the conflict {conflict.held_in}")
    same = conflict.settled_sha256 == job.request_sha256
    if same and conflict.settled_version is not None and conflict.settled_seq is not None:
        return ResolveAnswer(conflict.conflict_id, conflict.settled_version, conflict.settled_seq)
    return SyncError("conflict_closed", "this conflict is settled already")


def _chosen(job: Resolution, conflict: Conflict, row: Record, server: Fields | None) -> Fields | None:
    if job.choice == "server":
        return server
    if job.choice == "merged":
        return job.fields
    return applied(changes_of(conflict), row.patch_base)
