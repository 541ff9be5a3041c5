-- Fills what 0024 added: a step of its own, so that no lock of a table is held while all rows are read. What
-- servers of the version before write at the same time is in none of the columns: counted_at stays null, and the
-- first server of this version counts again within the hour.
UPDATE tenant_counters AS c
SET record_rows = f.record_rows,
    record_bytes = f.record_bytes,
    conflict_rows = f.conflict_rows,
    conflict_bytes = f.conflict_bytes,
    quarantine_rows = f.quarantine_rows,
    quarantine_bytes = f.quarantine_bytes,
    event_rows = f.event_rows,
    event_bytes = f.event_bytes,
    future_event_rows = f.future_event_rows,
    answer_rows = f.answer_rows,
    answer_bytes = f.answer_bytes
FROM (
    SELECT tenant_id,
        coalesce(r.rows, 0) AS record_rows, coalesce(r.bytes, 0) AS record_bytes,
        coalesce(l.rows, 0) AS conflict_rows, coalesce(l.bytes, 0) AS conflict_bytes,
        coalesce(q.rows, 0) AS quarantine_rows, coalesce(q.bytes, 0) AS quarantine_bytes,
        coalesce(e.rows, 0) AS event_rows, coalesce(e.bytes, 0) AS event_bytes,
        coalesce(e.ahead, 0) AS future_event_rows,
        coalesce(k.rows, 0) AS answer_rows, coalesce(k.bytes, 0) AS answer_bytes
    FROM tenants
    LEFT JOIN (
        SELECT tenant_id, count(*) AS rows,
            sum(coalesce(octet_length(data::text), 0) + coalesce(octet_length(fields::text), 0)
                + coalesce(octet_length(last_data::text), 0)) AS bytes
        FROM records GROUP BY tenant_id
    ) AS r USING (tenant_id)
    LEFT JOIN (
        SELECT tenant_id, count(*) AS rows,
            sum(coalesce(octet_length(server_data::text), 0) + coalesce(octet_length(client_data::text), 0)
                + coalesce((SELECT sum(octet_length((change->'data')::text))
                    FROM json_array_elements(client_changes) AS change
                    WHERE json_typeof(change->'data') <> 'null'), 0)) AS bytes
        FROM conflict_resolution_log GROUP BY tenant_id
    ) AS l USING (tenant_id)
    LEFT JOIN (
        SELECT tenant_id, count(*) AS rows, sum(octet_length(item)) AS bytes FROM quarantine GROUP BY tenant_id
    ) AS q USING (tenant_id)
    LEFT JOIN (
        SELECT tenant_id, count(*) AS rows, sum(octet_length(data::text)) AS bytes,
            count(*) FILTER (WHERE sent_at_us > (extract(epoch FROM now()) + 86400) * 1000000) AS ahead
        FROM events GROUP BY tenant_id
    ) AS e USING (tenant_id)
    LEFT JOIN (
        SELECT tenant_id, count(*) AS rows, sum(octet_length(results::text)) AS bytes
        FROM sync_idempotency_record GROUP BY tenant_id
    ) AS k USING (tenant_id)
) AS f
WHERE c.tenant_id = f.tenant_id;
