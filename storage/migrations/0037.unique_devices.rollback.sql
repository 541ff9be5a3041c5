ALTER TABLE sync_minutes DROP COLUMN bytes_saved_compression;

DROP TABLE sync_analytics_day;

ALTER TABLE sync_device_hours DROP COLUMN user_id;
