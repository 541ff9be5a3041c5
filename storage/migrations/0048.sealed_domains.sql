-- Which domains are sealed. Servers follow within a second.
CREATE TABLE sealed_domains (
    domain text COLLATE "C" PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now()
);

-- What a process can do with sealed values: 0 of an older version, which can neither read nor write them.
-- master_keys are the ids of the master keys that it has.
ALTER TABLE server_processes
    ADD COLUMN sealing integer NOT NULL DEFAULT 0,
    ADD COLUMN master_keys text[] NOT NULL DEFAULT '{}';

-- A process of an older version would take sealed values for data of devices. Once a domain is sealed, it cannot say
-- that it uses the database, and so does not start.
-- What it calls is found in PostgreSQL's own schema, whatever the session of the caller has in its search_path.
CREATE FUNCTION server_process_opens_sealed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sealed boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %I.sealed_domains)', TG_TABLE_SCHEMA) INTO sealed;
    IF NEW.sealing = 0 AND sealed THEN
        RAISE EXCEPTION 'this database has sealed data, which this version of the server cannot read: use a newer one';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER server_process_opens_sealed BEFORE INSERT OR UPDATE ON server_processes
FOR EACH ROW EXECUTE FUNCTION server_process_opens_sealed();

-- One pass of the job reseal over what a tenant has stored, and how far it is. wanted_at is the last rotation of the
-- tenant's key that asked for one; done_at is when the last whole pass began.
CREATE TABLE reseal_passes (
    tenant_id integer PRIMARY KEY REFERENCES tenants,
    wanted_at timestamptz,
    began_at timestamptz,
    place text COLLATE "C",
    position json,
    resealed bigint NOT NULL DEFAULT 0,
    done_at timestamptz
);
