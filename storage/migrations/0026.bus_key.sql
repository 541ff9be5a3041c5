-- What processes sign their messages to each other with, so that nobody else on their Redis is believed.
ALTER TABLE cluster_state ADD COLUMN bus_key bytea NOT NULL
    DEFAULT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex');
ALTER TABLE cluster_state ALTER COLUMN bus_key DROP DEFAULT;

-- Until then messages without a signature are believed as well, for processes of before this migration; those that
-- sign end it when they have heard none for a minute. A database without tenants has none of before.
ALTER TABLE cluster_state ADD COLUMN bus_unsigned_until timestamptz NOT NULL DEFAULT 'epoch';
UPDATE cluster_state SET bus_unsigned_until = now() + interval '1 day' WHERE EXISTS (SELECT FROM tenants);
