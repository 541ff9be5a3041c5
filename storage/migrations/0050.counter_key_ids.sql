-- The id of the key that seals for a tenant stands beside the counter, which each batch locks and reads: a look into
-- tenant_keys would cost a batch 20 µs, and 2 µs for each of its tenants. A trigger keeps it, so that it is right
-- whatever wrote a key, as a restore of this table.
-- On a large installation: tenant_counters has a row a tenant; those of tenants with a key are written once.
ALTER TABLE tenant_counters ADD COLUMN key_id uuid;

UPDATE tenant_counters AS c SET key_id = k.key_id FROM tenant_keys AS k
WHERE k.tenant_id = c.tenant_id AND k.retired_at IS NULL;

-- What it calls is found in PostgreSQL's own schema, whatever the session of the caller has in its search_path.
-- A counter that is inserted at the same time is waited for, and then changed.
CREATE FUNCTION tenant_key_names_counter() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        EXECUTE format(
            'UPDATE %I.tenant_counters SET key_id = NULL WHERE tenant_id = $1 AND key_id = $2', TG_TABLE_SCHEMA
        ) USING OLD.tenant_id, OLD.key_id;
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.retired_at IS NULL THEN
        EXECUTE format(
            'INSERT INTO %I.tenant_counters (tenant_id, key_id) VALUES ($1, $2)'
            ' ON CONFLICT (tenant_id) DO UPDATE SET key_id = excluded.key_id', TG_TABLE_SCHEMA
        ) USING NEW.tenant_id, NEW.key_id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER tenant_key_names_counter AFTER INSERT OR DELETE OR UPDATE OF tenant_id, key_id, retired_at ON tenant_keys
FOR EACH ROW EXECUTE FUNCTION tenant_key_names_counter();
