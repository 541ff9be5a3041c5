"""Group commit in PostgreSQL: locks and reads of a batch, then its writes and COMMIT; no other reads."""
