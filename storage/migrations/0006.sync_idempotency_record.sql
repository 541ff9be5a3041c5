-- The kept answers, partitioned by day: expiry drops partitions. A unique constraint would have to
-- hold created_at, so the tenant's lock, not a constraint, keeps a key from being used twice.
CREATE TABLE sync_idempotency_record (
    tenant_id integer NOT NULL,
    key_hash uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    request_sha256 bytea NOT NULL,
    results json NOT NULL,
    PRIMARY KEY (tenant_id, key_hash, created_at)
) PARTITION BY RANGE (created_at);

DO $$
DECLARE
    today timestamptz := date_trunc('day', now(), 'UTC');
BEGIN
    EXECUTE format(
        'CREATE TABLE sync_idempotency_record_earlier PARTITION OF sync_idempotency_record'
        ' FOR VALUES FROM (MINVALUE) TO (%L)', today);
    EXECUTE format(
        'CREATE TABLE sync_idempotency_record_later PARTITION OF sync_idempotency_record'
        ' FOR VALUES FROM (%L) TO (MAXVALUE)', today);
END
$$;
