-- The place of a process that stays the same when it is started again: host, port and number of the worker. Of those
-- that run, the first by it watches the database for all. A process of an earlier version has none, and comes before.
ALTER TABLE server_processes ADD COLUMN slot text COLLATE "C" NOT NULL DEFAULT '';

-- The log of conflicts by the time when they ended: the list of settled ones, and the clean-up. Those that are open have
-- an index of their own. The index of before had them too, so each clean-up read all again that were opened long ago.
CREATE INDEX conflict_resolution_log_settled
    ON conflict_resolution_log (tenant_id, (coalesce(settled_at_us, opened_at_us))) WHERE outcome <> 'open';
DROP INDEX conflict_resolution_log_by_time;
