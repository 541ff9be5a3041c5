CREATE OR REPLACE FUNCTION devices_are_counted() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
