DROP INDEX upload_session_open_of_device;

ALTER TABLE tenant_counters
    DROP COLUMN record_rows,
    DROP COLUMN record_bytes,
    DROP COLUMN conflict_rows,
    DROP COLUMN conflict_bytes,
    DROP COLUMN quarantine_rows,
    DROP COLUMN quarantine_bytes,
    DROP COLUMN event_rows,
    DROP COLUMN event_bytes,
    DROP COLUMN answer_rows,
    DROP COLUMN answer_bytes,
    DROP COLUMN future_event_rows,
    DROP COLUMN counted_at;
