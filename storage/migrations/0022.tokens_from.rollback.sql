CREATE INDEX devices_revoked ON devices (tenant_id, device_id) WHERE revoked_at IS NOT NULL;

DROP INDEX devices_refused;

ALTER TABLE devices DROP COLUMN tokens_from;
