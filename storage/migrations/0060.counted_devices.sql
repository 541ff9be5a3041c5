-- The rows that a statement changed are counted in a query of their own: Citus plans none that names a table beside them.
CREATE OR REPLACE FUNCTION devices_are_counted() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenants integer[];
    counts bigint[];
BEGIN
    SELECT array_agg(c.tenant_id ORDER BY c.tenant_id), array_agg(c.devices ORDER BY c.tenant_id) INTO tenants, counts
    FROM (SELECT tenant_id, count(*) AS devices FROM changed GROUP BY tenant_id) AS c;
    IF TG_OP = 'INSERT' THEN
        EXECUTE format(
            'INSERT INTO %I.tenant_storage AS s (tenant_id, device_rows)'
            ' SELECT w.t, w.n FROM unnest($1, $2) AS w(t, n)'
            ' ON CONFLICT (tenant_id) DO UPDATE SET device_rows = s.device_rows + excluded.device_rows',
            TG_TABLE_SCHEMA
        ) USING tenants, counts;
    ELSE
        EXECUTE format(
            'UPDATE %I.tenant_storage AS s SET device_rows = greatest(0, s.device_rows - w.n)'
            ' FROM unnest($1, $2) AS w(t, n) WHERE s.tenant_id = w.t',
            TG_TABLE_SCHEMA
        ) USING tenants, counts;
    END IF;
    RETURN NULL;
END
$$;
