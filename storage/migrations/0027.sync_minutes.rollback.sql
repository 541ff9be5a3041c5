ALTER TABLE sync_analytics_snapshot DROP COLUMN refused;

ALTER TABLE cluster_state DROP COLUMN aggregated_until;

DROP TABLE sync_minutes;
