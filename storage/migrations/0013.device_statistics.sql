-- Processes add to what is stored, which a mean does not allow: the sum stands beside it, and it follows.
ALTER TABLE sync_device_health ADD COLUMN sync_duration_us bigint NOT NULL DEFAULT 0;

UPDATE sync_device_health SET sync_duration_us = avg_sync_duration_ms * total_syncs * 1000
WHERE avg_sync_duration_ms IS NOT NULL;

-- Room on the page keeps the update of a device that came back HOT.
ALTER TABLE devices SET (fillfactor = 80);

-- Read whole by every process whenever the generation moves; no update of a device that is let in touches it.
CREATE INDEX devices_revoked ON devices (tenant_id, device_id) WHERE revoked_at IS NOT NULL;
