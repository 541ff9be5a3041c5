"""Ports of administration: what operators ask of the store, for commands and later for the console."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from engine.cluster.jobs import Counts
from engine.model.domains import DomainPolicy
from engine.model.minutes import TenantMinutes
from engine.model.rows import Quarantined
from engine.operate.monitor.judge import DevicesSeen
from engine.operate.monitor.report import Judgement
from engine.operate.monitor.statuses import LastHealth
from engine.operate.rows import (
    AuditEntry,
    CleanedUp,
    ConflictCase,
    ConflictSummary,
    DeviceSummary,
    JobSummary,
    MigrationState,
    PolicyInForce,
    QuarantineCase,
    QuarantineSummary,
    Recovered,
    SignedToken,
    TenantSummary,
    TenantUsageSummary,
    UploadsEnded,
)
from engine.plan.work import ResolveAnswer
from engine.runtime.ports import StoreError
from engine.wire.messages import Choice


class RefusedError(StoreError):
    """The request is impossible; one sentence says why, and what is possible."""


class NoTenantError(RefusedError):
    """There is no tenant of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no tenant {name}: `run.py tenant list` has the names of all")


class SchemaAdmin(Protocol):
    """Numbered migrations of the schema, up and down."""

    def migrate(self, to: int | None, *, down: bool) -> list[str]:
        """Bring the schema up or down to a migration. Several hosts may do so at once.

        Args:
            to: The last migration that stays applied. None is the newest, or with ``down`` one step back.
            down: Whether later migrations are taken back.

        Returns:
            The names of the migrations that were applied or taken back, in order.

        Raises:
            RefusedError: There is no such migration, or servers use the schema.
            StoreError: The database is away, or refused a statement.
        """

    def taken_back(self, to: int | None) -> list[str]:
        """Return the names of the migrations that ``migrate`` would take back, in order.

        Raises:
            RefusedError: It would refuse.
            StoreError: The database is away.
        """

    def status(self) -> list[MigrationState]:
        """List the migrations in order. Raises StoreError."""


class TenantAdmin(Protocol):
    """Tenants. Servers notice each change within a second."""

    async def add(self, name: str) -> None:
        """Create a tenant. Raises RefusedError if there is one of that name, StoreError."""

    async def number(self, name: str) -> int | None:
        """Return the number of a tenant, None if there is no such tenant. No number is used twice.

        Raises StoreError.
        """

    async def removed_at(self, name: str) -> datetime | None:
        """Return when the last tenant of a name was removed, None if none ever was. Raises StoreError."""

    async def revoke_token(self, token_id: str, tenant: str | None) -> bool:
        """Refuse tokens with a ``jti`` from now on.

        Args:
            token_id: The ``jti``.
            tenant: The name of their tenant; None is every tenant, and people.

        Returns:
            Whether they were accepted before.

        Raises:
            RefusedError: There is no such tenant.
            StoreError: The database is away.
        """

    async def tenants(self) -> list[TenantSummary]:
        """List tenants by name. Raises StoreError."""

    async def remove(self, name: str, *, erase: bool, watch: Callable[[int], None] = ...) -> None:
        """Remove a tenant, with all its data if ``erase``.

        Args:
            name: The tenant.
            erase: Whether its data are erased with it.
            watch: Is told how many rows were erased so far.

        Raises:
            RefusedError: There is no such tenant, or it has data and ``erase`` is false.
            StoreError: The database is away.
        """


class TokenAdmin(Protocol):
    """What signing a token asks and leaves."""

    async def number(self, name: str) -> int | None:
        """Return the number of a tenant, None if there is no such tenant. Raises StoreError."""

    async def note_signed(self, token: SignedToken) -> None:
        """Write the event of a token that was signed. Raises StoreError."""


class UsageAdmin(Protocol):
    """The usage of tenants."""

    async def usage(self, tenant: str | None) -> list[TenantUsageSummary]:
        """Return the usage of one tenant, or of all by name (None).

        Raises RefusedError if there is no such tenant, StoreError.
        """


