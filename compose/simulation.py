"""Access of simulated devices to a deployment: the address of its server, and tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import click

from bench.client.simulate import Access
from compose.deployment import open_deployment
from compose.signing import signed_for_device
from engine.runtime.settings import SettingsError
from handlers.commands.deployment import DeploymentError
from handlers.http.keys import signing_key
from handlers.http.tokens import UnusableKeyError
from handlers.operate.own_address import own_host


def open_access(config: Path | None, data_dir: str | None) -> Access:
    """Read the settings and the key of tokens. Raises ClickException."""
    try:
        deployment = open_deployment(config, {} if data_dir is None else {"data": {"dir": data_dir}})
        key = signing_key(deployment.keys())
    except (SettingsError, DeploymentError, UnusableKeyError) as error:
        raise click.ClickException(str(error)) from None
    settings = deployment.settings

    @cache  # a device comes back with its token
    def sign(tenant: str, device: str) -> str:
        return signed_for_device(key, settings, deployment.note, tenant, device)

    return Access(f"http://{own_host(settings.server.host)}:{settings.server.port}", sign)
