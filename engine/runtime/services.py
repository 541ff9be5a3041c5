"""Structured concurrency: one task group owns every long-lived task, and nothing is fire-and-forget.

A service that ends on its own or fails takes the whole process down, so that whoever supervises it
starts it afresh instead of running on with a part missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import anyio
import structlog

#: When the time is used up, those whose turn it is not yet have this long to take leave.
_LAST_WORDS_S: Final = 2.5

_log = structlog.get_logger()


class Service(NamedTuple):
    """Something that runs until cancelled.

    ``drain`` lets it finish what it accepted; it is called while all services still run.
    """

    name: str
    run: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]] | None = None


class ServiceEndedError(Exception):
    """A service returned although nobody stopped it."""


@asynccontextmanager
async def running(services: Sequence[Service], drain_s: float) -> AsyncIterator[None]:
    """Run services in the order given; on leaving drain them in that order, then stop them all.

    What is not drained after ``drain_s`` in total is stopped where it stands, though whoever comes
    behind it has a last moment. Raises the failure of a service in an exception group.
    """
    async with anyio.create_task_group() as group:
        for service in services:
            group.start_soon(_watched, service, name=service.name)
        yield
        ends_at_s = anyio.current_time() + drain_s
        for service in services:
            if service.drain is not None:
                with anyio.move_on_at(ends_at_s) as patience:
                    await service.drain()
                if patience.cancelled_caught:
                    _log.warning("drain_incomplete", service=service.name, drain_s=drain_s)
                    ends_at_s = anyio.current_time() + _LAST_WORDS_S
        group.cancel_scope.cancel()


async def _watched(service: Service) -> None:
    try:
        await service.run()
    except Exception as error:
        _log.error("service_failed", service=service.name, exc_info=error)
        raise
    _log.error("service_ended", service=service.name)
    raise ServiceEndedError(service.name)
