"""All of a sync's meaning, without I/O: jobs and the rows under their locks → rows to write, answers.

Jobs of many devices and tenants share a batch and apply in order; each sees the effects of those
before it. ``lookups`` says what must be locked and read, ``steps`` decides.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from engine.model.rows import (
    ConflictRef,
    EventKey,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    ReadSet,
    Record,
    RecordKey,
    SetAsideRef,
    Snapshot,
    TenantUsage,
    WriteSet,
)
from engine.model.uploads import UploadRef
from engine.plan.answers import kept, replayed, told
from engine.plan.apply import apply_item
from engine.plan.attachments import attach
from engine.plan.conflict import may_hold
from engine.plan.context import PlanContext
from engine.plan.quarantine import quarantined
from engine.plan.resolve import resolve
from engine.plan.room import Behind, Room
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
    again with them. ``behind`` is what is kept back after the batch (``engine.plan.room``), ``refused``
    are the keys of messages that found no room.
    """

    outcomes: list[Outcome]
    writes: WriteSet
    changes: list[tuple[Record, str]]
    reused: list[tuple[Push, int]]
    missing: Collection[OpenConflictRef] = ()
    behind: Behind = MappingProxyType({})
    refused: Collection[str] = ()


def lookups(jobs: list[Work], rules: PlanContext, also_held: Collection[OpenConflictRef] = ()) -> ReadSet:
    """Say which tenants a batch locks and which rows it reads, ``also_held`` beside what is always read."""
    tenants: set[int] = set()
    keys: dict[IdempotencyKey, None] = {}
    old_keys: list[IdempotencyKey] = []
    records: dict[RecordKey, None] = {}
    events: dict[EventKey, None] = {}
    held: dict[OpenConflictRef, None] = dict.fromkeys(also_held)
    set_aside: dict[SetAsideRef, None] = {}
    conflicts: dict[ConflictRef, None] = {}
    uploads: dict[UploadRef, None] = {}
    twins: dict[UploadRef, None] = {}
    for job in jobs:
        tenant_id = job.tenant_id
        tenants.add(tenant_id)
        if isinstance(job, Resolution):
            conflicts[ConflictRef(tenant_id, job.conflict_id)] = None
            records[RecordKey(tenant_id, job.domain, job.record_id)] = None
            continue
        if isinstance(job, Attach):
            uploads[ref := UploadRef(tenant_id, job.upload_id)] = None
            if job.entry is None:
                twins[ref] = None
            records[RecordKey(tenant_id, job.domain, job.record_id)] = None
            continue
        keys[key := _new(IdempotencyKey, (tenant_id, job.key_hash))] = None
        if job.may_be_old:
            old_keys.append(key)
        policies = rules.policies(tenant_id)
        for item in job.items:
            if type(item) is not Change:
                continue
            if item.op == "append":
                events[EventKey(tenant_id, item.domain, item.id, item.sent_at_us)] = None
                continue
            records[_new(RecordKey, (tenant_id, item.domain, item.id))] = None
            if item.op == "patch" and not item.base:
                set_aside[SetAsideRef(tenant_id, job.device_id, item.domain, item.id)] = None
            if may_hold(policies[item.domain]):
                held[OpenConflictRef(tenant_id, job.device_id, item.domain, item.id)] = None
    return ReadSet(
        sorted(tenants),
        list(keys),
        list(records),
        list(events),
        list(held),
        list(conflicts),
        list(uploads),
        list(twins),
        old_keys,
        list(set_aside),
        usage_above=() if rules.bounds is None else usage_above(jobs, rules.bounds),
    )


def plan(
    jobs: list[Work],
    state: Snapshot,
    rules: PlanContext,
    also_held: Collection[OpenConflictRef] = (),
    behind: Behind = MappingProxyType({}),
) -> Plan:
    """Decide the whole batch at once, as ``steps`` does with pauses."""
    deciding = steps(jobs, state, rules, also_held, behind)
    while True:
        try:
            next(deciding)
        except StopIteration as done:
            decided: Plan = done.value
            return decided


