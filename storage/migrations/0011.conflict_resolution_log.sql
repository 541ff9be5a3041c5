-- Every conflict with both sides: the log, and while outcome is open, the queue.
CREATE TABLE conflict_resolution_log (
    tenant_id integer NOT NULL,
    conflict_id text COLLATE "C" NOT NULL,
    domain text COLLATE "C" NOT NULL,
    record_id text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    policy text NOT NULL,
    outcome text NOT NULL,
    server_version bigint NOT NULL,
    server_data json,
    client_base bigint,
    client_op text NOT NULL,
    client_at_us bigint NOT NULL,
    client_data json,
    opened_at_us bigint NOT NULL,
    settled_by text,
    settled_at_us bigint,
    settled_sha256 text,
    settled_version bigint,
    settled_seq bigint,
    PRIMARY KEY (tenant_id, conflict_id)
) WITH (autovacuum_analyze_scale_factor = 0.02);

CREATE UNIQUE INDEX conflict_resolution_log_one_open
    ON conflict_resolution_log (tenant_id, device_id, domain, record_id) WHERE outcome = 'open';

CREATE INDEX conflict_resolution_log_queue
    ON conflict_resolution_log (tenant_id, opened_at_us, conflict_id) WHERE outcome = 'open';

CREATE INDEX conflict_resolution_log_by_time ON conflict_resolution_log (tenant_id, opened_at_us);
