DROP TABLE sync_idempotency_record;
