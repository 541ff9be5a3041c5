-- Of what a conflict holds the last change stays, as it was before. All of them have their rows in the log.
UPDATE conflict_resolution_log
SET client_op = client_changes->-1->>'op',
    client_base = (client_changes->-1->>'base')::bigint,
    client_at_us = (client_changes->-1->>'at_us')::bigint,
    client_data = CASE WHEN client_changes->-1->>'op' <> 'delete' THEN client_changes->-1->'data' END
WHERE outcome = 'open' AND client_changes IS NOT NULL;

ALTER TABLE conflict_resolution_log
    DROP COLUMN client_sent_at_us,
    DROP COLUMN client_changes,
    DROP COLUMN client_count,
    DROP COLUMN held_in;
