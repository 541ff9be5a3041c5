-- How many devices a tenant has, so that the limit tenant_limits.device_rows is checked without counting them. The triggers
-- keep it for every writer: servers, commands, and servers of the version before.
-- On a large installation: nothing is written to devices while they are counted, about a second for a million. Uploads, and pushes
-- that name one, go on during that time: tenant_storage is changed last. They wait while this migration waits for transactions that
-- began before, 5 s at most, and while it writes a row for each tenant.

-- What it calls is found in PostgreSQL's own schema, whatever the session of the caller has in its search_path.
CREATE FUNCTION devices_are_counted() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        EXECUTE format(
            'INSERT INTO %I.tenant_storage AS s (tenant_id, device_rows)'
            ' SELECT tenant_id, count(*) FROM changed GROUP BY tenant_id ORDER BY tenant_id'
            ' ON CONFLICT (tenant_id) DO UPDATE SET device_rows = s.device_rows + excluded.device_rows',
            TG_TABLE_SCHEMA
        );
    ELSE
        EXECUTE format(
            'UPDATE %I.tenant_storage AS s SET device_rows = greatest(0, s.device_rows - c.gone)'
            ' FROM (SELECT tenant_id, count(*) AS gone FROM changed GROUP BY tenant_id) AS c'
            ' WHERE s.tenant_id = c.tenant_id',
            TG_TABLE_SCHEMA
        );
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER devices_are_counted AFTER INSERT ON devices REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION devices_are_counted();
CREATE TRIGGER gone_devices_are_counted AFTER DELETE ON devices REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION devices_are_counted();

DO $$
DECLARE
    tenants integer[];
    counts integer[];
BEGIN
    SELECT array_agg(c.tenant_id), array_agg(c.devices) INTO tenants, counts
    FROM (SELECT tenant_id, count(*)::integer AS devices FROM devices GROUP BY tenant_id) AS c;
    ALTER TABLE tenant_storage ADD COLUMN device_rows integer NOT NULL DEFAULT 0 CHECK (device_rows >= 0);
    INSERT INTO tenant_storage AS s (tenant_id, device_rows)
    SELECT c.tenant_id, c.devices FROM unnest(tenants, counts) AS c(tenant_id, devices)
    ON CONFLICT (tenant_id) DO UPDATE SET device_rows = excluded.device_rows;
END
$$;
