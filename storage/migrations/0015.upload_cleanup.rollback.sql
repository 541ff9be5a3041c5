DROP INDEX records_gone_with_files;

DROP INDEX upload_session_by_record;

CREATE INDEX upload_session_by_record ON upload_session (tenant_id, domain, record_id);

DROP INDEX upload_session_gone;

DROP INDEX upload_session_over;

DROP INDEX upload_session_ended;

ALTER TABLE upload_session DROP COLUMN ended_at;

DROP TABLE cluster_job;
