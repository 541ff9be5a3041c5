-- Sealed values that a pass of the job reseal could not open: it goes on behind them, and says which they are. The list has the
-- first hundred or so, the number has all.
ALTER TABLE reseal_passes
    ADD COLUMN unreadable_values bigint NOT NULL DEFAULT 0,
    ADD COLUMN unreadable jsonb NOT NULL DEFAULT '[]';
