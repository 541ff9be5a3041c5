-- Names that tenants had who are no more: a later tenant of the name is another customer.
CREATE TABLE removed_tenants (
    name text COLLATE "C" PRIMARY KEY,
    removed_at timestamptz NOT NULL
);

-- Tokens that are believed no more, by their jti; of any tenant with 0, which no tenant has.
CREATE TABLE revoked_tokens (
    tenant_id integer NOT NULL,
    token_id text COLLATE "C" NOT NULL,
    revoked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, token_id)
);
