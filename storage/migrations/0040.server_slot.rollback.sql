ALTER TABLE server_processes DROP COLUMN slot;
