DROP TRIGGER tenant_key_names_counter ON tenant_keys;
DROP FUNCTION tenant_key_names_counter();

ALTER TABLE tenant_counters DROP COLUMN key_id;
