-- Who did what to the security of the system. A tenant is named, not referenced: a row outlives its tenant.
CREATE TABLE audit_log (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    event text COLLATE "C" NOT NULL,
    actor_kind text NOT NULL CHECK (actor_kind IN ('account', 'user', 'device', 'address', 'server')),
    actor text NOT NULL,
    tenant text COLLATE "C",
    tenant_number integer,
    target text NOT NULL,
    details json,
    times integer NOT NULL DEFAULT 1 CHECK (times > 0)
);

CREATE INDEX audit_log_at ON audit_log (at);
CREATE INDEX audit_log_tenant ON audit_log (tenant, at);

-- A row is never changed. It can be deleted after 30 days, which is the least of retention.audit_d.
CREATE FUNCTION audit_log_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at < now() - interval '30 days' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'audit_log only grows: its rows are never changed, and kept for 30 days at least';
END
$$;

CREATE TRIGGER audit_log_only_grows BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION audit_log_only_grows();
CREATE TRIGGER audit_log_not_truncated BEFORE TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION audit_log_only_grows();
-- Also while session_replication_role leaves other triggers out.
ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_only_grows;
ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_not_truncated;
