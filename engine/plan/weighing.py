"""Which messages of a batch are planned together, so that its tenants are not locked for too long.

Pure. The costs are estimates (``engine.plan.bounds.costs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.model.rows import Snapshot
from engine.plan.bounds.costs import ITEM_US, SMALL_BYTES, SMALL_US_PER_BYTE, Costs
from engine.plan.kinds import KINDS
from engine.plan.work import Work

#: Bytes of records that the changes of a batch may touch, unless it is one message.
BATCH_TOUCHES_BYTES: Final = 16 << 20
#: The most that planning a batch may cost, unless it is one message: its tenants are locked for this long.
BATCH_US: Final = 10_000.0
#: Items of a light batch that are planned between two looks at the clock: they take a millisecond or two.
_LIGHT_ITEMS_PER_STEP: Final = 32


class Selection(msgspec.Struct, frozen=True):
    """The messages of a batch that are planned now.

    ``is_light``: the time of its rows is not worth charging. ``deferred`` are the indexes of the messages
    that wait for the next batch. ``isolated`` are tenants with a message that is expensive by itself. Their
    messages are planned without those of others, so that no other tenant is locked for them.
    ``items_per_step`` is how many items may be planned before the clock is read.
    """

    is_light: bool = False
    deferred: Sequence[int] = ()
    isolated: frozenset[int] = frozenset()
    items_per_step: int = 1


_LIGHT: Final = Selection(is_light=True, items_per_step=_LIGHT_ITEMS_PER_STEP)


def select(batch: list[Work], snapshot: Snapshot) -> Selection:
    """Select the messages of a batch that are planned together.

    The order of each tenant's messages is kept: once one of them is deferred, all later ones are.

    Returns:
        A selection of one message at least, unless the batch has several tenants and all are isolated.
    """
    if _is_light(batch, snapshot):  # nearly always: then nothing has to be estimated by message
        return _LIGHT
    costs = Costs(snapshot)
    is_one_tenant = len({work.tenant_id for work in batch}) == 1
    deferred: list[int] = []
    isolated: set[int] = set()
    deferred_tenants: set[int] = set()
    sum_us, sum_bytes, taken = 0.0, 0, 0
    for index, work in enumerate(batch):
        kind = KINDS[type(work)]
        cost_us, touched_bytes = kind.cost_us(work, costs), kind.touched_bytes(work, costs)
        tenant_id = work.tenant_id
        if cost_us > BATCH_US:
            isolated.add(tenant_id)
        sum_us += cost_us
        sum_bytes += touched_bytes
        over = bool(taken) and (sum_us > BATCH_US or sum_bytes > BATCH_TOUCHES_BYTES)
        if tenant_id in deferred_tenants or over or (tenant_id in isolated and not is_one_tenant):
            deferred.append(index)
            deferred_tenants.add(tenant_id)
            sum_us -= cost_us
            sum_bytes -= touched_bytes
        else:
            taken += 1
    return Selection(deferred=deferred, isolated=frozenset(isolated))


def _is_light(batch: list[Work], snapshot: Snapshot) -> bool:
    """Return whether a batch is cheap whatever its contents: all of it is small."""
    if snapshot.open_conflicts or snapshot.conflicts:
        return False
    largest_bytes = max(
        [
            len(row.data or row.last_data or b"")
            + (len(row.attachments) if row.attachments else 0)
            + (len(row.fields) if row.fields else 0)
            for row in snapshot.records.values()
        ],
        default=0,
    )
    if largest_bytes > SMALL_BYTES:
        return False
    items = sent_bytes = 0
    for work in batch:
        item_count, work_bytes = KINDS[type(work)].size(work)
        if work_bytes > 2 * SMALL_BYTES * item_count:
            return False
        items += item_count
        sent_bytes += work_bytes
    max_bytes = items * largest_bytes + sent_bytes
    cost_us = items * ITEM_US + max_bytes * SMALL_US_PER_BYTE
    return cost_us < BATCH_US and max_bytes < BATCH_TOUCHES_BYTES
