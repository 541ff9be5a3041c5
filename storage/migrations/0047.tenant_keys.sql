-- Keys of sealed data. A tenant's data keys are wrapped by a master key, which is never stored: its id alone is, which
-- is derived from it, so that a server notices a lost or another master key before it serves.
-- On a large installation: tenants is rewritten once; it has a row a tenant.
ALTER TABLE tenants ADD COLUMN tenant_uuid uuid NOT NULL DEFAULT gen_random_uuid();

CREATE TABLE master_keys (
    master_key_id text COLLATE "C" PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);

-- seals_leased counts what processes may have sealed: they take blocks before they use them, so that a kill counts too
-- much and never too little. 2^32 is the most for random nonces of 96 bits.
CREATE TABLE tenant_keys (
    tenant_id integer NOT NULL REFERENCES tenants,
    key_number integer NOT NULL CHECK (key_number BETWEEN 1 AND 65535),
    wrapped bytea NOT NULL,
    master_key_id text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz,
    seals_leased bigint NOT NULL DEFAULT 0 CHECK (seals_leased BETWEEN 0 AND 4294967296),
    PRIMARY KEY (tenant_id, key_number)
) WITH (fillfactor = 50);

-- One key of a tenant seals.
CREATE UNIQUE INDEX tenant_keys_active ON tenant_keys (tenant_id) WHERE retired_at IS NULL;
