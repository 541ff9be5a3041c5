"""The plan of a batch, without I/O: work and the rows under their locks → rows to write, answers.

Messages of many devices and tenants share a batch and apply in order. Each sees the effects of those before
it. ``read_set`` says what must be locked and read, ``steps`` plans.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from types import MappingProxyType

import msgspec

from engine.model.commit_counts import sums_by_status
from engine.model.rows import OpenConflictRef, ReadSet, Record, Snapshot, WriteSet
from engine.plan.bounds.capacity import Blocked, Capacity
from engine.plan.bounds.tenant_usage import usage_above
from engine.plan.context import PlanContext
from engine.plan.kinds import KINDS
from engine.plan.unit_of_work import Reads, UnitOfWork
from engine.plan.work import Outcome, Push, Work
from engine.wire.steps import numbered, run_steps


class Plan(msgspec.Struct, frozen=True):
    """One outcome per message, the rows to write, and every new version with the session that pushed it.

    ``reused_keys`` are pushes under a key of another push, with the age of that one's answer in seconds.
    ``statuses`` counts the items of answered messages by status, ``conflicts`` new conflicts by policy and
    outcome, ``settled`` those that a person settled by choice.
    ``unread_conflicts`` are open conflicts that the plan needed and ``read_set`` did not name. If there are
    any, the rest is void, and the batch has to run again with them. ``blocked`` are the records that are
    blocked after the batch, ``refused_keys`` the keys of the messages that found no room
    (``engine.plan.bounds.capacity``).
    """

    outcomes: list[Outcome]
    writes: WriteSet
    changes: list[tuple[Record, str]]
    reused_keys: list[tuple[Push, int]]
    unread_conflicts: Collection[OpenConflictRef] = ()
    blocked: Blocked = MappingProxyType({})
    refused_keys: Collection[str] = ()
    statuses: Mapping[str, int] = MappingProxyType({})
    conflicts: Mapping[tuple[str, str], int] = MappingProxyType({})
    settled: Mapping[str, int] = MappingProxyType({})


def read_set(
    batch: list[Work], context: PlanContext, extra_conflicts: Collection[OpenConflictRef] = ()
) -> ReadSet:
    """Return the tenants that a batch locks and the rows that it reads.

    Args:
        batch: The work, in order.
        context: Policies and limits.
        extra_conflicts: Open conflicts to read in addition (``Plan.unread_conflicts`` of a first try).
    """
    reads = Reads(extra_conflicts)
    for work in batch:
        KINDS[type(work)].reads(work, context, reads)
    above = () if context.bounds is None else usage_above(batch, context.bounds)
    return reads.read_set({work.tenant_id for work in batch}, above)


def plan(
    batch: list[Work],
    snapshot: Snapshot,
    context: PlanContext,
    extra_conflicts: Collection[OpenConflictRef] = (),
    blocked: Blocked = MappingProxyType({}),
) -> Plan:
    """Plan a whole batch in one go. Arguments are those of ``steps``."""
    return run_steps(steps(batch, snapshot, context, extra_conflicts, blocked))


def steps(
    batch: list[Work],
    snapshot: Snapshot,
    context: PlanContext,
    extra_conflicts: Collection[OpenConflictRef] = (),
    blocked: Blocked = MappingProxyType({}),
    items_per_step: int = 32,
) -> Generator[int, None, Plan]:
    """Plan a batch step by step: a message at a time, or some of its items.

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
        kind = KINDS[type(work)]
        items, _ = kind.size(work)
        if items == 1 and sharing < items_per_step - 1:
            sharing += 1
            outcomes.append(kind.apply(work, unit, context, capacity))
            continue
        if sharing and items > 1:
            yield index - 1
        if items <= items_per_step or kind.apply_in_steps is None:
            outcomes.append(kind.apply(work, unit, context, capacity))
        else:
            parts = kind.apply_in_steps(work, unit, context, capacity, items_per_step)
            outcomes.append((yield from numbered(parts, index)))
        sharing = 0
        yield index
    if sharing:
        yield len(batch) - 1
    conflicts, settled = unit.conflict_counts()
    return Plan(
        outcomes,
        unit.writes(),
        unit.changes,
        unit.reused_keys,
        unit.unread_conflicts,
        capacity.blocked,
        capacity.refused,
        sums_by_status(unit.counts.values()),
        conflicts,
        settled,
    )
