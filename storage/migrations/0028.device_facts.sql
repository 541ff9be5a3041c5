-- What devices tell about themselves in heartbeats: the last of it.
ALTER TABLE sync_device_health
    ADD COLUMN battery real,
    ADD COLUMN queue_depth integer,
    ADD COLUMN storage_free_mb double precision,
    ADD COLUMN heartbeat_at timestamptz;

-- The same for each hour, for a week: whether a device's queue grows is seen from several hours. The room on the page
-- keeps the updates of an hour HOT.
CREATE TABLE sync_device_hours (
    tenant_id integer NOT NULL REFERENCES tenants,
    device_id text COLLATE "C" NOT NULL,
    hour_start timestamptz NOT NULL,
    syncs integer NOT NULL,
    failed integer NOT NULL,
    conflicts integer NOT NULL,
    battery real,
    queue_depth integer,
    PRIMARY KEY (tenant_id, device_id, hour_start)
) WITH (fillfactor = 50);

-- Hours past a week are found and deleted by it.
CREATE INDEX sync_device_hours_by_hour ON sync_device_hours (hour_start);
