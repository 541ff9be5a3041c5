CREATE TABLE devices (
    tenant_id integer NOT NULL REFERENCES tenants,
    device_id text COLLATE "C" NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    app_version text,
    os_version text,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, device_id)
);
