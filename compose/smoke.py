"""The deployment that ``run.py smoke`` tries: its address, tokens, and a tenant for the time of a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click

from bench.smoke.command import Deployed
from compose.deployment import Deployment, open_deployment
from compose.signing import signed_for_device
from engine.operate.ports import NoTenantError, RefusedError
from engine.runtime.ports import StoreError, StoreUnavailableError
from engine.runtime.settings import SettingsError
from engine.seal.master_keys import MasterKeyError
from handlers.commands.deployment import DeploymentError
from handlers.http.keys import signing_key
from handlers.http.tokens import UnusableKeyError
from handlers.operate.own_address import own_host
from handlers.operate.printing import say

#: After these a tenant was not added: there may be another one of its name, or no database was reached.
_NOT_ADDED: Final = (SettingsError, DeploymentError, RefusedError, StoreUnavailableError)


def open_deployed(config: Path | None, data_dir: str | None) -> Deployed:
    """Read the settings. Raises ClickException."""
    with _in_a_sentence():
        deployment = open_deployment(config, {} if data_dir is None else {"data": {"dir": data_dir}})
    server = deployment.settings.server
    url = f"http://{own_host(server.host)}:{server.port}"
    return Deployed(url, partial(_signer, deployment), partial(_tenant, deployment))


def _signer(deployment: Deployment, tenant: str) -> Callable[[str], str]:
    with _in_a_sentence():
        key = signing_key(deployment.keys())
    return partial(signed_for_device, key, deployment.settings, deployment.note, tenant)


@asynccontextmanager
async def _tenant(deployment: Deployment, name: str) -> AsyncIterator[None]:
    """Add a tenant, and erase it in the end, also if it is not known whether it was added.

    Raises ClickException.
    """
    may_be_there = True
    try:
        with _in_a_sentence():
            try:
                async with deployment.tenants() as tenants:
                    await tenants.add(name)
            except _NOT_ADDED:
                may_be_there = False
                raise
        say(f"tenant {name} of {deployment.database()}, erased in the end", err=True)
        yield
    finally:
        if may_be_there:
            await _erased(deployment, name)


async def _erased(deployment: Deployment, name: str) -> None:
    """Erase a tenant. A second signal waits for that; a second Ctrl-C ends it, and says what is left."""
    erasing = asyncio.ensure_future(_erase(deployment, name))
    interrupted = None
    while not erasing.done():
        try:
            await asyncio.wait({erasing})
        except asyncio.CancelledError as error:
            interrupted = error
    await erasing
    if interrupted is not None:
        raise interrupted


async def _erase(deployment: Deployment, name: str) -> None:
    left = f"run.py tenant remove {name} --erase"
    try:
        async with deployment.tenants() as tenants:
            await tenants.remove(name, erase=True)
    except NoTenantError:
        pass  # it was not added
    except (DeploymentError, StoreError, MasterKeyError, OSError) as error:
        say(f"the tenant {name} may be left ({error}): {left}", err=True)
    except BaseException:
        say(f"the tenant {name} may be left (interrupted): {left}", err=True)
        raise


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    try:
        yield
    except (SettingsError, DeploymentError, StoreError, UnusableKeyError, MasterKeyError) as error:
        raise click.ClickException(str(error)) from None
