DROP TABLE tenant_conflict_policy;
