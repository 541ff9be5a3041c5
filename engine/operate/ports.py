"""What people ask of the store, beside what devices do: its schema, its tenants, what waits for a person."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

import msgspec

from engine.model.domains import DomainPolicy, Fallback, Policy
from engine.model.rows import Conflict, Quarantined, Record, TenantUsage
from engine.plan.work import ResolveAnswer
from engine.runtime.ports import StoreError
from engine.wire.messages import Choice, ItemError, Status, Winner


class MigrationState(msgspec.Struct, frozen=True):
    """One migration; ``applied_at`` is None while it is not applied, ``number`` 0 if it is not known here."""

    number: int
    name: str
    applied_at: datetime | None


class TenantSummary(msgspec.Struct, frozen=True):
    """One tenant, with the number that its tokens may name.

    ``changes`` is how many versions of records were ever stored for it.
    """

    name: str
    number: int
    created_at: datetime
    changes: int


class TenantHolds(msgspec.Struct, frozen=True):
    """What one tenant holds; ``file_bytes`` are those of its files and of its uploads that are open."""

    name: str
    usage: TenantUsage
    file_bytes: int


class RefusedError(StoreError):
    """What was asked cannot be; one sentence says why and what may be."""


class NoTenantError(RefusedError):
    """There is no tenant of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no tenant {name}: `run.py tenant list` has the names of all")


class SchemaAdmin(Protocol):
    """The schema, changed by numbered migrations, each with a way back."""

    def migrate(self, to: int | None, *, down: bool) -> list[str]:
        """Bring the schema up to a migration (None: the newest), or down to it (None: one step).

        Returns the names of what was applied or taken back, in order. Safe on several hosts at once.
        Raises RefusedError, StoreError.
        """

    def status(self) -> list[MigrationState]:
        """List the migrations in order. Raises StoreError."""


class TenantAdmin(Protocol):
    """The tenants; servers notice within a second when one comes or goes."""

    async def add(self, name: str) -> None:
        """Create a tenant. Raises RefusedError if there is one of that name, StoreError."""

    async def number(self, name: str) -> int | None:
        """Return the number of a tenant, which none had before it and none will have; None without one.

        Raises StoreError.
        """

    async def removed_at(self, name: str) -> datetime | None:
        """Tell when the last tenant of a name was removed, None if none ever was. Raises StoreError."""

    async def revoke_token(self, token_id: str, tenant: str | None) -> bool:
        """Have tokens with a ``jti`` believed no more, of one tenant or of all; tell whether it is new.

        Raises RefusedError if there is no such tenant, StoreError.
        """

    async def tenants(self) -> list[TenantSummary]:
        """List tenants by name. Raises StoreError."""

    async def remove(self, name: str, *, erase: bool) -> None:
        """Remove a tenant, with all its data if ``erase``.

        Raises RefusedError if there is none, or it has data that is not to be erased; StoreError.
        """


class UsageAdmin(Protocol):
    """What tenants hold."""

    async def usage(self, tenant: str | None) -> list[TenantHolds]:
        """List what a tenant holds, or all of them by name.

        Raises RefusedError if there is no such tenant, StoreError.
        """


class PolicyInForce(msgspec.Struct, frozen=True):
    """How a tenant settles conflicts in a domain; ``own`` says that it was set for this tenant.

    ``fallback`` is None where the policy knows none.
    """

    tenant: str
    domain: str
    policy: Policy
    fallback: Fallback | None
    own: bool


class PolicyAdmin(Protocol):
    """The policies of tenants; servers follow within a second."""

    async def policies(self, tenant: str | None) -> list[PolicyInForce]:
        """List what is in force, of one tenant or of all, by tenant and domain.

        Raises RefusedError if there is no such tenant, StoreError.
        """

    async def set(self, tenant: str, domain: str, policy: DomainPolicy) -> None:
        """Set a tenant's own policy. Raises RefusedError for a tenant or domain that is not, StoreError."""

    async def unset(self, tenant: str, domain: str) -> bool:
        """Give a tenant the default of a domain again; tell whether it had a policy of its own.

        Raises RefusedError if there is no such tenant, or a domain that is neither set nor known; StoreError.
        """


class DeviceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One device as stored; servers write behind by seconds. ``health_score`` is as of now.

    ``tokens_from`` is when its last revocation was undone: tokens that were signed before stay refused.
    """

    tenant: str
    device_id: str
    first_seen_at: datetime
    last_seen_at: datetime
    last_sync_at: datetime | None
    total_syncs: int
    failed_syncs: int
    avg_sync_duration_ms: float | None
    conflicts: int
    health_score: int
    network_type: str | None
    app_version: str | None
    os_version: str | None
    revoked_at: datetime | None
    tokens_from: datetime | None


class DeviceAdmin(Protocol):
    """The devices of all tenants; servers notice within a second when one is revoked."""

    async def devices(self, tenant: str | None) -> list[DeviceSummary]:
        """List devices, of one tenant or of all, by tenant and id. Raises RefusedError, StoreError."""

    async def device(self, tenant: str, device_id: str) -> DeviceSummary:
        """Find one device. Raises RefusedError if there is no such tenant or device, StoreError."""

    async def revoke(self, tenant: str, device_id: str) -> bool:
        """Let a device in no more, also one that was never seen; tell whether it was let in until now.

        Raises RefusedError if there is no such tenant, StoreError.
        """

    async def known(self, tenant: str, device_id: str) -> bool:
        """Tell whether a device was ever seen, or revoked.

        Raises RefusedError if there is no such tenant, StoreError.
        """

    async def restore(self, tenant: str, device_id: str) -> bool:
        """Undo a revocation: tokens that are signed from now on count. Tell whether it was revoked.

        Raises RefusedError if there is no such tenant or device, StoreError.
        """


class EpochAdmin(Protocol):
    """What cursors carry, so that devices notice a restore."""

    def restored(self) -> bool:
        """Whether the database stands on another cluster than its epoch was made for. Raises StoreError."""

    def renew(self) -> str:
        """Make and return a new epoch; servers notice within a second. Raises RefusedError, StoreError."""


class ConflictSummary(msgspec.Struct, frozen=True):
    """A conflict without its data; ``base`` is None where the device knew of no record.

    ``changes`` is how many changes of the device it took in, ``op`` what they come to. ``outcome`` is
    ``open`` while it waits; ``settled_by`` is None where its policy settled it, which it does at once.
    ``settled_at`` is None while it waits.
    """

    tenant: str
    conflict_id: str
    domain: str
    record_id: str
    device_id: str
    policy: str
    op: str
    base: int | None
    server_version: int
    changes: int
    opened_at: str
    outcome: str
    settled_by: str | None
    settled_at: str | None


class ConflictCase(msgspec.Struct, frozen=True):
    """A conflict, open or settled, and the record as it stands now (None if it was erased)."""

    tenant: str
    conflict: Conflict
    record: Record | None


class ConflictAdmin(Protocol):
    """Where a person settles what policies leave open. An id is of ``tenant``, or of any with None."""

    async def list_open(self, tenant: str | None) -> list[ConflictSummary]:
        """List open conflicts by tenant, oldest first. Raises RefusedError if there is no such tenant."""

    async def list_settled(self, tenant: str | None, limit: int) -> list[ConflictSummary]:
        """List settled conflicts by tenant, latest first, ``limit`` of each tenant at most.

        Raises RefusedError if there is no such tenant.
        """

    async def find(self, conflict_id: str, tenant: str | None) -> ConflictCase:
        """Find a conflict. Raises RefusedError if there is none, or several tenants have one of that id."""

    async def settle(
        self,
        case: ConflictCase,
        choice: Choice,
        version: int,
        merged: bytes | None,
        changes: int | None = None,
    ) -> ResolveAnswer:
        """Settle a conflict as a supervisor's device does, decided on ``version`` of the record.

        ``merged`` is JSON, for the choice of that name; ``changes`` is how many of the device the decision
        was made on, None for any. Raises RefusedError, StoreError.
        """


class QuarantineSummary(msgspec.Struct, frozen=True):
    """A rejected item without its data; ``domain`` and ``record_id`` as far as it named them."""

    tenant: str
    quarantine_id: str
    device_id: str
    domain: str | None
    record_id: str | None
    code: str
    message: str
    at: str


class QuarantineCase(msgspec.Struct, frozen=True):
    """A rejected item as it was sent; ``retried_at`` is when a retry was last rejected."""

    tenant: str
    row: Quarantined
    retried_at: datetime | None


class Retried(msgspec.Struct, frozen=True):
    """What became of an item that was sent again, as ``engine.wire.messages.Result`` tells a device."""

    domain: str | None
    id: str | None
    status: Status
    version: int | None = None
    winner: Winner | None = None
    policy: str | None = None
    conflict_id: str | None = None
    error: ItemError | None = None


class Recovered(msgspec.Struct, frozen=True):
    """What became of an item, and of those that were rejected because it was, by quarantine_id.

    ``record`` is the server's where that one won against the item, so that this stays.
    """

    item: Retried
    behind: dict[str, Retried] = {}
    record: Record | None = None


class QuarantineAdmin(Protocol):
    """Where a person recovers what was rejected. An id is of ``tenant``, or of any with None."""

    async def items(self, tenant: str | None) -> list[QuarantineSummary]:
        """List items by tenant, oldest first. Raises RefusedError if there is no such tenant."""

    async def find(self, quarantine_id: str, tenant: str | None) -> QuarantineCase:
        """Find an item. Raises RefusedError if there is none, or several tenants have one of that id."""

    async def behind(self, row: Quarantined) -> list[Quarantined]:
        """List the items that were rejected because this one was. Raises StoreError."""

    async def drop(self, case: QuarantineCase) -> None:
        """Give an item up, for good. Raises RefusedError if it left the quarantine just now, StoreError."""

    async def retry(self, case: QuarantineCase, data: bytes | None, *, hold: bool) -> Recovered:
        """Send an item again as its device did, with other ``data`` (JSON) if given.

        Those behind it, which were rejected because it was, go along, in order and in the same transaction.
        What is rejected again, or loses to the server's record, stays; with ``hold`` any conflict is held for
        a person instead. What else becomes of an item takes it out of the quarantine in the transaction that
        stores it, and whatever is tried at the same time, it is stored once. Raises RefusedError, StoreError.
        """


class TenantAbandonment(msgspec.Struct, frozen=True):
    """What became of a tenant's uploads that ended within a day; ``ratio`` is the part that was given up."""

    tenant: str
    finished: int
    abandoned: int
    ratio: float


class CleanedUp(msgspec.Struct, frozen=True):
    """What one run came to: uploads that expired, files freed, rows forgotten, bytes that no row wanted.

    ``emptied`` are deleted records whose last data were dropped; ``conflicts``, ``quarantined`` and
    ``event_days`` are what [retention] keeps no longer.
    ``left`` is what could not be removed now; ``abandonment_ratio`` is None where nothing ended.
    """

    expired: int
    freed: int
    forgotten: int
    emptied: int
    conflicts: int
    quarantined: int
    event_days: int
    orphans: int
    orphan_bytes: int
    left: int
    abandonment_ratio: float | None
    abandonment: list[TenantAbandonment]


class CleanupAdmin(Protocol):
    """What servers do for uploads on schedule."""

    async def clean_up(self) -> CleanedUp:
        """Clean up now. Raises RefusedError while another process does, StoreError."""


class CheckResult(msgspec.Struct, frozen=True):
    """What was looked at and found; ``remedy`` says what to do, and is empty where all is right."""

    level: Literal["ok", "warning", "fault"]
    subject: str
    found: str
    remedy: str = ""
