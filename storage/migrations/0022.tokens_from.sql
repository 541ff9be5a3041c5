-- A device whose revocation was undone: tokens that were signed before this stay refused.
ALTER TABLE devices ADD COLUMN tokens_from timestamptz;

-- What every server process keeps in memory: few of all devices.
CREATE INDEX devices_refused ON devices (tenant_id, device_id)
    WHERE revoked_at IS NOT NULL OR tokens_from IS NOT NULL;
DROP INDEX devices_revoked;
