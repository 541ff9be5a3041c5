DROP TABLE conflict_resolution_log;
