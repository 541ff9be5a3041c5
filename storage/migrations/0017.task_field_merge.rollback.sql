DELETE FROM tenant_conflict_policy WHERE updated_by = 'migration';
UPDATE cluster_state SET generation = generation + 1;
