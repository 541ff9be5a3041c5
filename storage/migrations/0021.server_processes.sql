-- Which server processes use this database, of whatever host: each says every few seconds that it is still there.
-- Rows with a time, and no locks of sessions: those break behind a pooler that hands connections around.
CREATE TABLE server_processes (
    process uuid PRIMARY KEY,
    place text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
