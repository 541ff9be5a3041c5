-- Partitioned by day of the event's own time as sent, which a retry repeats, so that a retry on a
-- later day meets the same row. Range partitions at both ends catch any time; days are added in
-- front of events_later by storage/postgres/partitions.py.
CREATE TABLE events (
    tenant_id integer NOT NULL,
    domain text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    sent_at_us bigint NOT NULL,
    at_us bigint NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    data json NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, domain, id, sent_at_us)
) PARTITION BY RANGE (sent_at_us);

DO $$
DECLARE
    today_us bigint := floor(extract(epoch FROM now()) / 86400)::bigint * 86400000000;
BEGIN
    EXECUTE format(
        'CREATE TABLE events_earlier PARTITION OF events FOR VALUES FROM (MINVALUE) TO (%s)', today_us);
    EXECUTE format(
        'CREATE TABLE events_later PARTITION OF events FOR VALUES FROM (%s) TO (MAXVALUE)', today_us);
END
$$;
