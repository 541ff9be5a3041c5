-- What devices counted themselves, by the hour. No figure of the server comes from it.
-- Names of counters and histograms by tenant, so that rows have numbers in their place, and so that they are bounded: a
-- number is free again when no row has it.
CREATE TABLE telemetry_names (
    tenant_id integer NOT NULL REFERENCES tenants,
    number smallint NOT NULL CHECK (number BETWEEN 1 AND 500),
    name text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    used_on date NOT NULL DEFAULT current_date,
    PRIMARY KEY (tenant_id, number),
    UNIQUE (tenant_id, name)
);

-- One row a message. Its part, the next of its device and hour, is what two processes compete for: so a key counts once, and
-- a device has no more parts than it may.
CREATE TABLE device_telemetry (
    tenant_id integer NOT NULL REFERENCES tenants,
    hour_start timestamptz NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    part smallint NOT NULL CHECK (part BETWEEN 1 AND 4),
    key_hash uuid NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    counter_names smallint[] NOT NULL,
    counter_values bigint[] NOT NULL,
    histogram_names smallint[] NOT NULL,
    histogram_places smallint[] NOT NULL,
    histogram_buckets smallint[] NOT NULL,
    histogram_counts integer[] NOT NULL,
    PRIMARY KEY (tenant_id, hour_start, device_id, part)
);
