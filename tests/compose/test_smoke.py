"""The tenant of ``run.py smoke``: erased however the run ends, or named on stderr."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace

import click
import pytest

from compose import smoke
from engine.operate.ports import NoTenantError, RefusedError
from engine.runtime.ports import StoreUnknownError

NAME = "smoke-0a"


class Tenants:
    """Tenants in memory. ``ends`` is raised when one is added; erasing waits for ``go_on``."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.ends: BaseException | None = None
        self.erasing, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def add(self, name: str) -> None:
        """Add one, and end as it was told."""
        if name in self.names:
            raise RefusedError("there is one")
        self.names.add(name)
        if self.ends is not None:
            raise self.ends

    async def remove(self, name: str, *, erase: bool) -> None:
        """Erase one, once it may go on."""
        assert erase
        self.erasing.set()
        await self.go_on.wait()
        if name not in self.names:
            raise NoTenantError(name)
        self.names.remove(name)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Tenants]:
        """Open them."""
        yield self


Admitted = Callable[[str], AbstractAsyncContextManager[None]]


@pytest.fixture
async def tenants() -> Tenants:
    return Tenants()


@pytest.fixture
def tenant(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> Admitted:
    """What gives a run its tenant."""
    settings = SimpleNamespace(server=SimpleNamespace(host="::1", port=1))
    deployment = SimpleNamespace(settings=settings, tenants=tenants.opened, database=lambda: "a database")
    monkeypatch.setattr(smoke, "open_deployment", lambda *_: deployment)
    return smoke.open_deployed(None, None).tenant


@pytest.mark.parametrize(
    ("ends", "raised"),
    [
        (asyncio.CancelledError(), asyncio.CancelledError),
        (StoreUnknownError("no answer to COMMIT"), click.ClickException),
    ],
)
async def test_smoke_tenant_of_an_add_that_may_have_happened_is_erased(
    tenants: Tenants, tenant: Admitted, ends: BaseException, raised: type[BaseException]
) -> None:
    tenants.ends = ends
    with pytest.raises(raised):
        await tenant(NAME).__aenter__()
    assert tenants.names == set()


async def test_smoke_tenant_of_another_is_not_erased(tenants: Tenants, tenant: Admitted) -> None:
    tenants.names.add(NAME)
    with pytest.raises(click.ClickException, match="there is one"):
        await tenant(NAME).__aenter__()
    assert tenants.names == {NAME}


async def _run(tenant: Admitted) -> None:
    async with tenant(NAME):
        await asyncio.Event().wait()


async def _interrupted(tenants: Tenants, tenant: Admitted) -> asyncio.Task[None]:
    """Interrupt a run, whose tenant is erased once it may ``go_on``."""
    tenants.go_on.clear()
    running = asyncio.create_task(_run(tenant))
    await asyncio.sleep(0)
    running.cancel()
    await tenants.erasing.wait()
    return running


async def test_smoke_second_signal_waits_for_the_tenant_to_be_erased(
    tenants: Tenants, tenant: Admitted
) -> None:
    running = await _interrupted(tenants, tenant)
    running.cancel()
    await asyncio.sleep(0)
    tenants.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tenants.names == set()


async def test_smoke_erasing_that_is_ended_names_the_tenant(
    tenants: Tenants, tenant: Admitted, capsys: pytest.CaptureFixture[str]
) -> None:
    running = await _interrupted(tenants, tenant)
    # As asyncio.run does after a second Ctrl-C.
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert f"the tenant {NAME} may be left (interrupted): run.py tenant remove {NAME} --erase" in (
        capsys.readouterr().err
    )
