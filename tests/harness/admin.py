"""What commands do to tenants and devices, in one call of a test."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from bench.harness import administer as own_loop
from bench.harness.clusters import as_role
from storage.postgres.pool import Database
from storage.stores.devices import PostgresDevices
from storage.stores.tenants import PostgresTenants

Result = TypeVar("Result")


def administer(dsn: str, call: Callable[[Database], Coroutine[Any, Any, Result]]) -> Result:
    """Run a call on a database's stores as a command does, with the roles of its deployment."""
    return own_loop.administer(as_role(dsn, "serving"), call, as_role(dsn, "jobs"))


def add_tenants(dsn: str, *names: str) -> None:
    """Create tenants that must not exist yet."""
    for name in names:
        administer(dsn, lambda database, name=name: PostgresTenants(database).add(name))  # type: ignore[misc]


def ensure_tenant(dsn: str, name: str) -> None:
    """Create a tenant unless there is one of that name."""
    administer(dsn, lambda database: PostgresTenants(database).ensure(name))


def remove_tenant(dsn: str, name: str, *, erase: bool) -> None:
    """Remove a tenant."""
    administer(dsn, lambda database: PostgresTenants(database).remove(name, erase=erase))


def revoke_token(dsn: str, token_id: str, tenant: str | None) -> bool:
    """Revoke tokens by their ``jti``."""
    return administer(dsn, lambda database: PostgresTenants(database).revoke_token(token_id, tenant))


def revoke_device(dsn: str, tenant: str, device_id: str) -> bool:
    """Revoke a device."""
    return administer(dsn, lambda database: PostgresDevices(database).revoke(tenant, device_id))


def restore_device(dsn: str, tenant: str, device_id: str) -> bool:
    """Undo the revocation of a device."""
    return administer(dsn, lambda database: PostgresDevices(database).restore(tenant, device_id))
