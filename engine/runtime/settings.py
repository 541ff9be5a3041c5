"""Settings: all that can be set, as frozen Structs; ``setting_layers`` makes them of their sources."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.model.domains import Domain
from engine.model.rows import TenantUsage

Text = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
SizeBytes = Annotated[int, Meta(ge=1024, le=1 << 31)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Days = Annotated[int, Meta(ge=0, le=36_500)]
FileBytes = Annotated[int, Meta(ge=1, le=1 << 40)]
HeldRows = Annotated[int, Meta(ge=0, le=1 << 60)]
QuotaBytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Points = Annotated[float, Meta(ge=0, le=100)]
Limit = Annotated[float, Meta(ge=0, le=1_000_000_000)]
#: A name that needs no quotes in SQL, and stays short enough beside the name of a table. In ``public``
#: are the tables of a deployment that is no cell: a cell would look for their files and locks elsewhere.
SchemaName = Annotated[
    str, Meta(pattern=r"^(?!pg_|public$|information_schema$|default$)([a-z_][a-z0-9_]{0,47})?\Z")
]
MediaType = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*$")]


class SettingsError(Exception):
    """Settings that cannot be used; one sentence names the key and the file, as ``key`` and ``file`` do."""

    def __init__(self, sentence: str, *, file: str = "", key: str = "") -> None:
        super().__init__(sentence)
        self.file = file
        self.key = key


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a process listens and how patient it is."""

    host: Annotated[str, Meta(min_length=1)]
    port: Annotated[int, Meta(ge=0, le=65_535)]
    workers: Annotated[int, Meta(ge=1, le=256)]
    probe_port: Annotated[int, Meta(ge=0, le=65_535)]
    drain_s: Annotated[float, Meta(ge=0, le=3600)]
    idle_s: Seconds
    heartbeat_s: Annotated[int, Meta(ge=1, le=3600)]
    outbox_bytes: SizeBytes
    write_patience_s: Seconds
    head_s: Seconds
    head_bytes: SizeBytes
    body_s: Seconds
    address_connections: Count
    compress: bool
    origins: tuple[str, ...]
    trusted_proxies: tuple[str, ...]


class MessageLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device may send, told in the welcome, what its tenant may, and what one answer may hold."""

    frame_bytes: SizeBytes
    items: Annotated[int, Meta(ge=1, le=10_000)]
    record_bytes: SizeBytes
    messages_per_minute: Count
    tenant_messages_per_minute: Count
    open_requests: Count
    tenant_open_requests: Count
    waiting_bytes: SizeBytes
    tenant_waiting_bytes: SizeBytes
    tenant_connections: Count
    answer_data_bytes: SizeBytes


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of tokens. An empty text means not set; a path is relative to the working directory."""

    audience: Annotated[str, Meta(min_length=1)]
    secret: str
    secret_file: Text
    key_file: Text
    jwks_file: Text
    token_ttl_s: Annotated[int, Meta(ge=1, le=315_360_000)]
    leeway_s: Annotated[int, Meta(ge=0, le=3600)]

    def __repr__(self) -> str:
        """Show no secret, wherever this ends up being printed."""
        return "Auth(…)"


class Sealing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where master keys come from: a value, a file, or the output of a command. Empty means not set."""

    master_key: Text
    master_key_file: Text
    master_key_command: tuple[Text, ...]

    def __repr__(self) -> str:
        """Show no secret, wherever this ends up being printed."""
        return "Sealing(…)"


class Postgres(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The database: ``dsn``, or the one in ``dsn_file``; with both empty the embedded one.

    ``owner_dsn`` and ``jobs_dsn`` name it as other roles; without them all are the role of ``dsn``.
    ``schema`` is that of a cell.
    """

    dsn: Text
    dsn_file: Text
    owner_dsn: Text
    owner_dsn_file: Text
    jobs_dsn: Text
    jobs_dsn_file: Text
    schema: SchemaName
    read_connections: Annotated[int, Meta(ge=1, le=100)]
    min_free_bytes: QuotaBytes
    max_bytes: QuotaBytes

    def __repr__(self) -> str:
        """Show no password, wherever this ends up being printed."""
        return "Postgres(…)"

    @property
    def is_embedded(self) -> bool:
        """Whether no database is named."""
        return not (self.dsn or self.dsn_file)


