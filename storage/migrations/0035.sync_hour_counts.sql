-- What batches committed of a tenant in the present hour, beside the seq that they write anyway. No index has one of these
-- columns, so that the update stays HOT. sync_hour counts hours since 1970 by the database's clock; sync_counts is the JSON of
-- engine.model.commit_counts, null if nothing is counted.
ALTER TABLE tenant_counters
    ADD COLUMN sync_hour integer NOT NULL DEFAULT 0,
    ADD COLUMN sync_counts text;

-- The same of hours that are over: the first batch of another hour moves the counts here, or the job that sums hours. An hour
-- may have several rows, if the clock went back; they add up.
CREATE TABLE sync_hour_counts (
    tenant_id integer NOT NULL REFERENCES tenants,
    sync_hour integer NOT NULL,
    part uuid NOT NULL DEFAULT gen_random_uuid(),
    sync_counts text NOT NULL,
    summed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, sync_hour, part)
);

-- Hours that no snapshot has yet, or that changed since.
CREATE INDEX sync_hour_counts_unsummed ON sync_hour_counts (tenant_id, sync_hour) WHERE NOT summed;

-- Snapshots of earlier hours are made of minutes alone. Where servers ran before, some may run on for a while without
-- counting, so the present hour is an earlier one.
ALTER TABLE cluster_state ADD COLUMN commits_counted_since timestamptz NOT NULL DEFAULT date_bin('1 hour', now(), 'epoch');

UPDATE cluster_state SET commits_counted_since = commits_counted_since + interval '1 hour'
WHERE EXISTS (SELECT FROM sync_minutes);

-- Syncs whose stored answer was repeated: they have durations, but commit nothing.
ALTER TABLE sync_minutes ADD COLUMN replayed bigint NOT NULL DEFAULT 0;

-- bytes_in is counted by minutes, bytes_synced in commits.
ALTER TABLE sync_analytics_snapshot
    ADD COLUMN replayed bigint NOT NULL DEFAULT 0,
    ADD COLUMN bytes_in bigint NOT NULL DEFAULT 0;

UPDATE sync_analytics_snapshot SET bytes_in = bytes_synced;

-- The hours of a tenant's devices are counted, beside being deleted by their age.
DROP INDEX sync_device_hours_by_hour;

CREATE INDEX sync_device_hours_by_hour ON sync_device_hours (hour_start, tenant_id);
