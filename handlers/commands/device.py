"""``run.py device``: lists, shows, revokes and restores devices."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from handlers.commands.deployment import (
    Deployment,
    as_json,
    checked_device,
    confirm,
    of_tenant,
    opened,
    with_deployment,
)
from handlers.commands.terminal.tables import table
from handlers.operate.printing import say


@click.group("device", short_help="List, show, revoke and restore devices.")
def device() -> None:
    """List, show, revoke and restore devices. Counts reach the database within seconds."""


@device.command("list", epilog="Example: run.py device list --tenant acme")
@of_tenant
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def list_(deployment: Deployment, *, tenant: str | None, json_: bool) -> None:
    """List devices, with their health score as of now."""
    async with opened("reading", deployment.devices()) as devices:
        found = await devices.devices(tenant)
    if json_:
        as_json(found)
    else:
        table(
            [
                (
                    one.tenant,
                    one.device_id,
                    _minute(one.last_sync_at),
                    str(one.total_syncs),
                    str(one.failed_syncs),
                    str(one.conflicts),
                    str(one.health_score),
                    one.app_version or "",
                    _minute(one.revoked_at),
                )
                for one in found
            ],
            (
                "TENANT",
                "DEVICE",
                "LAST SYNC",
                "SYNCS",
                "FAILED",
                "CONFLICTS",
                "HEALTH",
                "APP",
                "REVOKED",
            ),
            spare=("APP", "CONFLICTS", "FAILED", "SYNCS"),
        )


@device.command("show", epilog="Example: run.py device show --tenant acme phone-7")
@click.option("--tenant", metavar="T", required=True, help="The device's tenant.")
@click.argument("device_id", metavar="DEVICE")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def show(deployment: Deployment, *, tenant: str, device_id: str, json_: bool) -> None:
    """Show everything that is known about a device."""
    async with opened("reading", deployment.devices()) as devices:
        found = await devices.device(tenant, device_id)
    if json_:
        as_json(found)
    else:
        fields = msgspec.structs.asdict(found)
        table([(name, _shown(value)) for name, value in fields.items()], ("FIELD", "VALUE"))


@device.command("revoke", epilog="Example: run.py device revoke --tenant acme phone-7")
@click.option("--tenant", metavar="T", required=True, help="The device's tenant.")
@click.argument("device_id", metavar="DEVICE", callback=checked_device)
@click.option("--yes", is_flag=True, help="Do not ask about a device that was never seen.")
@with_deployment(changes=True)
async def revoke(deployment: Deployment, *, tenant: str, device_id: str, yes: bool) -> None:
    """Revoke a device. Its connections close within a second, and all its tokens are refused.

    For an id that was never seen it asks first. `device restore` undoes a revocation.
    """
    async with opened("revoking", deployment.devices()) as devices:
        if not yes and not await devices.known(tenant, device_id):
            confirm(f"No device {device_id} of {tenant} was ever seen. Revoke that id all the same?")
        newly = await devices.revoke(tenant, device_id)
    done = f"revoked {device_id} of {tenant}" if newly else f"{device_id} of {tenant} was revoked already"
    say(done)


@device.command("restore", epilog="Example: run.py device restore --tenant acme phone-7")
@click.option("--tenant", metavar="T", required=True, help="The device's tenant.")
@click.argument("device_id", metavar="DEVICE", callback=checked_device)
@with_deployment(changes=True)
async def restore(deployment: Deployment, *, tenant: str, device_id: str) -> None:
    """Undo a revocation, for tokens that are signed from now on.

    Older tokens stay refused, and so do tokens without an iat. Sign a new token for the device.
    """
    async with opened("restoring", deployment.devices()) as devices:
        restored = await devices.restore(tenant, device_id)
    done = "restored, for tokens signed from now on" if restored else "is not revoked: nothing to restore"
    say(f"{device_id} of {tenant} {done}")


def _minute(at: datetime | None) -> str:
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
