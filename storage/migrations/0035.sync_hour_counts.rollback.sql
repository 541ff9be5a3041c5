DROP INDEX sync_device_hours_by_hour;

CREATE INDEX sync_device_hours_by_hour ON sync_device_hours (hour_start);

ALTER TABLE sync_analytics_snapshot
    DROP COLUMN replayed,
    DROP COLUMN bytes_in;

ALTER TABLE sync_minutes DROP COLUMN replayed;

ALTER TABLE cluster_state DROP COLUMN commits_counted_since;

DROP TABLE sync_hour_counts;

ALTER TABLE tenant_counters
    DROP COLUMN sync_hour,
    DROP COLUMN sync_counts;
