-- The place of a process that stays the same when it is started again: host, port and number of the worker. Of those
-- that run, the first by it watches the database for all. A process of an earlier version has none, and comes before.
ALTER TABLE server_processes ADD COLUMN slot text COLLATE "C" NOT NULL DEFAULT '';
