"""Structured concurrency: one task group owns every long-lived task.

A service that fails or ends by itself ends the whole process. Its supervisor then starts it again, so that it
does not run on with a part missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import anyio
import structlog

#: After the drain time is used up, each remaining service has this long to drain.
_LAST_WORDS_S: Final = 2.5

_log = structlog.get_logger()


class Service(NamedTuple):
    """A part of the process that runs until cancelled.

    ``drain`` finishes what the service accepted. It is called while all services still run.
    """

    name: str
    run: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]] | None = None


class ServiceEndedError(Exception):
    """A service ended by itself."""


@asynccontextmanager
async def running(services: Sequence[Service], drain_s: float) -> AsyncIterator[None]:
    """Run services in the given order. On exit drain them in that order, then stop all of them.

    Args:
        services: The services.
        drain_s: The time for all drains together. A service that is not drained then is stopped; those after
            it still get a short time each.

    Raises:
        ExceptionGroup: A service failed.
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
