-- The score is computed when read, since it decays while a device is silent.
CREATE TABLE sync_device_health (
    tenant_id integer NOT NULL REFERENCES tenants,
    device_id text COLLATE "C" NOT NULL,
    last_sync_at timestamptz,
    total_syncs bigint NOT NULL DEFAULT 0,
    failed_syncs bigint NOT NULL DEFAULT 0,
    avg_sync_duration_ms double precision,
    conflicts bigint NOT NULL DEFAULT 0,
    network_type text,
    app_version text,
    os_version text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, device_id)
) WITH (fillfactor = 50);
