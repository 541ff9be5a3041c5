-- New tenants merge task and work_order by field. Tenants that exist keep what they know, as a policy of
-- their own, unless they have one or the operator's settings name the domain's policy (storage/postgres/migrate.py
-- lists those domains in tidemark.chosen_domains).
INSERT INTO tenant_conflict_policy (tenant_id, domain, policy, updated_by)
SELECT tenant_id, domain, 'most_recent_wins', 'migration'
FROM tenants CROSS JOIN unnest(ARRAY['task', 'work_order']) AS domain
WHERE domain <> ALL (string_to_array(coalesce(current_setting('tidemark.chosen_domains', true), ''), ','))
ON CONFLICT (tenant_id, domain) DO NOTHING;

UPDATE cluster_state SET generation = generation + 1;
