-- A device's own changes are ordered by `at` as the device sent it; null for versions that were written before.
ALTER TABLE records ADD COLUMN sent_at_us bigint;

-- What the server's clock was ahead of the device's when the item came, so that a retry corrects `at` by it.
ALTER TABLE quarantine ADD COLUMN clock_offset_us bigint NOT NULL DEFAULT 0;
