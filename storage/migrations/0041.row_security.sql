-- From here on each table that grows has the policy `tenants`: a role that does not own it sees only rows of the tenants
-- that its transaction names, in tidemark.tenants. `run.py migrate` makes the policies after the migrations
-- (storage/postgres/roles/policies.py), each in a transaction of its own: to wait for a reader of one table must not hold
-- up syncs, which use the others. The owner is not held by them, so that migrations and partitions go on as before.

-- What it calls is found in PostgreSQL's own schema, whatever the session of the caller has in its search_path.
ALTER FUNCTION audit_log_only_grows() SET search_path = pg_catalog, pg_temp;
