"""All of a sync's meaning, without I/O: jobs and the rows under their locks → rows to write, answers.

Jobs of many devices and tenants share a batch and apply in order; each sees the effects of those
before it. ``read_set`` says what must be locked and read, ``steps`` decides.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from engine.model.rows import (
    ConflictRef,
    DeviceRecordKey,
    EventKey,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    ReadSet,
    Record,
    RecordKey,
    Snapshot,
    TenantUsage,
    WriteSet,
)
from engine.model.uploads import UploadRef
from engine.plan.answers import limit_kept_data, limit_sent_data, restore_data
from engine.plan.apply import apply_item
from engine.plan.attachments import attach
from engine.plan.capacity import Blocked, Capacity
from engine.plan.conflict import may_hold
from engine.plan.context import PlanContext
from engine.plan.quarantine import quarantined
from engine.plan.resolve import resolve
from engine.plan.tenant_usage import sentence, usage_above
from engine.plan.unit_of_work import Checkpoint, Savepoint, UnitOfWork
from engine.plan.weighing import touched_bytes
from engine.plan.work import Attach, Change, Outcome, Push, PushAnswer, RejectedItem, Resolution, Work
from engine.wire.errors import SyncError
from engine.wire.messages import ItemError, Result

_encode = msgspec.json.encode
#: Makes a tuple with names in half the time that its class takes.
_new = tuple.__new__

#: Bytes of records, counted anew for each change of one, that a message may touch. A change of sixty bytes
#: may read, log and write a whole record, on the event loop and under its tenant's lock.
MESSAGE_TOUCHES_BYTES: Final = 8 << 20
#: Statuses of items that bring no ``data``, and of which nothing is set aside.
_PLAIN: Final = ("applied", "unchanged")


class Plan(msgspec.Struct, frozen=True):
    """One outcome per job, what to write, and every new version with the session that pushed it.

    ``reused`` are messages under a key of another message, with the age of its answer in seconds. ``missing``
    are open conflicts that nobody thought to read; if there are any, the rest is void, and the batch begins
    again with them. ``behind`` is what is kept back after the batch (``engine.plan.capacity``), ``refused``
    are the keys of messages that found no room.
    """

    outcomes: list[Outcome]
    writes: WriteSet
    changes: list[tuple[Record, str]]
    reused: list[tuple[Push, int]]
    unread_conflicts: Collection[OpenConflictRef] = ()
    blocked: Blocked = MappingProxyType({})
    refused: Collection[str] = ()


def read_set(
    batch: list[Work], context: PlanContext, extra_conflicts: Collection[OpenConflictRef] = ()
) -> ReadSet:
    """Return the tenants that a batch locks and the rows that it reads.

    Args:
        batch: The work, in order.
        context: Policies and limits.
        extra_conflicts: Open conflicts to read in addition (``Plan.unread_conflicts`` of a first try).
    """
    tenants: set[int] = set()
    keys: dict[IdempotencyKey, None] = {}
    old_keys: list[IdempotencyKey] = []
    records: dict[RecordKey, None] = {}
    events: dict[EventKey, None] = {}
    held: dict[OpenConflictRef, None] = dict.fromkeys(extra_conflicts)
    rejected_before: dict[DeviceRecordKey, None] = {}
    conflicts: dict[ConflictRef, None] = {}
    uploads: dict[UploadRef, None] = {}
    duplicates: dict[UploadRef, None] = {}
    for work in batch:
        tenant_id = work.tenant_id
        tenants.add(tenant_id)
        if isinstance(work, Resolution):
            conflicts[ConflictRef(tenant_id, work.conflict_id)] = None
            records[RecordKey(tenant_id, work.domain, work.record_id)] = None
            continue
        if isinstance(work, Attach):
            uploads[ref := UploadRef(tenant_id, work.upload_id)] = None
            if work.entry is None:
                duplicates[ref] = None
            records[RecordKey(tenant_id, work.domain, work.record_id)] = None
            continue
        keys[key := _new(IdempotencyKey, (tenant_id, work.key_hash))] = None
        if work.may_be_old:
            old_keys.append(key)
        policies = context.policies(tenant_id)
        for item in work.items:
            if type(item) is not Change:
                continue
            if item.op == "append":
                events[EventKey(tenant_id, item.domain, item.id, item.sent_at_us)] = None
                continue
            records[_new(RecordKey, (tenant_id, item.domain, item.id))] = None
            if item.op == "patch" and not item.base:
                rejected_before[DeviceRecordKey(tenant_id, work.device_id, item.domain, item.id)] = None
            if may_hold(policies[item.domain]):
                held[OpenConflictRef(tenant_id, work.device_id, item.domain, item.id)] = None
    return ReadSet(
        sorted(tenants),
        list(keys),
        list(records),
        list(events),
        list(held),
        list(conflicts),
        list(uploads),
        list(duplicates),
        old_keys,
        list(rejected_before),
        usage_above=() if context.bounds is None else usage_above(batch, context.bounds),
    )


def plan(
    batch: list[Work],
    snapshot: Snapshot,
    context: PlanContext,
    extra_conflicts: Collection[OpenConflictRef] = (),
    blocked: Blocked = MappingProxyType({}),
) -> Plan:
    """Decide the whole batch at once, as ``steps`` does with pauses."""
    deciding = steps(batch, snapshot, context, extra_conflicts, blocked)
    while True:
        try:
            next(deciding)
        except StopIteration as done:
            decided: Plan = done.value
            return decided


def steps(
    batch: list[Work],
    snapshot: Snapshot,
    context: PlanContext,
    extra_conflicts: Collection[OpenConflictRef] = (),
    blocked: Blocked = MappingProxyType({}),
    items_per_step: int = 32,
) -> Generator[int, None, Plan]:
    """Decide the whole batch step by step, an item or some of one job at a time.

    Messages of one item each share a step of ``items_per_step``: a pause costs 0.5 µs.

    Args:
        batch: The work, in order.
        snapshot: The rows that ``read_set`` of the same arguments named. It is changed by the plan.
        context: Policies and limits.
        extra_conflicts: As for ``read_set``.
        blocked: The records that are blocked before the batch.
        items_per_step: The most items that are planned between two pauses.

    Yields:
        After each step, also the last one, the index of the message that the step belonged to. If several
        messages shared the step, this is the last of them, and they are all messages since the step before.
    """
    unit = UnitOfWork(snapshot, extra_conflicts)
    capacity = Capacity(snapshot.usage, context.bounds, batch, blocked)
    outcomes: list[Outcome] = []
    sharing = 0
    for index, work in enumerate(batch):
        if type(work) is Push:
            items = len(work.items)
            if items == 1 and sharing < items_per_step - 1:
                sharing += 1
                outcomes.append(_push(work, unit, context, capacity))
                continue
            if sharing and items > 1:
                yield index - 1
            if items <= items_per_step:
                outcomes.append(_push(work, unit, context, capacity))
            else:
                outcomes.append((yield from _long_push(work, unit, context, capacity, index, items_per_step)))
        else:
            if sharing:
                yield index - 1
            if isinstance(work, Resolution):
                outcomes.append(resolve(work, unit, context))
            else:
                assert isinstance(work, Attach)
                outcomes.append(attach(work, unit))
        sharing = 0
        yield index
    if sharing:
        yield len(batch) - 1
    return Plan(
        outcomes,
        unit.writes(),
        unit.changes,
        unit.reused,
        unit.unread_conflicts,
        capacity.blocked,
        capacity.refused,
    )


class _Undo(NamedTuple):
    """The rows before a message that is atomic, or of a tenant that may have no room for it."""

    savepoint: Savepoint | None
    usage: TenantUsage | None
    checkpoint: Checkpoint | None


def _push(push: Push, unit: UnitOfWork, context: PlanContext, capacity: Capacity) -> PushAnswer | SyncError:
    """Decide a message at once."""
    ref = _new(IdempotencyKey, (push.tenant_id, push.key_hash))
    outcome = _refused(push, ref, unit, context, capacity)
    if outcome is not None:
        return outcome
    undo = _undo(push, unit, capacity) if push.atomic or push.tenant_id in capacity.near_limit else None
    results: list[Result] = []
    plain = _applied(push, push.items, results, unit, context)
    return _answered(push, ref, results, unit, context, capacity, undo, plain=plain)


def _long_push(
    push: Push, unit: UnitOfWork, context: PlanContext, capacity: Capacity, work: int, items_per_step: int
) -> Generator[int, None, PushAnswer | SyncError]:
    """Decide a message in steps."""
    ref = _new(IdempotencyKey, (push.tenant_id, push.key_hash))
    outcome = _refused(push, ref, unit, context, capacity)
    if outcome is not None:
        return outcome
    undo = _undo(push, unit, capacity) if push.atomic or push.tenant_id in capacity.near_limit else None
    results: list[Result] = []
    plain = True
    for first in range(0, len(push.items), items_per_step):
        if first:
            yield work
        plain &= _applied(push, push.items[first : first + items_per_step], results, unit, context)
        if not plain and _is_aborted(push, results):
            break
    return _answered(push, ref, results, unit, context, capacity, undo, plain=plain)


def _refused(
    push: Push, ref: IdempotencyKey, unit: UnitOfWork, context: PlanContext, capacity: Capacity
) -> PushAnswer | SyncError | None:
    """Return the outcome of a message of which nothing is applied, None for all others."""
    known = unit.keys.get(ref)
    if known is not None:
        if known.request_sha256 != push.request_sha256:
            unit.reused.append((push, known.age_s))
            return SyncError("idempotency_key_reused", "this key was used for other items")
        again = restore_data(known.results, push.tenant_id, unit.records, context.answer_data_bytes)
        return PushAnswer(again, replayed=True)
    if len(push.items) > 1 and touched_bytes(push, unit.records, unit.open_conflicts) > MESSAGE_TOUCHES_BYTES:
        return SyncError(
            "too_large", f"items: their records pass {MESSAGE_TOUCHES_BYTES} bytes together: send fewer"
        )
    if capacity.blocked and capacity.is_blocked(push):
        return capacity.refuse(push)
    full = context.full()
    return None if full is None else capacity.refuse(push, full)


def _undo(push: Push, unit: UnitOfWork, capacity: Capacity) -> _Undo:
    """Remember what a message may have to be undone to."""
    is_tight = push.tenant_id in capacity.near_limit
    return _Undo(
        unit.savepoint(push) if push.atomic else None,
        unit.usage[push.tenant_id].copy() if is_tight else None,
        unit.checkpoint(push) if is_tight else None,
    )


def _applied(
    push: Push,
    items: list[Change | RejectedItem],
    results: list[Result],
    unit: UnitOfWork,
    context: PlanContext,
) -> bool:
    """Apply some items, of an atomic message up to the first that is rejected or held.

    Returns:
        Whether all of them were applied or unchanged: then nothing is to be kept of them but the results.
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


