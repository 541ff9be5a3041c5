"""The job ``reseal``: what is stored is sealed again, after a key was rotated or a domain was sealed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import structlog

from engine.cluster.jobs import JobRun
from engine.operate.rows import UnreadableValue
from engine.runtime.batching import with_retries
from engine.runtime.ports import StoreError

_log = structlog.get_logger()


class Resealed(NamedTuple):
    """One step of a pass.

    Rows that were looked at, values that were sealed, rows that others changed, values that cannot be opened.
    """

    rows: int
    values: int
    missed: int
    unreadable: Sequence[UnreadableValue] = ()


class UnreadableValuesError(StoreError):
    """Values of some rows cannot be opened, and stay as they are. All others are sealed again."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"rows with sealed values that cannot be opened, which were left as they are: {count};"
            " `run.py keys status` lists them; all other values are sealed again"
        )


class ResealStore(Protocol):
    """What tenants have stored. Every method raises StoreError."""

    async def wait_s(self) -> float:
        """Return how long a rotation or a sealed domain is too young for all servers to follow it."""

    async def next_tenant(self, after: int) -> int | None:
        """Find a tenant with values that are not as they should be.

        Args:
            after: A tenant; the next one by number is returned.

        Returns:
            The tenant; None if no further one has any.
        """

    async def begin(self, tenant_id: int) -> None:
        """Begin or resume a pass over a tenant. It waits for transactions that may have missed the reason."""

    async def step(self, tenant_id: int) -> Resealed | None:
        """Seal some rows again, and note how far the pass is, in one transaction. It may be repeated.

        The rows keep their versions and their change numbers, so that devices see no change.

        Returns:
            What was done; None if the pass is over, which is noted.
        """

    async def dead_rows(self) -> int:
        """Return how many dead rows tables of sealed values have, by the statistics of the database.

        They have old values until they are vacuumed, and their bytes stay on disk until written over.
        """


class Reseal:
    """``engine.cluster.jobs.JobBody``."""

    def __init__(self, store: ResealStore) -> None:
        self._store = store

    async def __call__(self, run: JobRun) -> None:
        """Go over each tenant that needs it. One that fails is left for the next run, and others go on."""
        failure: StoreError | None = None
        await asyncio.sleep(await with_retries(self._store.wait_s))
        tenant_id = 0
        while (found := await with_retries(partial(self._store.next_tenant, tenant_id))) is not None:
            tenant_id = found
            try:
                await self._pass(run, tenant_id)
            except StoreError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        if run.counts:
            run.counts["dead_rows"] = await with_retries(self._store.dead_rows)
        if unreadable := run.counts.get("unreadable"):
            raise UnreadableValuesError(int(unreadable))

    async def _pass(self, run: JobRun, tenant_id: int) -> None:
        await with_retries(partial(self._store.begin, tenant_id))
        while (step := await with_retries(partial(self._store.step, tenant_id))) is not None:
            run.count("rows", step.rows)
            run.count("values", step.values)
            if step.missed:
                run.count("missed", step.missed)
            if step.unreadable:
                run.count("unreadable", len(step.unreadable))
                first = step.unreadable[0]
                _log.error(
                    "sealed_values_unreadable",
                    tenant_id=tenant_id,
                    table=first.table,
                    domain=first.domain,
                    id=first.id,
                    values=len(step.unreadable),
                )
            await run.rest()
        run.count("tenants", 1)
