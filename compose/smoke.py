"""The deployment that ``run.py smoke`` tries: its address, tokens, and a tenant for the time of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import click

from bench.smoke.command import Deployed
from compose.deployment import Deployment, open_deployment
from compose.signing import signed_for_device
from engine.runtime.ports import StoreError
from engine.runtime.settings import SettingsError
from engine.seal.master_keys import MasterKeyError
from handlers.commands.deployment import DeploymentError
from handlers.http.keys import signing_key
from handlers.http.tokens import UnusableKeyError
from handlers.operate.printing import say


def open_deployed(config: Path | None, data_dir: str | None) -> Deployed:
    """Read the settings. Raises ClickException."""
    with _in_a_sentence():
        deployment = open_deployment(config, {} if data_dir is None else {"data": {"dir": data_dir}})
    server = deployment.settings.server
    everywhere = server.host in {"0.0.0.0", "::"}  # noqa: S104  # compared, not listened on
    host = "127.0.0.1" if everywhere else server.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
    return Deployed(url, partial(_signer, deployment), partial(_tenant, deployment))


def _signer(deployment: Deployment, tenant: str) -> Callable[[str], str]:
    with _in_a_sentence():
        key = signing_key(deployment.keys())
    return partial(signed_for_device, key, deployment.settings.auth, deployment.note, tenant)


@asynccontextmanager
async def _tenant(deployment: Deployment, name: str) -> AsyncIterator[None]:
    """Add a tenant, and erase it in the end. Raises ClickException."""
    with _in_a_sentence():
        async with deployment.tenants() as tenants:
            await tenants.add(name)
    say(f"tenant {name} of {deployment.database()}, erased in the end", err=True)
    try:
        yield
    finally:
        try:
            async with deployment.tenants() as tenants:
                await tenants.remove(name, erase=True)
        except (DeploymentError, StoreError, MasterKeyError, OSError) as error:
            say(f"the tenant {name} is left ({error}): run.py tenant remove {name} --erase", err=True)


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    try:
        yield
    except (SettingsError, DeploymentError, StoreError, UnusableKeyError, MasterKeyError) as error:
        raise click.ClickException(str(error)) from None
