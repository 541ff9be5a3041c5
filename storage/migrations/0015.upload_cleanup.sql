-- What one process does for all of them, whose turn it is, and what came of it last.
CREATE TABLE cluster_job (
    job text PRIMARY KEY,
    holder text NOT NULL,
    held_until timestamptz,
    began_at timestamptz NOT NULL,
    report json
);

-- When an upload became a file or came to nothing.
ALTER TABLE upload_session ADD COLUMN ended_at timestamptz;
UPDATE upload_session SET ended_at = updated_at WHERE state <> 'open';

-- None of them holds a column that a chunk changes.
CREATE INDEX upload_session_ended ON upload_session (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX upload_session_over ON upload_session (created_at)
    WHERE state IN ('refused', 'cancelled', 'expired', 'joined', 'freed');
CREATE INDEX upload_session_gone ON upload_session (tenant_id, upload_id)
    WHERE gone_at IS NOT NULL AND state IN ('attached', 'duplicate');

-- Partial, so that it serves those alone who ask by record: while the table is empty it looks as good for finding
-- an upload by its id, and reads all of a tenant's.
DROP INDEX upload_session_by_record;
CREATE INDEX upload_session_by_record ON upload_session (tenant_id, domain, record_id) WHERE domain IS NOT NULL;

-- Tombstones that still have files: few, and all other records are not in it.
CREATE INDEX records_gone_with_files ON records (tenant_id, domain, id)
    WHERE data IS NULL AND attachments::text <> '[]';
