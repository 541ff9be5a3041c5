DROP INDEX devices_revoked;

ALTER TABLE devices RESET (fillfactor);

ALTER TABLE sync_device_health DROP COLUMN sync_duration_us;
