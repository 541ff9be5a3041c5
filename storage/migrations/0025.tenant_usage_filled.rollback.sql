UPDATE tenant_counters SET counted_at = NULL WHERE counted_at IS NOT NULL;
