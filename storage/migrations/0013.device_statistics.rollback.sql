DROP INDEX devices_revoked;

ALTER TABLE devices RESET (fillfactor);

ALTER TABLE sync_device_health ADD COLUMN mean double precision;

UPDATE sync_device_health SET mean = avg_sync_duration_ms;

ALTER TABLE sync_device_health DROP COLUMN avg_sync_duration_ms;

ALTER TABLE sync_device_health RENAME COLUMN mean TO avg_sync_duration_ms;

ALTER TABLE sync_device_health DROP COLUMN sync_duration_us;
