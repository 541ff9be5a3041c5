CREATE TABLE tenant_conflict_policy (
    tenant_id integer NOT NULL REFERENCES tenants,
    domain text COLLATE "C" NOT NULL,
    policy text NOT NULL CHECK (policy IN (
        'server_wins', 'client_wins', 'most_recent_wins', 'preserve_escalation', 'field_merge', 'manual')),
    fallback text NOT NULL DEFAULT 'most_recent_wins' CHECK (fallback IN (
        'server_wins', 'client_wins', 'most_recent_wins', 'preserve_escalation', 'manual')),
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text,
    PRIMARY KEY (tenant_id, domain)
);
