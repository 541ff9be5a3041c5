"""What `serve` and commands check before they begin, and what `serve` makes."""

from __future__ import annotations

from pathlib import Path

import structlog

from engine.operate.ports import RefusedError
from engine.runtime.settings import Settings
from handlers.commands.deployment import DeploymentError
from handlers.commands.serve import DEMO_TENANT
from storage.embedded.servers import Services
from storage.postgres.commands import command_database
from storage.postgres.roles.guard import access_findings, check_roles
from storage.stores.epoch import PostgresEpoch
from storage.stores.tenants import PostgresTenants

_log = structlog.get_logger()


def check_database_roles(at: Services) -> None:
    """Refuse roles that lack what they need, and log how row-level security could be passed by.

    Raises:
        DeploymentError: The DSNs do not lead to one database, or a role may not use or see a table.
        StoreError: The database is away.
    """
    try:
        ways = check_roles(at.dsn, at.owner, at.jobs)
    except RefusedError as error:
        raise DeploymentError(str(error)) from None
    for one in access_findings(at.dsn, at.owner, at.jobs):
        if one.level == "fault":
            raise DeploymentError(f"{one.found}: {one.remedy}")
    for found, remedy in ways:
        _log.warning("row_security_bypassed", reason=found, remedy=remedy)


def check_file_storage(settings: Settings) -> None:
    """Refuse a data directory that is not there, where files are kept in it. Raises DeploymentError."""
    data_dir = Path(settings.data.dir)
    if not (settings.s3.bucket or data_dir.is_dir()):
        raise DeploymentError(
            f"there is no data directory {data_dir.resolve()}, where files are kept: set data.dir"
            " to the server's, or give --data-dir DIR"
        )


def refuse_restored(dsn: str) -> None:
    """Refuse a database of another cluster than the epoch's. Raises DeploymentError, StoreError."""
    if PostgresEpoch(dsn).restored():
        raise DeploymentError("this database was restored: run `run.py epoch renew`, then try again")


async def ensure_demo_tenant(dsn: str) -> int | None:
    """Add the tenant of the embedded default; return its number. Raises StoreError."""
    async with command_database(dsn) as database:
        tenants = PostgresTenants(database)
        await tenants.ensure(DEMO_TENANT)
        return await tenants.number(DEMO_TENANT)
