-- A key of a tenant is known by this id and not by its number: after a failover to a standby that had not received a
-- key, or with a row of a backup, another key may have the number. A batch reads the id in its first round trip, and is
-- not committed if it would seal with another key.
-- On a large installation: tenant_keys is rewritten once; it has a row for each key of a tenant.
ALTER TABLE tenant_keys ADD COLUMN key_id uuid NOT NULL DEFAULT gen_random_uuid();
