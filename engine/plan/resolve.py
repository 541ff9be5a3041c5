"""A person settles a conflict: the decision becomes a new version that counts as no device's own."""

from __future__ import annotations

import msgspec

from engine.model.audit import AuditRow
from engine.model.merge import Fields, decode_fields, encode_fields
from engine.model.rows import Conflict, ConflictRef, Record, RecordKey
from engine.plan.context import PlanContext
from engine.plan.held_changes import applied, changes_of
from engine.plan.unit_of_work import Reads, UnitOfWork
from engine.plan.versions import last_data, next_versions
from engine.plan.work import Outcome, Resolution, ResolveAnswer
from engine.wire.errors import SyncError


def resolution_reads(work: Resolution, _: PlanContext, reads: Reads) -> None:
    """Add the rows that a resolution reads: the conflict and its record."""
    reads.conflicts[ConflictRef(work.tenant_id, work.conflict_id)] = None
    reads.records[RecordKey(work.tenant_id, work.domain, work.record_id)] = None


def resolve(work: Resolution, unit: UnitOfWork, context: PlanContext) -> Outcome:
    """Write the chosen side as a new version and close the conflict.

    Returns:
        A ResolveAnswer, also for the same decision again. Otherwise a SyncError: ``not_found``,
        ``conflict_closed``, ``conflict_stale``, ``invalid_message`` or ``too_large``.
    """
    conflict = unit.conflicts.get(ConflictRef(work.tenant_id, work.conflict_id))
    if conflict is None or not (work.supervisor or conflict.device_id == work.device_id):
        return SyncError("not_found", "there is no such conflict")
    if conflict.outcome != "open":
        return _settled_before(work, conflict)
    policy = context.policies(work.tenant_id).get(conflict.domain)
    if policy is None:
        return SyncError(
            "invalid_message",
            f"domain {conflict.domain} is configured no longer; configure it again to settle this conflict",
        )
    key = RecordKey(work.tenant_id, conflict.domain, conflict.record_id)
    row = unit.records[key]
    if row.version != work.version:
        return _stale(f"the record is at version {row.version} now, not {work.version}", row, conflict)
    if work.changes is not None and work.changes != conflict.client_count:
        made = conflict.client_count
        return _stale(f"the device has made {made} changes, not {work.changes}", row, conflict)
    server = None if row.data is None else decode_fields(row.data)
    outcome = _chosen(work, conflict, row, server)
    data = None if outcome is None else encode_fields(outcome)
    if outcome is not None and data is not None and work.choice != "server":
        fault = context.violation(conflict.domain, outcome, server, data)
        if fault is not None:
            code, sentence = fault
            return SyncError("too_large" if code == "too_large" else "invalid_message", sentence)
    version = row.version + 1
    seq = unit.next_seq(work.tenant_id)
    record = Record(
        work.tenant_id,
        conflict.domain,
        conflict.record_id,
        version,
        seq,
        work.now_us,
        work.device_id,
        version + 1,
        data,
        next_versions(policy, row, server, outcome, work.now_us),
        row.attachments,
        last_data=last_data(context, row, data),
    )
    unit.put(key, record, "")
    unit.log_conflict(
        msgspec.structs.replace(
            conflict,
            outcome=work.choice,
            settled_by=work.device_id,
            settled_at_us=work.now_us,
            settled_sha256=work.request_sha256,
            settled_version=version,
            settled_seq=seq,
        )
    )
    details = {
        "domain": conflict.domain,
        "record_id": conflict.record_id,
        "choice": work.choice,
        "version": version,
    }
    unit.audit.append(
        AuditRow(
            "conflict_resolved",
            work.actor,
            conflict.conflict_id,
            tenant_number=work.tenant_id,
            details=details,
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


def _settled_before(work: Resolution, conflict: Conflict) -> Outcome:
    if conflict.held_in is not None:
        return SyncError("conflict_closed", f"this change is part of the conflict {conflict.held_in}")
    same = conflict.settled_sha256 == work.request_sha256
    if same and conflict.settled_version is not None and conflict.settled_seq is not None:
        return ResolveAnswer(conflict.conflict_id, conflict.settled_version, conflict.settled_seq)
    return SyncError("conflict_closed", "this conflict is settled already")


def _chosen(work: Resolution, conflict: Conflict, row: Record, server: Fields | None) -> Fields | None:
    if work.choice == "server":
        return server
    if work.choice == "merged":
        return work.fields
    return applied(changes_of(conflict), row.patch_base)
