-- What a tenant's devices experienced in a minute, as one process counted it. A process writes the whole count of its
-- minute again and again, so a repeated write changes nothing; whoever reads adds the processes up. Rows are deleted
-- after two days, by the job that sums their hours.
-- tenant_id 0 has no tenant: handshakes refused before their token was read. So there is no foreign key.
-- The room on the page keeps the updates of a minute HOT.
CREATE TABLE sync_minutes (
    tenant_id integer NOT NULL,
    minute_start timestamptz NOT NULL,
    process uuid NOT NULL,
    syncs bigint NOT NULL,
    failed bigint NOT NULL,
    refused bigint NOT NULL,
    items bigint NOT NULL,
    conflicts bigint NOT NULL,
    conflicts_open bigint NOT NULL,
    uploads_finished bigint NOT NULL,
    uploads_abandoned bigint NOT NULL,
    bytes_in bigint NOT NULL,
    duration_us bigint NOT NULL,
    duration_buckets smallint[] NOT NULL,
    duration_counts integer[] NOT NULL,
    late boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, minute_start, process)
) WITH (fillfactor = 50);

-- Minutes that were written when their hour was over: the next run sums these hours again.
CREATE INDEX sync_minutes_late ON sync_minutes (tenant_id, minute_start) WHERE late;

-- Up to where the hours of all tenants are summed.
ALTER TABLE cluster_state ADD COLUMN aggregated_until timestamptz NOT NULL DEFAULT 'epoch';

-- sync_requests = succeeded + failed + refused: an error of the device's own, or of the service. What figures are made
-- of stands beside them, so that windows of many hours add hours up, and their percentiles come from summed buckets.
ALTER TABLE sync_analytics_snapshot
    ADD COLUMN refused bigint NOT NULL DEFAULT 0,
    ADD COLUMN items bigint NOT NULL DEFAULT 0,
    ADD COLUMN uploads_finished bigint NOT NULL DEFAULT 0,
    ADD COLUMN uploads_abandoned bigint NOT NULL DEFAULT 0,
    ADD COLUMN duration_us bigint NOT NULL DEFAULT 0,
    ADD COLUMN duration_buckets smallint[] NOT NULL DEFAULT '{}',
    ADD COLUMN duration_counts integer[] NOT NULL DEFAULT '{}';