def steps(
    jobs: list[Work],
    state: Snapshot,
    rules: PlanContext,
    also_held: Collection[OpenConflictRef] = (),
    behind: Behind = MappingProxyType({}),
    items_per_step: int = 32,
) -> Generator[int, None, Plan]:
    """Decide the whole batch step by step, an item or some of one job at a time.

    ``state`` is used up: it follows the jobs' effects. It holds what ``lookups`` of the same arguments named.
    Messages of one item each share a step of ``items_per_step``: a pause costs 0.5 µs.

    Yields:
        The index of the job that the step was of: the last of those that shared it, which are all since the
        step before. The last step of each is said, too.
    """
    working = UnitOfWork(state, also_held)
    room = Room(state.usage, rules.bounds, jobs, behind)
    outcomes: list[Outcome] = []
    sharing = 0
    for index, job in enumerate(jobs):
        if type(job) is Push:
            items = len(job.items)
            if items == 1 and sharing < items_per_step - 1:
                sharing += 1
                outcomes.append(_push(job, working, rules, room))
                continue
            if sharing and items > 1:
                yield index - 1
            if items <= items_per_step:
                outcomes.append(_push(job, working, rules, room))
            else:
                outcomes.append((yield from _long_push(job, working, rules, room, index, items_per_step)))
        else:
            if sharing:
                yield index - 1
            if isinstance(job, Resolution):
                outcomes.append(resolve(job, working, rules))
            else:
                assert isinstance(job, Attach)
                outcomes.append(attach(job, working))
        sharing = 0
        yield index
    if sharing:
        yield len(jobs) - 1
    return Plan(
        outcomes,
        working.writes(),
        working.changes,
        working.reused,
        working.missing,
        room.behind,
        room.refused,
    )


class _Undo(NamedTuple):
    """The rows before a message that is atomic, or of a tenant that may have no room for it."""

    savepoint: Savepoint | None
    usage: TenantUsage | None
    checkpoint: Checkpoint | None


def _push(push: Push, working: UnitOfWork, rules: PlanContext, room: Room) -> PushAnswer | SyncError:
    """Decide a message at once."""
    ref = _new(IdempotencyKey, (push.tenant_id, push.key_hash))
    outcome = _refused(push, ref, working, rules, room)
    if outcome is not None:
        return outcome
    undo = _undo(push, working, room) if push.atomic or push.tenant_id in room.tight else None
    results: list[Result] = []
    plain = _applied(push, push.items, results, working, rules)
    return _answered(push, ref, results, working, rules, room, undo, plain=plain)


def _long_push(
    push: Push, working: UnitOfWork, rules: PlanContext, room: Room, job: int, items_per_step: int
) -> Generator[int, None, PushAnswer | SyncError]:
    """Decide a message in steps."""
    ref = _new(IdempotencyKey, (push.tenant_id, push.key_hash))
    outcome = _refused(push, ref, working, rules, room)
    if outcome is not None:
        return outcome
    undo = _undo(push, working, room) if push.atomic or push.tenant_id in room.tight else None
    results: list[Result] = []
    plain = True
    for first in range(0, len(push.items), items_per_step):
        if first:
            yield job
        plain &= _applied(push, push.items[first : first + items_per_step], results, working, rules)
        if not plain and _is_aborted(push, results):
            break
    return _answered(push, ref, results, working, rules, room, undo, plain=plain)


def _refused(
    push: Push, ref: IdempotencyKey, working: UnitOfWork, rules: PlanContext, room: Room
) -> PushAnswer | SyncError | None:
    """Return the outcome of a message of which nothing is applied, None for all others."""
    known = working.keys.get(ref)
    if known is not None:
        if known.request_sha256 != push.request_sha256:
            working.reused.append((push, known.age_s))
            return SyncError("idempotency_key_reused", "this key was used for other items")
        again = replayed(known.results, push.tenant_id, working.records, rules.answer_data_bytes)
        return PushAnswer(again, replayed=True)
    if len(push.items) > 1 and touched_bytes(push, working.records, working.held) > MESSAGE_TOUCHES_BYTES:
        return SyncError(
            "too_large", f"items: their records pass {MESSAGE_TOUCHES_BYTES} bytes together: send fewer"
        )
    if room.behind and room.kept_back(push):
        return room.no_room(push)
    full = rules.full()
    return None if full is None else room.no_room(push, full)


