ALTER TABLE reseal_passes
    DROP COLUMN unreadable_values,
    DROP COLUMN unreadable;
