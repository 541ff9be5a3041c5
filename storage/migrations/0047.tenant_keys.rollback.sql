DROP TABLE tenant_keys;

DROP TABLE master_keys;

ALTER TABLE tenants DROP COLUMN tenant_uuid;
