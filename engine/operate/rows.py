"""What commands and the console show: summaries, cases and results of administration."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from engine.model.audit import ActorKind
from engine.model.domains import Fallback, Policy
from engine.model.rows import Conflict, Quarantined, Record, TenantUsage
from engine.wire.messages import ItemError, Status, Winner


class MigrationState(msgspec.Struct, frozen=True):
    """One migration; ``applied_at`` is None if it is not applied, ``number`` 0 if it is unknown here."""

    number: int
    name: str
    applied_at: datetime | None


class TenantSummary(msgspec.Struct, frozen=True):
    """One tenant; its tokens may name ``number``. ``changes`` counts all record versions ever stored."""

    name: str
    number: int
    created_at: datetime
    changes: int


class TenantUsageSummary(msgspec.Struct, frozen=True):
    """The usage of one tenant.

    ``file_bytes`` counts its files and its open uploads, ``device_rows`` the devices that were ever seen.
    """

    name: str
    usage: TenantUsage
    file_bytes: int
    device_rows: int


class PolicyInForce(msgspec.Struct, frozen=True):
    """How a tenant settles conflicts in a domain; ``own`` if it was set for this tenant.

    ``fallback`` is None if the policy has none.
    """

    tenant: str
    domain: str
    policy: Policy
    fallback: Fallback | None
    own: bool


class DeviceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One device. Servers store its counts with a delay of seconds; ``health_score`` is as of now.

    ``battery`` (0 to 1), ``queue_depth`` and ``storage_free_mb`` are what its heartbeats told until
    ``heartbeat_at``. ``tokens_from`` is when its last revocation was undone: tokens that were signed before
    stay refused.
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
    battery: float | None
    queue_depth: int | None
    storage_free_mb: float | None
    heartbeat_at: datetime | None
    revoked_at: datetime | None
    tokens_from: datetime | None


class ConflictSummary(msgspec.Struct, frozen=True):
    """A conflict without its data.

    ``base`` is None if the device knew of no record. ``changes`` is how many changes of the device are part
    of it, ``op`` what they amount to. ``outcome`` is ``open`` while it waits for a person, and then
    ``settled_at`` is None. ``settled_by`` is None if its policy settled it.
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
    """A conflict, open or settled, and the current record (None if it was erased)."""

    tenant: str
    conflict: Conflict
    record: Record | None


class QuarantineSummary(msgspec.Struct, frozen=True):
    """A rejected item without its data; ``domain`` and ``record_id`` are None if it named none."""

    tenant: str
    quarantine_id: str
    device_id: str
    domain: str | None
    record_id: str | None
    code: str
    message: str
    at: str


class QuarantineCase(msgspec.Struct, frozen=True):
    """A rejected item as it was sent; ``retried_at`` is the time of the last rejected retry."""

    tenant: str
    row: Quarantined
    retried_at: datetime | None


class Retried(msgspec.Struct, frozen=True):
    """The result of an item that was sent again; as ``engine.wire.messages.Result``, which devices get."""

    domain: str | None
    id: str | None
    status: Status
    version: int | None = None
    winner: Winner | None = None
    policy: str | None = None
    conflict_id: str | None = None
    error: ItemError | None = None


class Recovered(msgspec.Struct, frozen=True):
    """The results of an item, and of the items that were rejected because of it, by quarantine_id.

    ``record`` is the server's record if that one won; then the item stays.
    """

    item: Retried
    behind: dict[str, Retried] = {}
    record: Record | None = None


class TenantAbandonment(msgspec.Struct, frozen=True):
    """The uploads of a tenant that ended within a day; ``ratio`` is the share that was given up."""

    tenant: str
    finished: int
    abandoned: int
    ratio: float


class UploadsEnded(NamedTuple):
    """The uploads of a tenant that ended within a day, without those that their device cancelled."""

    tenant: str
    finished: int
    abandoned: int


class AlertTargets(msgspec.Struct, frozen=True):
    """Where ``run.py monitor`` sends alerts, and of what.

    ``threshold`` None is that of the settings. ``window_s`` is the length of the window that is judged.
    """

    webhook: str | None = None
    slack_webhook: str | None = None
    threshold: Literal["any", "warning", "critical"] | None = None
    window_s: int = 0


class AlertTest(NamedTuple):
    """The kind of a receiver, and why it did not take a test; None if it took it."""

    target: str
    fault: str | None


class CleanedUp(msgspec.Struct, frozen=True):
    """Counts of one clean-up.

    ``expired`` uploads, ``freed`` files, ``forgotten`` rows of ended uploads, ``orphans``: files that no row
    lists. ``emptied`` are deleted records whose last data were dropped. ``conflicts``, ``quarantined`` and
    ``event_days`` were deleted by [retention], ``answer_days`` by [idempotency]. ``left`` could not be
    removed now. ``abandonment_ratio`` is None if no upload ended.
    """

    expired: int
    freed: int
    forgotten: int
    emptied: int
    conflicts: int
    quarantined: int
    event_days: int
    answer_days: int
    orphans: int
    orphan_bytes: int
    left: int
    abandonment_ratio: float | None
    abandonment: list[TenantAbandonment]


