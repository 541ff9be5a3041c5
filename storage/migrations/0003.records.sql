-- The latest version of every record; a tombstone has no data. Instants are microseconds since
-- 1970-01-01 UTC. json, not jsonb: the text stays as it was written. data_bytes lets a page be
-- cut by size without reading the data of what it leaves out.
CREATE TABLE records (
    tenant_id integer NOT NULL,
    domain text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    seq bigint NOT NULL,
    at_us bigint NOT NULL,
    device_id text COLLATE "C",
    chain_from bigint NOT NULL,
    data_bytes integer NOT NULL GENERATED ALWAYS AS (coalesce(octet_length(data::text), 0)) STORED,
    data json,
    fields json,
    PRIMARY KEY (tenant_id, domain, id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_analyze_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);

-- Partial, so that it serves the feed alone, which asks for seq > n: on a table that was empty when it was
-- analysed, one by tenant and seq looks as good for finding a record, and reads all of its tenant.
CREATE UNIQUE INDEX records_by_seq ON records (tenant_id, seq) WHERE seq > 0;
