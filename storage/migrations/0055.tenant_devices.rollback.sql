DROP TRIGGER gone_devices_are_counted ON devices;
DROP TRIGGER devices_are_counted ON devices;
DROP FUNCTION devices_are_counted();
ALTER TABLE tenant_storage DROP COLUMN device_rows;
