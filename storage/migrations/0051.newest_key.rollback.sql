ALTER TABLE tenants DROP COLUMN newest_key;
