ALTER TABLE cluster_state DROP COLUMN bus_unsigned_until;

ALTER TABLE cluster_state DROP COLUMN bus_key;
