DROP TABLE reseal_passes;

DROP TRIGGER server_process_opens_sealed ON server_processes;
DROP FUNCTION server_process_opens_sealed();

ALTER TABLE server_processes DROP COLUMN sealing, DROP COLUMN master_keys;

DROP TABLE sealed_domains;
