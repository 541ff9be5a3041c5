DROP TABLE cluster_state;

DROP TABLE tenant_counters;

DROP TABLE tenants;
