"""One push against the rows of its batch: its answer, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, NamedTuple

import msgspec

from engine.model.rows import (
    DeviceRecordKey,
    EventKey,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    RecordKey,
    TenantUsage,
)
from engine.plan.answers import limit_kept_data, limit_sent_data, restore_data
from engine.plan.apply import apply_item
from engine.plan.bounds.capacity import Capacity
from engine.plan.bounds.costs import push_touched_bytes
from engine.plan.bounds.tenant_usage import sentence
from engine.plan.conflict import may_hold
from engine.plan.context import PlanContext
from engine.plan.quarantine import quarantined
from engine.plan.unit_of_work import Checkpoint, Reads, Savepoint, UnitOfWork
from engine.plan.work import Change, Push, PushAnswer, RejectedItem
from engine.wire.errors import SyncError
from engine.wire.messages import ItemError, Result

_encode = msgspec.json.encode
#: Makes a named tuple in half the time that its class takes.
_new = tuple.__new__

#: Bytes of records that one message may touch; a record counts once for each item on it. A change of sixty
#: bytes may read, log and write a whole record, on the event loop and under its tenant's lock.
MESSAGE_TOUCHES_BYTES: Final = 8 << 20
#: Statuses of items that have no ``data`` in the answer, and nothing in the quarantine.
_PLAIN: Final = ("applied", "unchanged")


def push_reads(push: Push, context: PlanContext, reads: Reads) -> None:
    """Add the rows that a push reads: its key, its records and events, and open conflicts of its device."""
    tenant_id, device_id = push.tenant_id, push.device_id
    reads.keys[key := _new(IdempotencyKey, (tenant_id, push.key_hash))] = None
    if push.may_be_old:
        reads.old_keys.append(key)
    policies = context.policies(tenant_id)
    for item in push.items:
        if type(item) is not Change:
            continue
        if item.op == "append":
            reads.events[EventKey(tenant_id, item.domain, item.id, item.sent_at_us)] = None
            continue
        reads.records[_new(RecordKey, (tenant_id, item.domain, item.id))] = None
        if item.op == "patch" and not item.base:
            reads.rejected_before[DeviceRecordKey(tenant_id, device_id, item.domain, item.id)] = None
        if may_hold(policies[item.domain]):
            reads.open_conflicts[OpenConflictRef(tenant_id, device_id, item.domain, item.id)] = None


def with_items_rejected(push: Push, reason: str) -> Push | None:
    """Return a push with every item rejected as ``invalid_item``, None if all are rejected already."""
    if all(type(item) is RejectedItem for item in push.items):
        return None
    items = [
        item if type(item) is RejectedItem else RejectedItem(item.domain, item.id, "invalid_item", reason)
        for item in push.items
    ]
    return msgspec.structs.replace(push, items=items)


class _Undo(NamedTuple):
    """The rows before a message that may have to be undone: it is atomic, or its tenant is near a limit."""

    savepoint: Savepoint | None
    usage: TenantUsage | None
    checkpoint: Checkpoint | None


def apply_push(
    push: Push, unit: UnitOfWork, context: PlanContext, capacity: Capacity
) -> PushAnswer | SyncError:
    """Apply a push in one go."""
    ref = _new(IdempotencyKey, (push.tenant_id, push.key_hash))
    outcome = _early_outcome(push, ref, unit, context, capacity)
    if outcome is not None:
        return outcome
    undo = _undo_point(push, unit, capacity) if push.atomic or push.tenant_id in capacity.near_limit else None
    results: list[Result] = []
    plain = _apply_items(push, push.items, results, unit, context)
    return _store_answer(push, ref, results, unit, context, capacity, undo, plain=plain)


def apply_push_in_steps(
    push: Push, unit: UnitOfWork, context: PlanContext, capacity: Capacity, items_per_step: int
) -> Generator[None, None, PushAnswer | SyncError]:
    """Apply a push in steps of ``items_per_step`` items."""
    ref = _new(IdempotencyKey, (push.tenant_id, push.key_hash))
    outcome = _early_outcome(push, ref, unit, context, capacity)
    if outcome is not None:
        return outcome
    undo = _undo_point(push, unit, capacity) if push.atomic or push.tenant_id in capacity.near_limit else None
    results: list[Result] = []
    plain = True
    for first in range(0, len(push.items), items_per_step):
        if first:
            yield
        plain &= _apply_items(push, push.items[first : first + items_per_step], results, unit, context)
        if not plain and _is_aborted(push, results):
            break
    return _store_answer(push, ref, results, unit, context, capacity, undo, plain=plain)


def _early_outcome(
    push: Push, ref: IdempotencyKey, unit: UnitOfWork, context: PlanContext, capacity: Capacity
) -> PushAnswer | SyncError | None:
    """Return the outcome of a push of which nothing is applied, None if its items are to be applied."""
    known = unit.keys.get(ref)
    if known is not None:
        if not context.is_same_request(push.tenant_id, known.request_sha256, push.request_sha256):
            unit.reused_keys.append((push, known.age_s))
            return SyncError("idempotency_key_reused", "this key was used for other items")
        again = restore_data(known.results, push.tenant_id, unit.records, context.answer_data_bytes)
        return PushAnswer(again, replayed=True)
    if (
        len(push.items) > 1
        and push_touched_bytes(push, unit.records, unit.open_conflicts) > MESSAGE_TOUCHES_BYTES
    ):
        return SyncError(
            "too_large", f"items: their records pass {MESSAGE_TOUCHES_BYTES} bytes together: send fewer"
        )
    if capacity.blocked and capacity.is_blocked(push):
        return capacity.refuse(push)
    full = context.full()
    return None if full is None else capacity.refuse(push, full)


def _undo_point(push: Push, unit: UnitOfWork, capacity: Capacity) -> _Undo:
    """Remember the rows that a message may change."""
    near_limit = push.tenant_id in capacity.near_limit
    return _Undo(
        unit.savepoint(push) if push.atomic else None,
        unit.usage[push.tenant_id].copy() if near_limit else None,
        unit.checkpoint(push) if near_limit else None,
    )


def _apply_items(
    push: Push,
    items: list[Change | RejectedItem],
    results: list[Result],
    unit: UnitOfWork,
    context: PlanContext,
) -> bool:
    """Apply some items; of an atomic message up to the first that is rejected or held.

    Returns:
        True if all of them were applied or unchanged. Then only their results have to be stored.
    """
    policies = context.policies(push.tenant_id)
    plain = True
    for item in items:
        result = apply_item(push, item, unit, context, policies)
        results.append(result)
        if result.status in _PLAIN:
            continue
        plain = False
        if push.atomic:
            if _is_aborted(push, results):
                break
        elif result.status == "rejected" and result.domain is not None and result.id is not None:
            unit.note_rejected(DeviceRecordKey(push.tenant_id, push.device_id, result.domain, result.id))
    return plain


def _is_aborted(push: Push, results: list[Result]) -> bool:
    return push.atomic and results[-1].status in ("rejected", "conflict")


def _store_answer(
    push: Push,
    ref: IdempotencyKey,
    results: list[Result],
    unit: UnitOfWork,
    context: PlanContext,
    capacity: Capacity,
    undo: _Undo | None,
    *,
    plain: bool,
) -> PushAnswer | SyncError:
    """Store the answer to a push whose items were applied, or undo the push if its tenant is over a limit."""
    if not plain:
        if _is_aborted(push, results):
            assert undo is not None
            assert undo.savepoint is not None
            results = _abort(push, results, unit, undo.savepoint)
        if not push.atomic:
            unit.add_quarantined(quarantined(push, results, context.new_id))
        results = limit_sent_data(results, context.answer_data_bytes)
    encoded = _encode(results)
    row = encoded if plain else limit_kept_data(results, encoded, context.kept_data_bytes)
    personal = context.is_personal(push.items)
    unit.put_answer(
        ref,
        IdempotencyRecord(
            push.tenant_id, push.key_hash, push.request_sha256, row, personal=personal, bare=plain
        ),
    )
    if undo is not None and undo.usage is not None:
        bound = capacity.exceeded(push, undo.usage, unit.usage[push.tenant_id])
        if bound is not None:
            assert undo.checkpoint is not None
            unit.undo(push, undo.checkpoint)
            return capacity.refuse(push, sentence(bound))
    if capacity.blocked:
        capacity.unblock(push)
    unit.count_answered(push, results, context.domains.rules)
    return PushAnswer(encoded, replayed=False, plain=plain)


def _with_server_record(push: Push, held: Result, unit: UnitOfWork) -> Result:
    assert held.domain is not None
    assert held.id is not None
    record = unit.records.get(RecordKey(push.tenant_id, held.domain, held.id))
    return Result(
        domain=held.domain,
        id=held.id,
        status="conflict",
        version=None if record is None else record.version,
        seq=None if record is None else record.seq,
        data=None if record is None or record.data is None else msgspec.Raw(record.data),
    )


def _abort(push: Push, results: list[Result], unit: UnitOfWork, savepoint: Savepoint) -> list[Result]:
    """Undo an atomic push whose last item failed.

    Returns:
        The results: the failing item with its own status, all others rejected with ``batch_aborted``.
    """
    unit.restore(push, savepoint)
    failed, last = len(results) - 1, results[-1]
    error = ItemError("batch_aborted", f"item {failed} of this atomic message was {last.status}")
    if last.status == "conflict":
        last = _with_server_record(push, last, unit)
    return [
        last if index == failed else Result(domain=item.domain, id=item.id, status="rejected", error=error)
        for index, item in enumerate(push.items)
    ]