def _undo(push: Push, working: UnitOfWork, room: Room) -> _Undo:
    """Remember what a message may have to be undone to."""
    is_tight = push.tenant_id in room.tight
    return _Undo(
        working.savepoint(push) if push.atomic else None,
        working.usage[push.tenant_id].copy() if is_tight else None,
        working.checkpoint(push) if is_tight else None,
    )


def _applied(
    push: Push,
    items: list[Change | RejectedItem],
    results: list[Result],
    working: UnitOfWork,
    rules: PlanContext,
) -> bool:
    """Apply some items, of an atomic message up to the first that is rejected or held.

    Returns:
        Whether all of them were applied or unchanged: then nothing is to be kept of them but the results.
    """
    policies = rules.policies(push.tenant_id)
    plain = True
    for item in items:
        result = apply_item(push, item, working, rules, policies)
        results.append(result)
        if result.status in _PLAIN:
            continue
        plain = False
        if push.atomic:
            if _is_aborted(push, results):
                break
        elif result.status == "rejected" and result.domain is not None and result.id is not None:
            working.set_aside(SetAsideRef(push.tenant_id, push.device_id, result.domain, result.id))
    return plain


def _is_aborted(push: Push, results: list[Result]) -> bool:
    return push.atomic and results[-1].status in ("rejected", "conflict")


def _answered(
    push: Push,
    ref: IdempotencyKey,
    results: list[Result],
    working: UnitOfWork,
    rules: PlanContext,
    room: Room,
    undo: _Undo | None,
    *,
    plain: bool,
) -> PushAnswer | SyncError:
    """Keep the answer to a message whose items were applied, unless it finds no room."""
    if not plain:
        if _is_aborted(push, results):
            assert undo is not None
            assert undo.savepoint is not None
            results = _aborted(push, results, working, undo.savepoint)
        if not push.atomic:
            working.put_aside(quarantined(push, results, rules.new_id))
        results = told(results, rules.answer_data_bytes)
    encoded = _encode(results)
    row = encoded if plain else kept(results, encoded, rules.kept_data_bytes)
    working.keep(ref, IdempotencyRecord(push.tenant_id, push.key_hash, push.request_sha256, row))
    if undo is not None and undo.usage is not None:
        bound = room.passed(push, undo.usage, working.usage[push.tenant_id])
        if bound is not None:
            assert undo.checkpoint is not None
            working.undo(push, undo.checkpoint)
            return room.no_room(push, sentence(bound))
    if room.behind:
        room.taken(push)
    return PushAnswer(encoded, replayed=False, plain=plain)


def _standing(push: Push, held: Result, working: UnitOfWork) -> Result:
    assert held.domain is not None
    assert held.id is not None
    record = working.records.get(RecordKey(push.tenant_id, held.domain, held.id))
    return Result(
        domain=held.domain,
        id=held.id,
        status="conflict",
        version=None if record is None else record.version,
        seq=None if record is None else record.seq,
        data=None if record is None or record.data is None else msgspec.Raw(record.data),
    )


def _aborted(push: Push, results: list[Result], working: UnitOfWork, savepoint: Savepoint) -> list[Result]:
    """Undo an atomic message whose last result is the culprit's."""
    working.restore(push, savepoint)
    culprit, last = len(results) - 1, results[-1]
    error = ItemError("batch_aborted", f"item {culprit} of this atomic message was {last.status}")
    if last.status == "conflict":
        last = _standing(push, last, working)
    return [
        last if index == culprit else Result(domain=item.domain, id=item.id, status="rejected", error=error)
        for index, item in enumerate(push.items)
    ]
