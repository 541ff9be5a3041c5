-- A conflict holds all that its device changed, in order, and not the last change alone: the array is null while
-- that is the conflict's own item. An item that joins an open conflict has a row of its own, which names it.
ALTER TABLE conflict_resolution_log
    ADD COLUMN client_sent_at_us bigint,
    ADD COLUMN client_changes json,
    ADD COLUMN client_count integer NOT NULL DEFAULT 1,
    ADD COLUMN held_in text COLLATE "C";
