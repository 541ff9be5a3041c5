DROP TABLE sync_device_hours;

ALTER TABLE sync_device_health
    DROP COLUMN battery,
    DROP COLUMN queue_depth,
    DROP COLUMN storage_free_mb,
    DROP COLUMN heartbeat_at;
