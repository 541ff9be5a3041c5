-- Nothing was ever written to the table of this name; what an upload needs to be taken up by any process is
-- written here. Only an open upload has a draft; a stored one has a file of its id.
DROP TABLE upload_session;

CREATE TABLE upload_session (
    tenant_id integer NOT NULL REFERENCES tenants,
    upload_id uuid NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    user_id text,
    kind text NOT NULL CHECK (kind IN ('whole', 'part', 'joined')),
    parts text NOT NULL DEFAULT '',
    joined_into uuid,
    file_name text,
    content_type text,
    domain text COLLATE "C",
    record_id text COLLATE "C",
    metadata text NOT NULL,
    size_bytes bigint CHECK (size_bytes >= 0),
    reserved_bytes bigint NOT NULL CHECK (reserved_bytes >= 0),
    offset_bytes bigint NOT NULL DEFAULT 0 CHECK (offset_bytes >= 0),
    pieces text NOT NULL DEFAULT '',
    generation integer NOT NULL DEFAULT 0,
    holder text,
    held_until timestamptz,
    wanted_sha256 text,
    sha256 text,
    state text NOT NULL DEFAULT 'open' CHECK (
        state IN ('open', 'stored', 'attached', 'duplicate', 'refused', 'cancelled', 'expired', 'joined', 'freed')
    ),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    gone_at timestamptz,
    PRIMARY KEY (tenant_id, upload_id)
) WITH (fillfactor = 70);

-- The offset moves with every chunk: no index holds a column that a chunk changes, so that the update is HOT.
CREATE INDEX upload_session_by_record ON upload_session (tenant_id, domain, record_id);
CREATE INDEX upload_session_waiting ON upload_session (tenant_id, domain, record_id) WHERE state = 'stored';
CREATE INDEX upload_session_open ON upload_session (tenant_id, upload_id) WHERE state = 'open';
CREATE INDEX upload_session_joined ON upload_session (tenant_id, joined_into) WHERE joined_into IS NOT NULL;

-- What a tenant's uploads and files take up, and how many devices' uploads are open.
CREATE TABLE tenant_storage (
    tenant_id integer PRIMARY KEY REFERENCES tenants,
    reserved_bytes bigint NOT NULL DEFAULT 0 CHECK (reserved_bytes >= 0)
) WITH (fillfactor = 10);

ALTER TABLE records ADD COLUMN attachments json;