class Redis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bus between processes: ``url``, or the one in ``url_file``; with both empty the embedded one."""

    url: Text
    url_file: Text

    def __repr__(self) -> str:
        """Show no password, wherever this ends up being printed."""
        return "Redis(…)"


class Commit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the group commit."""

    lanes: Annotated[int, Meta(ge=1, le=64)]
    batch_items: Count
    batch_bytes: SizeBytes
    queue_messages: Count
    queue_bytes: SizeBytes


class FeedPages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the feed's pages and of its tail in memory."""

    page_bytes: SizeBytes
    tail_changes: Count
    tail_bytes: SizeBytes
    page_interval_ms: Annotated[float, Meta(ge=0, le=10_000)]


class Records(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the last data of a deleted record are kept; 0 keeps none."""

    tombstone_data_h: Annotated[float, Meta(ge=0, le=87_600)]


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one tenant may hold: rows, and bytes of the JSON in them, as ``engine.model.rows.TenantUsage``.

    ``device_rows`` is no number of that: no message adds to it.
    """

    record_rows: HeldRows
    record_bytes: QuotaBytes
    conflict_rows: HeldRows
    conflict_bytes: QuotaBytes
    quarantine_rows: HeldRows
    quarantine_bytes: QuotaBytes
    event_rows: HeldRows
    event_bytes: QuotaBytes
    answer_rows: HeldRows
    answer_bytes: QuotaBytes
    future_event_rows: HeldRows
    device_rows: HeldRows

    def usage(self) -> TenantUsage:
        """Return the bounds of what messages add."""
        return TenantUsage(*[getattr(self, name) for name in TenantUsage.__struct_fields__])


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """After how many days what people may look at later is deleted; 0 keeps it."""

    conflict_log_d: Days
    quarantine_d: Days
    events_d: Days
    audit_d: Days
    telemetry_d: Days


class Idempotency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a message's answer is kept under its key."""

    lifetime_h: Annotated[int, Meta(ge=1, le=8760)]


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many devices a process keeps in mind, and how it keeps in step with what is stored of them."""

    remembered: Count
    ttl_s: Seconds
    flush_s: Seconds


class Uploads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What files are taken, how many, and for how long what is unfinished or unwanted is kept.

    ``tenant_quotas`` are by tenant's name, in place of ``tenant_bytes``.
    """

    image_bytes: FileBytes
    image_types: tuple[MediaType, ...]
    document_bytes: FileBytes
    document_types: tuple[MediaType, ...]
    voice_bytes: FileBytes
    voice_types: tuple[MediaType, ...]
    tenant_bytes: QuotaBytes
    tenant_quotas: dict[str, QuotaBytes]
    files_per_record: Count
    open_per_device: Count
    begun_per_device: Count
    expire_h: Annotated[float, Meta(gt=0, le=8760)]
    grace_h: Annotated[float, Meta(gt=0, le=87_600)]
    idle_s: Seconds
    write_threads: Annotated[int, Meta(ge=1, le=256)]


class Jobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When jobs are due, as cron expressions by their names in ``engine.cluster.jobs``, in a time zone."""

    timezone: Text
    uploads: Text
    cleanup: Text
    aggregate: Text
    warm: Text
    monitor: Text
    reseal: Text


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the monitor finds a metric critical, in need of a warning, or worth an early warning.

    A rate is judged from ``min_syncs`` syncs on, or from ``min_failures`` of what it counts.
    """

    success_rate_critical: Ratio
    success_rate_early: Ratio
    conflict_rate_warning: Ratio
    conflict_rate_early: Ratio
    sync_duration_warning_ms: Limit
    sync_duration_p95_early_ms: Limit
    failed_per_minute_critical: Limit
    failed_per_minute_early: Limit
    upload_abandonment_warning: Ratio
    upload_abandonment_early: Ratio
    device_health_warning: Points
    device_health_early: Points
    min_syncs: Count
    min_failures: Count


class TenantThresholds(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The thresholds of one tenant, in place of those for all."""

    success_rate_critical: Ratio | UnsetType = UNSET
    success_rate_early: Ratio | UnsetType = UNSET
    conflict_rate_warning: Ratio | UnsetType = UNSET
    conflict_rate_early: Ratio | UnsetType = UNSET
    sync_duration_warning_ms: Limit | UnsetType = UNSET
    sync_duration_p95_early_ms: Limit | UnsetType = UNSET
    failed_per_minute_critical: Limit | UnsetType = UNSET
    failed_per_minute_early: Limit | UnsetType = UNSET
    upload_abandonment_warning: Ratio | UnsetType = UNSET
    upload_abandonment_early: Ratio | UnsetType = UNSET
    device_health_warning: Points | UnsetType = UNSET
    device_health_early: Points | UnsetType = UNSET
    min_syncs: Count | UnsetType = UNSET
    min_failures: Count | UnsetType = UNSET


class Monitor(Thresholds, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The thresholds for all tenants, and what ``serve`` judges. ``tenants`` is by name."""

    window_min: Annotated[int, Meta(ge=1, le=2880)]
    tenants: dict[str, TenantThresholds]

    def thresholds(self, tenant: str | None) -> Thresholds:
        """Return the thresholds of a tenant; None is all tenants together."""
        own = None if tenant is None else self.tenants.get(tenant)
        if own is None:
            return self
        chosen = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not UNSET}
        return msgspec.structs.replace(self, **chosen)


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``/metrics`` tells besides what it always does."""

    tenants: bool


class Alerts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The receivers of alerts. An empty text means not set."""

    webhook_url: Text
    webhook_url_file: Text
    webhook_secret: Text
    webhook_secret_file: Text
    slack_webhook_url: Text
    slack_webhook_url_file: Text
    threshold: Literal["any", "warning", "critical"]
    private_addresses: bool

    def __repr__(self) -> str:
        """Show no secret, wherever this ends up being printed."""
        return "Alerts(…)"


class S3(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where files are kept in place of a directory; an empty ``bucket`` means the directory."""

    bucket: Text
    endpoint: Text
    region: Text
    access_key_id: Text
    secret_access_key: Text

    def __repr__(self) -> str:
        """Show no secret, wherever this ends up being printed."""
        return "S3(…)"


class Log(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and for whom."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["json", "console"]


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where files are kept, relative to the working directory."""

    dir: Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. ``domains`` is by name."""

    server: Server
    limits: MessageLimits
    auth: Auth
    sealing: Sealing
    postgres: Postgres
    redis: Redis
    commit: Commit
    feed: FeedPages
    records: Records
    tenant_limits: TenantLimits
    retention: Retention
    idempotency: Idempotency
    devices: DeviceMemory
    uploads: Uploads
    jobs: Jobs
    monitor: Monitor
    alerts: Alerts
    metrics: Metrics
    s3: S3
    log: Log
    data: Data
    domains: dict[str, Domain]

    @property
    def audience(self) -> str:
        """The ``aud`` of tokens."""
        return audience_in(self.auth.audience, self.postgres.schema)


def audience_in(audience: str, schema: str) -> str:
    """Return the ``aud`` of tokens in a cell: the cell is named there, so that no token opens another one.

    Cells may have tenants of the same name, and one key of tokens.
    """
    return f"{audience}/{schema}" if schema else audience
