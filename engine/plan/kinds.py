"""The kinds of work that can be committed: one table of what each reads, costs and does.

A new kind of work is a struct in ``engine.plan.work`` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, NamedTuple

from engine.plan.attachments import attach, attach_reads
from engine.plan.bounds.capacity import Capacity
from engine.plan.bounds.costs import (
    Costs,
    attach_touched_bytes,
    attach_us,
    push_touched_bytes,
    push_us,
    resolution_us,
)
from engine.plan.context import PlanContext
from engine.plan.push import apply_push, apply_push_in_steps, push_reads, with_items_rejected
from engine.plan.resolve import resolution_reads, resolve
from engine.plan.unit_of_work import Reads, UnitOfWork
from engine.plan.work import Attach, Outcome, Push, Resolution, Work


class Kind(NamedTuple):
    """What the commit path does with one kind of work. Each function gets the work first.

    Attributes:
        size: Returns the number of items, 1 for work that has none, and the bytes that were sent.
        reads: Adds the rows to read.
        cost_us: Returns the estimated microseconds to plan it.
        touched_bytes: Returns the bytes of records that it reads or writes.
        apply: Applies it to the rows and returns its outcome.
        apply_in_steps: Does the same in steps of some items. None for work that has no items.
        with_items_rejected: Returns the work with every item rejected for the given reason. None if it has no
            items, or all of them are rejected already.
    """

    size: Callable[[Any], tuple[int, int]]
    reads: Callable[[Any, PlanContext, Reads], None]
    cost_us: Callable[[Any, Costs], float]
    touched_bytes: Callable[[Any, Costs], int]
    apply: Callable[[Any, UnitOfWork, PlanContext, Capacity], Outcome]
    apply_in_steps: (
        Callable[[Any, UnitOfWork, PlanContext, Capacity, int], Generator[None, None, Outcome]] | None
    )
    with_items_rejected: Callable[[Any, str], Work | None]


KINDS: Final[Mapping[type[Work], Kind]] = {
    Push: Kind(
        size=lambda push: (len(push.items), len(push.raw_items)),
        reads=push_reads,
        cost_us=push_us,
        touched_bytes=lambda push, costs: push_touched_bytes(push, costs.records, costs.open_conflicts),
        apply=apply_push,
        apply_in_steps=apply_push_in_steps,
        with_items_rejected=with_items_rejected,
    ),
    Resolution: Kind(
        size=lambda _: (1, 0),
        reads=resolution_reads,
        cost_us=resolution_us,
        touched_bytes=lambda *_: 0,
        apply=lambda resolution, unit, context, _: resolve(resolution, unit, context),
        apply_in_steps=None,
        with_items_rejected=lambda *_: None,
    ),
    Attach: Kind(
        size=lambda file: (1, len(file.entry or b"")),
        reads=attach_reads,
        cost_us=attach_us,
        touched_bytes=lambda file, costs: attach_touched_bytes(file, costs.records),
        apply=lambda file, unit, *_: attach(file, unit),
        apply_in_steps=None,
        with_items_rejected=lambda *_: None,
    ),
}
