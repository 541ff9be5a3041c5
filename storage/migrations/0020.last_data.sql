-- What a tombstone's record was when it was deleted, for edits that meet the tombstone and win. In no page, and not
-- in data_bytes. No other record has them.
-- On a large table the operator makes them before, the index CONCURRENTLY (docs/operations.md, "Upgrades").
ALTER TABLE records ADD COLUMN IF NOT EXISTS last_data json, ADD COLUMN IF NOT EXISTS last_data_at timestamptz;

CREATE INDEX IF NOT EXISTS records_last_data ON records (last_data_at) WHERE last_data IS NOT NULL;

-- The order in which items were rejected: those of one message are of the same time.
ALTER TABLE quarantine ADD COLUMN place bigint GENERATED ALWAYS AS IDENTITY;

-- Partial, so that it serves those alone who ask by record.
CREATE INDEX quarantine_by_record ON quarantine (tenant_id, device_id, domain, record_id, place)
    WHERE record_id IS NOT NULL;

-- Partial, so that it serves those alone who ask by time: while the table is empty it looks as good for finding an
-- item, and reads all of a tenant's.
DROP INDEX quarantine_by_time;
CREATE INDEX quarantine_by_time ON quarantine (tenant_id, at_us) WHERE at_us > 0;
