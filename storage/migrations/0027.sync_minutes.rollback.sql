ALTER TABLE sync_analytics_snapshot
    DROP COLUMN refused,
    DROP COLUMN items,
    DROP COLUMN uploads_finished,
    DROP COLUMN uploads_abandoned,
    DROP COLUMN duration_us,
    DROP COLUMN duration_buckets,
    DROP COLUMN duration_counts;

ALTER TABLE cluster_state DROP COLUMN aggregated_until;

DROP TABLE sync_minutes;