class PolicyAdmin(Protocol):
    """The conflict policies of tenants. Servers follow each change within a second."""

    async def policies(self, tenant: str | None) -> list[PolicyInForce]:
        """List the policies in force, of one tenant or of all (None), by tenant and domain.

        Raises RefusedError if there is no such tenant, StoreError.
        """

    async def set(self, tenant: str, domain: str, policy: DomainPolicy) -> None:
        """Set a tenant's own policy. Raises RefusedError for an unknown tenant or domain, StoreError."""

    async def unset(self, tenant: str, domain: str) -> bool:
        """Remove a tenant's own policy; return whether it had one.

        Raises RefusedError for an unknown tenant, or a domain that is neither set nor known; StoreError.
        """


class DeviceAdmin(Protocol):
    """The devices of all tenants. Servers notice a revocation within a second."""

    async def devices(self, tenant: str | None) -> list[DeviceSummary]:
        """List devices, of one tenant or of all (None), by tenant and id. Raises RefusedError, StoreError."""

    async def device(self, tenant: str, device_id: str) -> DeviceSummary:
        """Find one device. Raises RefusedError if there is no such tenant or device, StoreError."""

    async def revoke(self, tenant: str, device_id: str) -> bool:
        """Refuse a device from now on, also one that was never seen; return whether it was accepted before.

        Raises RefusedError if there is no such tenant, StoreError.
        """

    async def known(self, tenant: str, device_id: str) -> bool:
        """Return whether a device was ever seen, or revoked.

        Raises RefusedError if there is no such tenant, StoreError.
        """

    async def restore(self, tenant: str, device_id: str) -> bool:
        """Undo a revocation, for tokens that are signed from now on; return whether it was revoked.

        Raises RefusedError if there is no such tenant or device, StoreError.
        """


class EpochAdmin(Protocol):
    """The epoch: cursors carry it, so that devices notice a restore."""

    def restored(self) -> bool:
        """Return whether the epoch was made for another cluster. Raises StoreError."""

    def renew(self) -> str:
        """Create and return a new epoch; servers notice within a second. Raises RefusedError, StoreError."""


class ConflictAdmin(Protocol):
    """Conflicts for a person. An id is looked for in ``tenant``, or in all tenants (None)."""

    async def list_open(self, tenant: str | None) -> list[ConflictSummary]:
        """List open conflicts by tenant, oldest first. Raises RefusedError if there is no such tenant."""

    async def list_settled(self, tenant: str | None, limit: int) -> list[ConflictSummary]:
        """List settled conflicts by tenant, latest first, at most ``limit`` of each tenant.

        Raises RefusedError if there is no such tenant.
        """

    async def find(self, conflict_id: str, tenant: str | None) -> ConflictCase:
        """Find a conflict. Raises RefusedError if there is none, or if several tenants have that id."""

    async def note_shown(self, case: ConflictCase, *, revealed: bool) -> None:
        """Write the event of data that a person is about to see. Raises StoreError.

        Args:
            case: The conflict.
            revealed: Personal fields are shown, too.
        """

    async def settle(
        self,
        case: ConflictCase,
        choice: Choice,
        version: int,
        merged: bytes | None,
        changes: int | None = None,
    ) -> ResolveAnswer:
        """Settle a conflict, as a supervisor's device does.

        Args:
            case: The conflict.
            choice: The side that becomes the next version.
            version: The version of the record that the decision is based on.
            merged: The data of the choice ``merged``, as JSON.
            changes: The count of the device's changes that the decision is based on; None is any.

        Raises:
            RefusedError: The record or the changes are newer, or the choice is impossible.
            StoreError: The database is away.
        """


