"""What people ask of the store, beside what devices do: its schema, its tenants."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec

from engine.ports import StoreError


class MigrationState(msgspec.Struct, frozen=True):
    """One migration; ``applied_at`` is None while it is not applied, ``number`` 0 if it is not known here."""

    number: int
    name: str
    applied_at: datetime | None


class TenantSummary(msgspec.Struct, frozen=True):
    """One tenant. ``changes`` is how many versions of records were ever stored for it."""

    name: str
    created_at: datetime
    changes: int


class RefusedError(StoreError):
    """What was asked cannot be; one sentence says why and what may be."""


class Schema(Protocol):
    """The schema, changed by numbered migrations, each with a way back."""

    def migrate(self, to: int | None, *, down: bool) -> list[str]:
        """Bring the schema up to a migration (None: the newest), or down to it (None: one step).

        Returns the names of what was applied or taken back, in order. Safe on several hosts at once.
        Raises RefusedError, StoreError.
        """

    def status(self) -> list[MigrationState]:
        """List the migrations in order. Raises StoreError."""


class Tenants(Protocol):
    """The tenants; servers notice within a second when one comes or goes."""

    def add(self, name: str) -> None:
        """Create a tenant. Raises RefusedError if there is one of that name, StoreError."""

    def tenants(self) -> list[TenantSummary]:
        """List tenants by name. Raises StoreError."""

    def remove(self, name: str, *, erase: bool) -> None:
        """Remove a tenant, with all its data if ``erase``.

        Raises RefusedError if there is none, or it has data that is not to be erased; StoreError.
        """


class Epoch(Protocol):
    """What cursors carry, so that devices notice a restore."""

    def restored(self) -> bool:
        """Whether the database stands on another cluster than its epoch was made for. Raises StoreError."""

    def renew(self) -> str:
        """Make and return a new epoch; servers notice within a second. Raises RefusedError, StoreError."""
