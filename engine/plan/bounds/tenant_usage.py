"""How much a tenant holds, how much a batch adds, and the limits.

Pure. The store keeps a tenant's numbers in the row of its ``seq``, which every batch locks and writes anyway.
So checking a limit reads no other rows. Bytes are those of the stored JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from engine.model.rows import Conflict, Record, TenantUsage
from engine.plan.work import Push, Work

#: The most bytes that one message adds besides those it sent: a record that it overwrites is logged, and the
#: data of a record that it deletes are kept as its last data (``engine.plan.push.MESSAGE_TOUCHES_BYTES``).
_TOUCHED_BYTES: Final = 32 << 20
#: The most stored bytes for one byte that was sent: field versions take 32 bytes for a field of three.
_SENT_TIMES: Final = 32
#: The most bytes of an item in the log and in the answer, whatever its size.
_ITEM_BYTES: Final = 16_384


#: The names of the numbers, which are also columns of the store and settings. Rows and bytes alternate.
NAMES: Final = TenantUsage.__struct_fields__

#: An event counts as future if it is dated more than a day later than the server's now.
AHEAD_US: Final = 86_400_000_000

_ADVICE: Final = {
    "record": "delete some",
    "conflict": "settle or wait",
    "quarantine": "retry what was set aside",
    "event": "wait",
    "answer": "wait",
    "future": "set the device's clock right",
}


def record_bytes(record: Record) -> int:
    """Return the bytes that a record counts for."""
    return len(record.data or b"") + len(record.fields or b"") + len(record.last_data or b"")


def conflict_bytes(conflict: Conflict) -> int:
    """Return the bytes that a row of the conflict log counts for."""
    size_bytes = len(conflict.server_data or b"") + len(conflict.client_data or b"")
    if conflict.client_changes is not None:
        size_bytes += sum([len(change.data or b"") for change in conflict.client_changes])
    return size_bytes


def usage_above(batch: Sequence[Work], bounds: TenantUsage) -> tuple[int, ...]:
    """Return the usage from which on a tenant's usage has to be read for a batch.

    Reading and checking it costs 3 µs a tenant, and hardly any tenant holds half of its limits.

    Args:
        batch: The work.
        bounds: What a tenant may hold.

    Returns:
        Half of each bound, in the order of ``NAMES``. Empty if the batch might add the other half: then every
        tenant's usage has to be read.
    """
    rows, size_bytes = _most_added(batch)
    halves, least_rows, least_bytes = _halves(bounds.numbers())
    return halves if rows <= least_rows and size_bytes <= least_bytes else ()


@lru_cache(maxsize=8)
def _halves(bounds: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """Return half of each bound, and the smallest of these for rows and for bytes."""
    halves = tuple([bound // 2 for bound in bounds])
    return halves, min(halves[0::2]), min(halves[1::2])


def _most_added(batch: Sequence[Work]) -> tuple[int, int]:
    """Return the most rows and bytes that a batch can add to any of the numbers."""
    pushes = [work for work in batch if type(work) is Push]
    rows = 2 * sum([len(push.items) for push in pushes]) + len(batch)
    sent_bytes = sum([len(push.raw_items) for push in pushes])
    return rows, _SENT_TIMES * sent_bytes + _ITEM_BYTES * rows + _TOUCHED_BYTES


def near_limit(batch: Sequence[Work], usage: Mapping[int, TenantUsage], bounds: TenantUsage) -> set[int]:
    """Return the tenants that a batch might carry past a bound. Only their messages may have to be undone."""
    if not usage:
        return set()
    rows, size_bytes = _most_added(batch)
    return {
        tenant_id
        for tenant_id, used in usage.items()
        if used.record_rows + rows > bounds.record_rows
        or used.record_bytes + size_bytes > bounds.record_bytes
        or used.conflict_rows + rows > bounds.conflict_rows
        or used.conflict_bytes + size_bytes > bounds.conflict_bytes
        or used.quarantine_rows + rows > bounds.quarantine_rows
        or used.quarantine_bytes + size_bytes > bounds.quarantine_bytes
        or used.event_rows + rows > bounds.event_rows
        or used.event_bytes + size_bytes > bounds.event_bytes
        or used.answer_rows + rows > bounds.answer_rows
        or used.answer_bytes + size_bytes > bounds.answer_bytes
        or used.future_event_rows + rows > bounds.future_event_rows
    }


def exceeded(
    used: TenantUsage, before: TenantUsage, after: TenantUsage, bounds: TenantUsage, *, deletes: bool
) -> str | None:
    """Return the name of a bound that a message exceeds, None if it exceeds none.

    Args:
        used: What the tenant held before the batch.
        before: What the batch had added before the message.
        after: The same with the message.
        bounds: What the tenant may hold.
        deletes: The message only deletes. It may exceed the bytes of records: a deletion adds a few to free
            many.

    Returns:
        A name of ``NAMES``: the message adds to this number, and the sum is over its bound.
    """
    numbers = zip(NAMES, used.numbers(), before.numbers(), after.numbers(), bounds.numbers(), strict=True)
    for name, held, first, last, bound in numbers:
        if last > first and held + last > bound and not (deletes and name == "record_bytes"):
            return name
    return None


def sentence(name: str) -> str:
    """Return the sentence for a bound that is exceeded, with the remedy."""
    kind = name.split("_", 1)[0]
    return (
        f"the tenant holds as much as it may (tenant_limits.{name}):"
        f" {_ADVICE[kind]}, or have an operator raise it, then send the very same message"
    )
