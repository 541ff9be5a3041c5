-- One row per tenant and hour. A figure that has no data is null, never zero.
CREATE TABLE sync_analytics_snapshot (
    tenant_id integer NOT NULL REFERENCES tenants,
    hour_start timestamptz NOT NULL,
    sync_requests bigint NOT NULL DEFAULT 0,
    succeeded bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    avg_duration_ms double precision,
    p95_duration_ms double precision,
    items_per_sync double precision,
    conflicts_total bigint NOT NULL DEFAULT 0,
    conflicts_auto bigint NOT NULL DEFAULT 0,
    conflicts_manual bigint NOT NULL DEFAULT 0,
    conflict_rate double precision,
    bytes_synced bigint NOT NULL DEFAULT 0,
    bytes_saved_patch bigint NOT NULL DEFAULT 0,
    bytes_saved_compression bigint NOT NULL DEFAULT 0,
    unique_devices integer NOT NULL DEFAULT 0,
    unique_users integer NOT NULL DEFAULT 0,
    domains jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, hour_start)
);
