-- Rejected items as they were sent; item is text, because it may be what json refuses.
CREATE TABLE quarantine (
    tenant_id integer NOT NULL,
    quarantine_id text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    domain text,
    record_id text,
    item text NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    at_us bigint NOT NULL,
    retried_at timestamptz,
    PRIMARY KEY (tenant_id, quarantine_id)
);

CREATE INDEX quarantine_by_time ON quarantine (tenant_id, at_us);
