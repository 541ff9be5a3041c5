ALTER TABLE tenant_keys DROP COLUMN key_id;