def _answered(
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
    """Keep the answer to a message whose items were applied, unless it finds no room."""
    if not plain:
        if _is_aborted(push, results):
            assert undo is not None
            assert undo.savepoint is not None
            results = _aborted(push, results, unit, undo.savepoint)
        if not push.atomic:
            unit.add_quarantined(quarantined(push, results, context.new_id))
        results = limit_sent_data(results, context.answer_data_bytes)
    encoded = _encode(results)
    row = encoded if plain else limit_kept_data(results, encoded, context.kept_data_bytes)
    unit.put_answer(ref, IdempotencyRecord(push.tenant_id, push.key_hash, push.request_sha256, row))
    if undo is not None and undo.usage is not None:
        bound = capacity.exceeded(push, undo.usage, unit.usage[push.tenant_id])
        if bound is not None:
            assert undo.checkpoint is not None
            unit.undo(push, undo.checkpoint)
            return capacity.refuse(push, sentence(bound))
    if capacity.blocked:
        capacity.unblock(push)
    return PushAnswer(encoded, replayed=False, plain=plain)


def _standing(push: Push, held: Result, unit: UnitOfWork) -> Result:
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


def _aborted(push: Push, results: list[Result], unit: UnitOfWork, savepoint: Savepoint) -> list[Result]:
    """Undo an atomic message whose last result is the culprit's."""
    unit.restore(push, savepoint)
    culprit, last = len(results) - 1, results[-1]
    error = ItemError("batch_aborted", f"item {culprit} of this atomic message was {last.status}")
    if last.status == "conflict":
        last = _standing(push, last, unit)
    return [
        last if index == culprit else Result(domain=item.domain, id=item.id, status="rejected", error=error)
        for index, item in enumerate(push.items)
    ]
