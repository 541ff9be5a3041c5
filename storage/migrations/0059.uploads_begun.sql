-- Of the uploads that one device began in the last 24 hours there are so many at most, those that ended included: their
-- rows stay a week. No chunk changes a column of it. Partial, so that it serves those alone who ask for a time: while the
-- table is empty it looks as good for finding an upload by its id, and reads all of a device's.
-- On a large table the operator makes it before, CONCURRENTLY (docs/operations.md, "Upgrades").
CREATE INDEX IF NOT EXISTS upload_session_begun ON upload_session (tenant_id, device_id, created_at)
    WHERE created_at IS NOT NULL;