class JobRunSummary(msgspec.Struct, frozen=True):
    """One run of a job.

    ``outcome`` is ``running``, ``succeeded``, ``failed``, ``stopped`` (its process ended in an orderly way)
    or ``killed``. ``attempt`` counts the runs of this due time; ``counts`` is what the run did, by name.
    """

    due_at: datetime
    began_at: datetime
    duration_s: float
    outcome: str
    attempt: int
    by_hand: bool
    place: str
    reason: str | None
    counts: dict[str, float | None]


class JobSummary(msgspec.Struct, frozen=True):
    """A job: its cron expression, when it is due next, and its last run, None before the first."""

    job: str
    schedule: str
    timezone: str
    next_at: datetime
    last: JobRunSummary | None


class SignedToken(msgspec.Struct, frozen=True):
    """What is kept of a token that was signed; ``tenant_number`` is None if the database was not asked."""

    token_id: str
    role: str
    expires_at: str
    tenant: str | None
    tenant_number: int | None
    device_id: str | None
    user: str | None


class AuditEntry(msgspec.Struct, frozen=True):
    """One row of the audit log (``engine.model.audit``), as it was written."""

    at: datetime
    event: str
    actor_kind: ActorKind
    actor: str
    tenant: str | None
    tenant_number: int | None
    target: str
    details: dict[str, Any] | None
    times: int


#: ``not checked``: nothing could be told; what was found says why.
CheckLevel = Literal["ok", "not checked", "warning", "fault"]


class CheckResult(msgspec.Struct, frozen=True):
    """One check of doctor: its subject, what was found, and the remedy (empty if all is right)."""

    level: CheckLevel
    subject: str
    found: str
    remedy: str = ""


class UnreadableValue(msgspec.Struct, frozen=True):
    """A sealed value that cannot be opened: its table, and its row's domain, if it has one, and id."""

    table: str
    domain: str | None
    id: str


class TenantKeyState(msgspec.Struct, frozen=True):
    """The keys of one tenant.

    Attributes:
        tenant: Its name.
        key: The number of the key that seals; None if it has none yet, as of a tenant that never synced.
        since: When that key was made.
        master_key: The id of the master key that wraps it.
        seals: The values that processes may have sealed with it, at most 2^32.
        old_keys: How many keys only open.
        resealed: The values that the last pass of the job sealed again.
        place: The table that the pass is at; None if none is under way.
        resealed_at: When the last whole pass began.
        waits: Whether values wait to be sealed, or sealed again.
        lost: Whether its newest key is missing from the database: it is refused until that is restored.
        missing_keys: The numbers of keys that are missing from the database, the newest or old ones.
        unreadable_values: The values that the last pass of the job could not open.
        unreadable: The first hundred of them.
    """

    tenant: str
    key: int | None
    since: datetime | None
    master_key: str | None
    seals: int | None
    old_keys: int
    resealed: int | None
    place: str | None
    resealed_at: datetime | None
    waits: bool | None
    lost: bool = False
    missing_keys: list[int] = []
    unreadable_values: int = 0
    unreadable: list[UnreadableValue] = []


class TenantVerification(msgspec.Struct, frozen=True):
    """What ``keys verify`` found of a tenant.

    Attributes:
        tenant: Its name.
        rows: Its rows with sealed values, each of which was opened or tried.
        unreadable_values: Those that cannot be opened.
        unreadable: The first hundred of them.
        error: Why none could be tried, as if its keys are lost.
    """

    tenant: str
    rows: int
    unreadable_values: int = 0
    unreadable: list[UnreadableValue] = []
    error: str | None = None


class SealedDomain(msgspec.Struct, frozen=True):
    """A domain that is sealed, and since when."""

    domain: str
    since: datetime


class KeyStatus(msgspec.Struct, frozen=True):
    """All keys.

    Attributes:
        given: The ids of the settings' master keys.
        in_use: The ids of those that wrap keys.
        domains: The domains that are sealed.
        unsealed: The domains that name pii fields and are not sealed.
        tenants: The keys of tenants.
    """

    given: list[str]
    in_use: list[str]
    domains: list[SealedDomain]
    unsealed: list[str]
    tenants: list[TenantKeyState]


class MasterRotation(msgspec.Struct, frozen=True):
    """A rotation of the master key: the new one, those that wrap nothing now, and the keys wrapped anew."""

    master_key: str
    retired: list[str]
    keys: int
