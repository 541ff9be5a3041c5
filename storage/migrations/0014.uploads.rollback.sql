ALTER TABLE records DROP COLUMN attachments;

DROP TABLE tenant_storage;

DROP TABLE upload_session;

CREATE TABLE upload_session (
    tenant_id integer NOT NULL REFERENCES tenants,
    upload_id uuid NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    user_id text,
    file_name text NOT NULL,
    content_type text,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    offset_bytes bigint NOT NULL DEFAULT 0 CHECK (offset_bytes BETWEEN 0 AND size_bytes),
    sha256 bytea,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'complete', 'cancelled', 'expired')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, upload_id)
);

CREATE INDEX upload_session_by_expiry ON upload_session (tenant_id, expires_at);
