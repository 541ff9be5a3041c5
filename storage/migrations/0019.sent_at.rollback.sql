ALTER TABLE quarantine DROP COLUMN clock_offset_us;

ALTER TABLE records DROP COLUMN sent_at_us;
