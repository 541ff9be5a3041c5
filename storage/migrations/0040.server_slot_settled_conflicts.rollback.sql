CREATE INDEX conflict_resolution_log_by_time ON conflict_resolution_log (tenant_id, opened_at_us);
DROP INDEX conflict_resolution_log_settled;

ALTER TABLE server_processes DROP COLUMN slot;
