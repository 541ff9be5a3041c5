-- What a tenant holds, beside the seq that every batch writes anyway. No index has one of these columns, so that
-- the update stays HOT. counted_at is when the rows themselves were last counted (storage/stores/usage.py).
ALTER TABLE tenant_counters
    ADD COLUMN record_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN record_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN conflict_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN conflict_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN quarantine_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN quarantine_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN event_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN event_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN answer_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN answer_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN future_event_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN counted_at timestamptz;

-- Of one device's open uploads there are so many at most. No chunk changes a column of it.
CREATE INDEX upload_session_open_of_device ON upload_session (tenant_id, device_id) WHERE state = 'open';
