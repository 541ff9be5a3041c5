DROP INDEX quarantine_by_time;

CREATE INDEX quarantine_by_time ON quarantine (tenant_id, at_us);

DROP INDEX quarantine_by_record;

ALTER TABLE quarantine DROP COLUMN place;

DROP INDEX records_last_data;

ALTER TABLE records DROP COLUMN last_data, DROP COLUMN last_data_at;
