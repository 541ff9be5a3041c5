-- A role that does not own these tables sees only rows of the tenants that its transaction names, in tidemark.tenants. The
-- list is taken apart once for each statement (a hashed sub-plan): = ANY would look through it for each row, which costs
-- five times as much at 400 tenants. The owner is not held by it, so that migrations and partitions go on as before.
--
-- A partition is read through its table, whose policy counts, and nobody but the owner may read it by its own name.
-- events_later may be detached for a while and is read by its name then, so that it has the policy, too.
--
-- In the order in which batches lock the tables.
DO $$
DECLARE
    growing text;
    named constant text :=
        'tenant_id IN (SELECT unnest(string_to_array(current_setting(''tidemark.tenants'', true), '','')::int[]))';
BEGIN
    FOREACH growing IN ARRAY ARRAY[
        'tenant_counters', 'sync_idempotency_record', 'records', 'events', 'events_later', 'conflict_resolution_log',
        'quarantine', 'upload_session', 'tenant_storage', 'sync_hour_counts', 'devices', 'sync_device_health',
        'sync_device_hours', 'sync_minutes', 'sync_analytics_snapshot', 'sync_analytics_day', 'voice_verification_log',
        'tenant_conflict_policy', 'revoked_tokens'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', growing);
        EXECUTE format('CREATE POLICY tenants ON %I USING (%s) WITH CHECK (%s)', growing, named, named);
    END LOOP;
END
$$;

-- What it calls is found in PostgreSQL's own schema, whatever the session of the caller has in its search_path.
ALTER FUNCTION audit_log_only_grows() SET search_path = pg_catalog, pg_temp;
