-- What a device keeps. Every statement that changes it runs in a transaction that leaves it whole.
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- Where the device stands in the feed of a set of domains. While sweeping it reads the feed from the
-- beginning, and what it does not meet until the end goes.
CREATE TABLE IF NOT EXISTS cursors (
    scope TEXT PRIMARY KEY,
    cursor TEXT,
    sweeping INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- The server's records as last heard; a tombstone has no data. Versions of an older generation belong to a
-- history that the server has no longer.
CREATE TABLE IF NOT EXISTS replica (
    domain TEXT NOT NULL,
    record_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    data BLOB,
    generation INTEGER NOT NULL,
    PRIMARY KEY (domain, record_id)
) WITHOUT ROWID;

-- The files of records as the change of the highest seq showed them, an array in JSON. They come with no new
-- version, and an answer does not tell of them.
CREATE TABLE IF NOT EXISTS attachments (
    domain TEXT NOT NULL,
    record_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    files BLOB NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (domain, record_id)
) WITHOUT ROWID;

-- Edits without an answer, in order. item is what is sent, byte for byte; key names the message that it was
-- sent in, if it was sent. AUTOINCREMENT: a number is never used again.
CREATE TABLE IF NOT EXISTS outbox (
    edit INTEGER PRIMARY KEY AUTOINCREMENT,
    domain TEXT NOT NULL,
    record_id TEXT NOT NULL,
    base INTEGER,
    at_us INTEGER NOT NULL,
    item BLOB NOT NULL,
    key TEXT
);
CREATE INDEX IF NOT EXISTS outbox_by_record ON outbox (domain, record_id, edit);

-- The one message under way, and where the feed stood before it was sent for the first time.
CREATE TABLE IF NOT EXISTS message (key TEXT PRIMARY KEY, scope TEXT NOT NULL, cursor TEXT) WITHOUT ROWID;

-- Edits that the server refused: kept for a person, never dropped.
CREATE TABLE IF NOT EXISTS rejected (
    edit INTEGER PRIMARY KEY,
    item BLOB NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL
);

-- What the device counted itself, by the hour of its clock. A counter has the bucket -1. key names the message that an
-- hour was first sent in, and is empty before.
CREATE TABLE IF NOT EXISTS telemetry (
    hour INTEGER NOT NULL,
    key TEXT NOT NULL,
    name TEXT NOT NULL,
    bucket INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (hour, key, name, bucket)
) WITHOUT ROWID;

-- Earlier versions kept them without a count; the server's list brings them back.
DROP TABLE IF EXISTS conflicts;

-- Own edits that wait on the server for a person. client is the record as it would stand if they won, changes
-- how many they are.
CREATE TABLE IF NOT EXISTS held (
    conflict_id TEXT PRIMARY KEY,
    domain TEXT NOT NULL,
    record_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    server BLOB,
    client BLOB,
    changes INTEGER NOT NULL
) WITHOUT ROWID;
