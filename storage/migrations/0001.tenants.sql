-- Tenants, their counters, and the one row that tells this cluster from a restored one.
CREATE TABLE tenants (
    tenant_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Locked and updated by every batch: room on the page and no further index keep the update HOT.
CREATE TABLE tenant_counters (
    tenant_id integer PRIMARY KEY REFERENCES tenants,
    seq bigint NOT NULL DEFAULT 0
) WITH (
    fillfactor = 10,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE cluster_state (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch text NOT NULL,
    system_identifier bigint NOT NULL,
    generation bigint NOT NULL DEFAULT 0
);

INSERT INTO cluster_state (epoch, system_identifier)
SELECT replace(gen_random_uuid()::text, '-', ''), system_identifier FROM pg_control_system();
