-- The number of the newest data key that a tenant ever had. Keys that vanish from tenant_keys are noticed by it: a tenant
-- whose keys are lost must not get a first key anew, beside sealed values that nothing opens.
ALTER TABLE tenants ADD COLUMN newest_key integer NOT NULL DEFAULT 0;

UPDATE tenants AS t SET newest_key = (SELECT coalesce(max(k.key_number), 0) FROM tenant_keys AS k WHERE k.tenant_id = t.tenant_id)
WHERE EXISTS (SELECT FROM tenant_keys AS k WHERE k.tenant_id = t.tenant_id);