class QuarantineAdmin(Protocol):
    """Rejected items for a person. An id is looked for in ``tenant``, or in all tenants (None)."""

    async def items(self, tenant: str | None) -> list[QuarantineSummary]:
        """List items by tenant, oldest first. Raises RefusedError if there is no such tenant."""

    async def find(self, quarantine_id: str, tenant: str | None) -> QuarantineCase:
        """Find an item. Raises RefusedError if there is none, or if several tenants have that id."""

    async def note_shown(self, case: QuarantineCase, *, revealed: bool) -> None:
        """Write the event of data that a person is about to see. Raises StoreError.

        Args:
            case: The item.
            revealed: Personal fields are shown, too.
        """

    async def behind(self, row: Quarantined) -> list[Quarantined]:
        """List the items that were rejected because of this one. Raises StoreError."""

    async def drop(self, case: QuarantineCase) -> None:
        """Delete an item. Raises RefusedError if it left the quarantine meanwhile, StoreError."""

    async def retry(self, case: QuarantineCase, data: bytes | None, *, hold: bool) -> Recovered:
        """Send an item again as its device did.

        The items behind it, which were rejected because of it, go along, in order and in one transaction. An
        item stays if it is rejected again or loses to the server's record. Any other item leaves the
        quarantine in the transaction that stores it, so that parallel retries store it once.

        Args:
            case: The item.
            data: JSON in place of the item's own data; None keeps them.
            hold: Whether any conflict is left to a person.

        Raises:
            RefusedError: The item cannot be sent, or left the quarantine meanwhile.
            StoreError: The database is away.
        """


class AuditReads(Protocol):
    """The audit log."""

    async def entries(
        self, tenant: str | None, actor: str | None, since: datetime, most: int
    ) -> list[AuditEntry]:
        """Read the latest ``most`` events since an instant, the earliest first.

        Args:
            tenant: The name that the tenant had; None is all, and events of none.
            actor: The name of the actor; None is anybody.
            since: Their earliest time.
            most: How many are returned.

        Raises:
            StoreError: The database is away.
        """


class MinuteReads(Protocol):
    """The minutes of all processes, summed. Those of the last ten seconds may not be stored yet."""

    async def windows(self, tenant: str | None, since_us: int, until_us: int) -> list[TenantMinutes]:
        """Sum the minutes that began in a window, for each tenant that has any.

        Args:
            tenant: One tenant; None is all tenants, and what no tenant is known for.
            since_us: The window's start, inclusive. Minutes are kept for 48 hours, whole hours for longer.
            until_us: The window's end, exclusive.

        Raises:
            RefusedError: There is no such tenant.
            StoreError: The database is away.
        """


class MonitorReads(Protocol):
    """Counts of tenants that no minute has. ``tenant`` is one tenant; None is all. Both raise StoreError."""

    async def devices_seen(self, tenant: str | None) -> Mapping[str | None, DevicesSeen]:
        """Sum up the devices of each tenant that were seen within 7 days, revoked ones left out.

        A tenant without devices is in the result, too: silence is to be seen.

        Their scores are as of now: that of a silent device sinks.
        """

    async def uploads_ended(self, tenant: str | None, since_us: int) -> list[UploadsEnded]:
        """Count by tenant how uploads ended since an instant; cancelled ones are left out."""


class HealthStore(Protocol):
    """The last judgement of all tenants, for all processes. Both raise StoreError."""

    async def last(self) -> LastHealth | None:
        """Read the last judgement, None before the first one."""

    async def replace(self, health: LastHealth) -> None:
        """Store a judgement in place of the last one."""


class HealthMonitor(Protocol):
    """Judges the health of tenants."""

    async def check(self, tenant: str | None, window_s: int) -> Judgement:
        """Judge one tenant, or all (None), by the minutes up to now.

        Raises:
            RefusedError: There is no such tenant.
            StoreError: The database is away.
        """


class AlertingMonitor(HealthMonitor, Protocol):
    """Judges, and tells receivers of alerts what a check found."""

    async def send(self, patience_s: float) -> int:
        """Send what is due, again and again where a receiver fails.

        Returns:
            How many alerts are left; a later check, or a server, sends them.

        Raises:
            StoreError: The database is away.
        """

    async def keep_sending(self) -> None:
        """Send whatever becomes due, and tell of a database that is away, until cancelled."""


class JobAdmin(Protocol):
    """The jobs that servers run on schedule.

    A run is refused with RefusedError while another process runs the job. ``watch`` is given what the run
    counts, which grows as it goes on.
    """

    async def jobs(self) -> list[JobSummary]:
        """List the jobs. Raises StoreError."""

    async def run(self, job: str, watch: Callable[[Counts], None]) -> Counts:
        """Run a job now, and return what it counted. Raises RefusedError, StoreError."""

    async def clean_up(self, watch: Callable[[Counts], None]) -> CleanedUp:
        """Run the clean-up of uploads and of all else now. Raises RefusedError, StoreError."""
